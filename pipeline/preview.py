"""A look at the tokens: originals beside what the tokens decode to."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from operators.base import Batch, Column, Invertible, Ragged
from operators.columns import concat, take
from pipeline.errors import SpecError
from pipeline.manifest import DataSet, open_data_set
from pipeline.plan import Chain, build_chain, read_plan
from pipeline.sources import build_source
from pipeline.spec import JobSpec, job_from_recipe
from pipeline.stages import run_steps
from pipeline.storage import Storage

TILE = 256
GAP = 8
TEXT_WIDTH = 420


@dataclass(frozen=True, slots=True)
class Preview:
    """Rows of a data set with what their tokens decode to.

    Attributes:
        keys: N sample keys.
        originals: Label of an operator -> its input, N images (uint8 arrays) or texts.
        decoded: The same, decoded from the stored tokens.
        warning: Shown on the sheet, or None.
    """

    keys: Sequence[str]
    originals: Mapping[str, Sequence[Any]]
    decoded: Mapping[str, Sequence[Any]]
    warning: str | None

    def sheet(self) -> Image.Image:
        """Draw a row per sample: for every operator its original, then the decoded tokens."""
        return _draw(self)


def preview(uri: str, storage: Storage, num: int = 8) -> Preview:
    """Decode the first rows of a data set with every operator that has an inverse.

    Raises:
        SpecError: no stored field comes from such an operator, or there are no rows.
        SetupError: the source or an operator's weights cannot be reached.
    """
    data = open_data_set(uri, storage)
    job = job_from_recipe(data.manifest.recipe)
    source = build_source(job.source, storage, job.source_urls())
    chain = build_chain(job, source.fields)
    stored = set(data.manifest.fields)
    steps = [
        (i, bound)
        for i, bound in enumerate(chain.steps)
        if isinstance(bound.step, Invertible) and set(bound.writes.values()) <= stored
    ]
    if not steps:
        raise SpecError(
            f"{uri}: none of {sorted(stored)} comes from an operator that can decode",
            hint="write the tokenizer's own field too (shards.fields)",
        )
    if not data.shards.num_rows:
        raise SpecError(f"{uri}: the data set has no rows")
    partition, batch = _first_rows(data, num)
    keys = batch.column("key").to_pylist()
    originals: dict[str, Sequence[Any]] = {}
    decoded: dict[str, Sequence[Any]] = {}
    for i, bound in steps:
        tokens = {name: _column(batch.column(field)) for name, field in bound.writes.items()}
        out = bound.step.decode(tokens)  # type: ignore[union-attr]
        before = _inputs(data, job, chain, i, partition, keys)
        for name in out:
            if name in before and _can_be_shown(out[name]):
                originals[bound.label] = _items(before[name])
                decoded[bound.label] = _items(out[name])
    warning = "random weights: the tokens mean nothing" if data.manifest.random_weights else None
    return Preview(keys, originals, decoded, warning)


def _first_rows(data: DataSet, num: int) -> tuple[int, pa.RecordBatch]:
    row = data.shards.slice(0, 1).to_pylist()[0]
    with data.storage.open_read(data.shard_uri(row["path"])) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    return row["partition"], batch.slice(0, num)


def _inputs(
    data: DataSet, job: JobSpec, chain: Chain, index: int, partition: int, keys: Sequence[str]
) -> Batch:
    """Return the inputs of step ``index`` for the samples of the given keys."""
    bound = chain.steps[index]
    source = build_source(job.source, data.storage, job.source_urls())
    part = next(p for p in read_plan(data.storage, data.uri) if p.index == partition)
    wanted = set(bound.reads.values()) | {"key"}
    found: list[dict[str, Column]] = []
    missing = set(keys)
    for block in run_steps(chain.steps[:index], source, part, job.batch_size):
        at = [i for i, key in enumerate(block["key"].to_pylist()) if key in missing]
        if at:
            rows = np.array(at)
            found.append({name: take(block[name], rows) for name in wanted})
            missing -= set(found[-1]["key"].to_pylist())
        if not missing:
            break
    joined = {name: concat([part[name] for part in found]) for name in wanted} if found else {}
    if not joined:
        return {}
    order = {key: i for i, key in enumerate(joined["key"].to_pylist())}
    rows = np.array([order[key] for key in keys if key in order])
    return {name: take(joined[field], rows) for name, field in bound.reads.items()}


def _column(array: pa.Array) -> Column:
    """Return a stored column as operators know it."""
    if pa.types.is_list(array.type):
        offsets = array.offsets.to_numpy().astype(np.int64)
        values = _dense(array.values)[offsets[0] : offsets[-1]]
        return Ragged(values, offsets - offsets[0])
    if pa.types.is_string(array.type):
        return array.cast(pa.large_string())
    return _dense(array)


def _dense(array: pa.Array) -> np.ndarray:
    shape = [len(array)]
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    values: np.ndarray = array.to_numpy().reshape(shape)
    return values


def _can_be_shown(column: Column) -> bool:
    """Say whether a column holds texts or RGB images."""
    is_image = isinstance(column, np.ndarray) and column.ndim == 4 and column.shape[-1] == 3
    return is_image or isinstance(column, pa.Array)


def _items(column: Column) -> Sequence[Any]:
    return column.to_pylist() if isinstance(column, pa.Array) else list(column)


def _draw(preview: Preview) -> Image.Image:
    columns = [
        (f"{label}: {kind}", items[label])
        for label in preview.originals
        for kind, items in (("original", preview.originals), ("decoded", preview.decoded))
    ]
    widths = [TEXT_WIDTH if isinstance(items[0], str) else TILE for _, items in columns]
    top = 3 * GAP + 12 + (20 if preview.warning else 0)
    row_height = TILE + 24
    width = sum(widths) + GAP * (len(widths) + 1)
    sheet = Image.new("RGB", (width, top + row_height * len(preview.keys)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    if preview.warning:
        draw.text((GAP, GAP), preview.warning, fill="red", font=font)
    left = GAP
    for (title, items), column_width in zip(columns, widths, strict=True):
        draw.text((left, top - 20), title, fill="black", font=font)
        for row, item in enumerate(items):
            y = top + row * row_height
            if isinstance(item, str):
                draw.multiline_text((left, y), _wrapped(item), fill="black", font=font, spacing=2)
            else:
                tile = Image.fromarray(np.asarray(item))
                tile.thumbnail((TILE, TILE))
                sheet.paste(tile, (left, y))
        left += column_width + GAP
    for row, key in enumerate(preview.keys):
        draw.text((GAP, top + row * row_height + TILE + 3), key[:80], fill="grey", font=font)
    return sheet


def _wrapped(text: str, per_line: int = 58, lines: int = 15) -> str:
    found: list[str] = []
    for paragraph in text.splitlines():
        found += textwrap.wrap(paragraph, per_line) or [""]
    return "\n".join(found[:lines] + (["..."] if len(found) > lines else []))
