"""What reducers lose: error after putting features back, and how well the rest covers them.

For the sample photographs, at two budgets:

- ``zero`` and ``near``: relative L2 error of the features after ``unreduce``, with zeros where a
  token was dropped, or with the row of the nearest token of the grid that is represented;
- ``mean`` and ``far``: cosine distance from each original token to the nearest row that is left,
  on average and at worst (the mean over photographs of either).

Measured on the pixels of patches, for what needs no signals, and on the features of an encoder. One
with random weights says little of a trained one: its attention follows nothing in the picture, so
that methods that go by it come out badly. Give a checkpoint to learn something of them.

    python -m benchmarks.reducer_quality
    python -m benchmarks.reducer_quality --weights facebook/dinov2-small --photos 64
    python -m benchmarks.reducer_quality --write-docs       # the tables of docs/reducers.md
"""

import argparse
import io
import math
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.reducer_chain import Chain, Encoder, build_chain, dense, reducer_names, views_of
from operators import registry
from operators.base import FieldSpec
from operators.reducers.base import SIGNALS
from operators.reducers.unreduce import unreduce
from pipeline.sample_data import write_sample_data

DOCS = Path(__file__).parents[1] / "docs" / "reducers.md"
SHARES = (1 / 4, 1 / 9)
MEASURES = ("zero", "near", "mean", "far")
PATCH_SIDE, PATCHES = 14, 14
ATTENTION_LAYERS = (2, 6, -2)

Batch = dict[str, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", help="reducers; all by default")
    parser.add_argument("--weights", help="hub id or folder of an encoder; random without")
    parser.add_argument("--size", type=int, default=224, help="side of the encoder's images")
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    parser.add_argument("--write-docs", action="store_true")
    args = parser.parse_args()
    names = args.names or reducer_names()
    photos = list(sample_photos(args.data, args.photos))
    about = args.weights or "ViT-B/16 (CLIP's) with random weights"
    tables = {}
    side, most = PATCH_SIDE * PATCHES, max(map(views_of, names))
    pixels = torch.from_numpy(np.stack([views(photo, side)[:most] for photo in photos]))
    tables["Pixels of 14 x 14 patches of 14 x 14 pixels"] = table(
        names, patches(pixels), metric="features"
    )
    pixels = torch.from_numpy(np.stack([views(photo, args.size)[:most] for photo in photos]))
    tables[f"Features of {about}"] = table(names, encoded(pixels, args.weights))
    text = "\n\n".join(f"**{title}**\n\n{rows}" for title, rows in tables.items())
    text = f"{len(photos)} photographs.\n\n{text}"
    print(text)
    if args.write_docs:
        replace_between(DOCS, "quality", text)


def sample_photos(folder: Path, count: int) -> Iterator[Image.Image]:
    """Yield photographs of the sample data, written where they are not there yet."""
    for tar in write_sample_data(folder).photo_tars:
        with tarfile.open(tar) as file:
            for member in file:
                if not member.name.endswith(".jpg"):
                    continue
                if count == 0:
                    return
                data = file.extractfile(member)
                assert data is not None
                yield Image.open(io.BytesIO(data.read())).convert("RGB")
                count -= 1


def views(photo: Image.Image, side: int) -> np.ndarray:
    """Return uint8 [9, S, S, 3]: the central square, its quarters, and places between them."""
    edge = min(photo.size)
    left, top = (photo.width - edge) // 2, (photo.height - edge) // 2
    square = photo.crop((left, top, left + edge, top + edge))
    large = square.resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
    half = side // 2
    corners = [(0, 0), (2, 0), (0, 2), (2, 2), (1, 1), (1, 0), (0, 1), (1, 2)]
    boxes = [(x * half, y * half, x * half + side, y * half + side) for x, y in corners]
    small = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.stack([np.asarray(view) for view in (small, *(large.crop(box) for box in boxes))])


def patches(pixels: torch.Tensor) -> Batch:
    """Return the pixels of patches as features [P, V, N, C], in [-1, 1]."""
    cut = pixels.unflatten(3, (-1, PATCH_SIDE)).unflatten(2, (-1, PATCH_SIDE))
    features = cut.permute(0, 1, 2, 4, 3, 5, 6).flatten(4).flatten(2, 3)
    return {"features": features.float() / 127.5 - 1}


def encoded(pixels: torch.Tensor, weights: str | None) -> Batch:
    """Return features [P, V, N, C] and signals, with views behind the photographs."""
    cls: Any = registry.get("vision_encoder")
    options = {
        "name": "vision_encoder",
        "weights": weights or {"random_seed": 0, "size": "clip_vit_b_16"},
        "device": "cpu",
        "attention_layers": ATTENTION_LAYERS,
        "tower_batch": 1,
    }
    fields = {"image": FieldSpec("uint8", tuple(pixels.shape[1:]))}
    op = cls(cls.Config.model_validate(options))
    op.bind(fields)
    if "cls_attention" in op.lacks:
        op = cls(cls.Config.model_validate({**options, "cls_attention": "received"}))
        op.bind(fields)
    op.provide(frozenset(SIGNALS) & frozenset(op.offers))
    op.setup("cpu")
    with torch.inference_mode():
        parts = [op({"image": photo[None]}) for photo in pixels]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def table(names: Sequence[str], given: Batch, **options: Any) -> str:
    """Return a Markdown table of all reducers on features and signals of photographs.

    Args:
        names: Of the reducers.
        given: Fields [P, V, ...].
        options: For reducers that need a signal which is not given, if they have such an option.
    """
    shape = given["features"].shape
    head = ["reducer"]
    for share in SHARES:
        head += [f"left of {shape[2]} ({share:.0%})", *MEASURES]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name in names:
        cells = [f"`{name}`"]
        for share in SHARES:
            chain = fitting(name, round(share * shape[2]), given, options)
            if chain is None:
                cells += ["-"] * (1 + len(MEASURES))
                continue
            left, found = quality(chain, given)
            cells += [f"{left:.0f}", *(f"{found[measure]:.3f}" for measure in MEASURES)]
        if set(cells[1:]) != {"-"}:
            lines.append(" | ".join(cells))
            print(lines[-1], flush=True)
    return "\n".join(f"| {line} |" for line in lines)


def fitting(name: str, keep: int, given: Batch, options: Mapping[str, Any]) -> Chain | None:
    """Return a chain of this reducer that reads no more than there is."""
    shape = given["features"].shape
    heads, head_dim = given["keys"].shape[3:] if "keys" in given else (1, 1)
    layers = len(ATTENTION_LAYERS)
    encoder = Encoder(shape[2], shape[3], heads=heads, head_dim=head_dim, layers=layers)
    for each in ({}, options):
        chain = build_chain(name, keep, encoder, **each)
        if chain is not None and set(chain.signals) <= set(given):
            return chain
    return None


def quality(chain: Chain, given: Batch) -> tuple[float, dict[str, float]]:
    """Return tokens that are left of a crop, and the measures, as means over photographs."""
    photos, tokens = given["features"].shape[0], given["features"].shape[2]
    batch = chain.batch(photos)
    for name in set(batch) & set(given):
        batch[name] = given[name][:, : chain.views] if chain.views > 1 else given[name][:, 0]
    found = chain(batch)
    rows = [row.numpy() for row in dense(found, "features")]
    maps = [row.numpy() for row in dense(found, "token_map")]
    left = sum(math.prod(row.shape[:-1]) for row in rows) / (photos * chain.views)
    each = [
        measures(batch["features"][photo].numpy(), rows[photo], maps[photo], tokens)
        for photo in range(photos)
    ]
    return left, {name: float(np.mean([one[name] for one in each])) for name in MEASURES}


def measures(
    features: np.ndarray, rows: np.ndarray, token_map: np.ndarray, tokens: int
) -> dict[str, float]:
    """Return the measures of one photograph, of [N, C] or of crops [V, N, C]."""
    back, is_there = unreduce(rows, token_map)
    near = back.reshape(-1, tokens, back.shape[-1]).copy()
    for crop, there in zip(near, is_there.reshape(-1, tokens), strict=True):
        if there.any():
            crop[:] = crop[nearest_in_grid(there)]
    norm = np.linalg.norm(features)
    if rows.ndim == 3:  # crops have rows of their own
        pairs = [cosine_distances(a, b) for a, b in zip(features, rows, strict=True)]
    else:
        pairs = [cosine_distances(features.reshape(-1, features.shape[-1]), rows)]
    distances = np.concatenate([pair.min(axis=1) for pair in pairs])
    return {
        "zero": float(np.linalg.norm(features - back) / norm),
        "near": float(np.linalg.norm(features - near.reshape(features.shape)) / norm),
        "mean": float(distances.mean()),
        "far": float(distances.max()),
    }


def nearest_in_grid(is_there: np.ndarray) -> np.ndarray:
    """Return int64 [N]: the represented token that is nearest in the grid, ties to the first."""
    side = math.isqrt(len(is_there))
    places = np.stack(np.divmod(np.arange(len(is_there)), side), axis=1)
    there = np.flatnonzero(is_there)
    squared = ((places[:, None] - places[there]) ** 2).sum(axis=2)
    found: np.ndarray = there[squared.argmin(axis=1)]
    return found


def cosine_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return [N, K]."""

    def unit(x: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        scaled: np.ndarray = x / np.maximum(lengths, 1e-12)
        return scaled

    found: np.ndarray = 1 - unit(a) @ unit(b).T
    return found


def replace_between(path: Path, name: str, text: str) -> None:
    """Put a text between the marks of a name in a Markdown file."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
