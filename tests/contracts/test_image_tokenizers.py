"""One suite over every image tokenizer, with its golden models."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from operators import registry
from operators.base import Batch, FieldSpec, Invertible
from operators.errors import ContractError, RowErrors, SetupError
from operators.image_tokenizers.base import ImageTokenizer
from operators.testing import assert_operator_contract
from tests.golden_tokenizer import GoldenModel, assert_near, models

MODELS = pytest.mark.parametrize("model", models(), ids=lambda model: model.folder)
Op = ImageTokenizer[Any, Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {m.folder: m.write(tmp_path_factory.mktemp(m.folder)) for m in models()}


def ready(model: GoldenModel, folders: dict[str, str], **options: Any) -> Op:
    op = model.build(folders[model.folder], **options)
    op.setup("cpu")
    return op


def has_ids(op: Op) -> bool:
    return bool(op.layout.codebook_sizes)


@MODELS
def test_ids_are_the_authors(model: GoldenModel, folders: dict[str, str]) -> None:
    op = ready(model, folders)
    images = model.images(model.tensors("inputs")["images"])
    if model.prequant is not None:
        assert_near(op.latents(images), model.prequant(model.tensors("outputs")), 2e-4)
    if not has_ids(op):
        return
    expected = model.ids(model.tensors("outputs")["tokens"])
    assert torch.equal(op.encode(images), expected)
    for row in range(len(images)):
        assert torch.equal(op.encode(images[row : row + 1]), expected[row : row + 1])
    padded = torch.cat([images[:1], torch.zeros_like(images[:1]), images[1:2].flip(3)])
    assert torch.equal(op.encode(padded)[:1], expected[:1])


@MODELS
def test_bytes_become_the_numbers_that_the_authors_use(
    model: GoldenModel, folders: dict[str, str]
) -> None:
    op = ready(model, folders)
    expected = model.images(model.tensors("inputs")["images"])
    found = op.prepare(torch.from_numpy(model.pixels(op)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@MODELS
def test_contract(model: GoldenModel, folders: dict[str, str]) -> None:
    op = model.build(folders[model.folder])
    assert_operator_contract(op, {"image": model.pixels(op)}, rows_alone=2)


@MODELS
def test_bfloat16_agrees_as_stated(model: GoldenModel, folders: dict[str, str]) -> None:
    op = ready(model, folders, dtype="bfloat16")
    if not has_ids(op):
        return
    expected = model.ids(model.tensors("outputs")["tokens"])
    same = (op.encode(model.images(model.tensors("inputs")["images"])) == expected).float()
    assert float(same.mean()) >= op.min_agreement["bfloat16"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler warns of its own parts
def test_a_compiled_encoder_agrees_as_stated(folders: dict[str, str]) -> None:
    """One family here; the others were measured once, since compiling takes a minute each."""
    (model,) = (each for each in models() if each.folder == "open_magvit2")
    op = ready(model, folders, compile=True)
    expected = model.ids(model.tensors("outputs")["tokens"])
    same = (op.encode(model.images(model.tensors("inputs")["images"])) == expected).float()
    assert float(same.mean()) >= op.min_agreement["compiled"]


@MODELS
def test_views_are_tokenized_one_by_one(model: GoldenModel, folders: dict[str, str]) -> None:
    op, plain = (model.build(folders[model.folder]) for _ in range(2))
    pixels = model.pixels(op)[:2]
    views = np.stack([pixels, pixels[:, :, ::-1]], axis=1)
    op.bind({"image": FieldSpec("uint8", views.shape[1:])})
    plain.setup("cpu")
    found = assert_operator_contract(op, {"image": views}, rows_alone=1)
    for view in range(2):
        alone = plain({"image": torch.from_numpy(views[:, view].copy())})
        for name, column in alone.items():
            assert np.array_equal(found[name][:, view], column.numpy())
    layout: Any = op.metadata()["layout"]
    assert layout["views"] == 2


@MODELS
def test_planning_reads_no_weights(model: GoldenModel, tmp_path: Path) -> None:
    folder = model.write(tmp_path)
    (tmp_path / model.file).unlink()
    op = model.build(folder)
    assert op.inputs
    assert op.outputs
    assert op.metadata()


@MODELS
def test_encoding_loads_no_decoder(model: GoldenModel, tmp_path: Path) -> None:
    """Tensors that only the decoder has may even be missing."""
    op = model.build(model.write(tmp_path / "whole"))
    with torch.device("meta"):
        wanted = {op.stored_name(name) for name in op.encoder_net().state_dict()}
    few = {name: tensor for name, tensor in model.tensors("weights").items() if name in wanted}
    op = model.build(model.write(tmp_path / "encoder", weights=few))
    op.setup("cpu")


@MODELS
def test_every_tensor_of_a_checkpoint_is_accounted_for(model: GoldenModel, tmp_path: Path) -> None:
    weights = model.tensors("weights")
    extra = {**weights, "unheard_of.weight": torch.ones(2)}
    op = model.build(model.write(tmp_path / "extra", weights=extra))
    with pytest.raises(SetupError, match=r"1 unexpected: unheard_of\.weight"):
        op.setup("cpu")

    op = model.build(model.write(tmp_path / "whole"))
    with torch.device("meta"):
        name = next(op.stored_name(n) for n in op.encoder_net().state_dict())
    few = {key: tensor for key, tensor in weights.items() if key != name}
    with pytest.raises(SetupError, match=re.escape(f"1 missing: {name}")):
        model.build(model.write(tmp_path / "few", weights=few)).setup("cpu")
    wide = {**weights, name: torch.ones(3, *weights[name].shape)}
    with pytest.raises(SetupError, match=re.escape(f"1 of another shape: {name}")):
        model.build(model.write(tmp_path / "wide", weights=wide)).setup("cpu")


@MODELS
def test_a_truncated_checkpoint_is_refused(model: GoldenModel, tmp_path: Path) -> None:
    folder = model.write(tmp_path)
    path = tmp_path / model.file
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SetupError, match=r"not a whole .* file"):
        model.build(folder).setup("cpu")


@MODELS
def test_a_checkpoint_of_another_model_is_refused(model: GoldenModel, tmp_path: Path) -> None:
    other = {"model.embed_tokens.weight": torch.ones(4, 4)}
    folder = model.write(tmp_path, weights=other)
    with pytest.raises(SetupError, match=r"tensors \d+ missing: .*; 1 unexpected: model"):
        model.build(folder).setup("cpu")
    if model.config is not None:
        folder = model.write(tmp_path, config={"model_type": "bert"})
        with pytest.raises(SetupError, match=model.operator):
            _ = model.build(folder).inputs


@MODELS
def test_wrong_images(model: GoldenModel, folders: dict[str, str]) -> None:
    op = ready(model, folders)
    good = torch.from_numpy(model.pixels(op)[:2])
    for wrong in (good.float(), good[:, :-3], good.permute(0, 3, 1, 2), good[..., :1]):
        with pytest.raises(ContractError, match=r"field 'image' is .* expected uint8"):
            op({"image": wrong.contiguous()})


@MODELS
def test_latents_that_are_not_finite_are_bad_rows(
    model: GoldenModel, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    op = ready(model, folders)
    pixels = torch.from_numpy(model.pixels(op)[:3])
    good = op({"image": pixels})
    latents_of = op.latents_of

    def broken(images: torch.Tensor, batch: Batch, view: int) -> torch.Tensor:
        latents = latents_of(images, batch, view).clone()
        latents[1] = float("nan")
        return latents

    monkeypatch.setattr(op, "latents_of", broken)
    with pytest.raises(RowErrors) as caught:
        op({"image": pixels})
    assert list(caught.value.errors) == [1]
    assert "NaN or infinity" in str(caught.value.errors[1])
    for name, column in good.items():
        assert torch.equal(caught.value.good[name], column[[0, 2]])


@MODELS
def test_decoded_ids_must_be_in_range(model: GoldenModel, folders: dict[str, str]) -> None:
    op = model.build(folders[model.folder])
    if not has_ids(op) or not can_decode(op):
        return
    assert isinstance(op, Invertible)
    (spec,) = op.outputs.values()
    most = max(op.layout.codebook_sizes)
    tokens = np.full((1, *(side or 1 for side in spec.shape)), most, np.int64)
    with pytest.raises(ContractError, match=f"id {most} is out of range, expected 0 to"):
        op.decode({"tokens": tokens})
    assert spec.vocab_size == most


def can_decode(op: Op) -> bool:
    return type(op).decoder_net is not ImageTokenizer.decoder_net


@MODELS
def test_decoded_images(model: GoldenModel, folders: dict[str, str]) -> None:
    op = model.build(folders[model.folder])
    outputs = model.tensors("outputs")
    if not has_ids(op) or not can_decode(op) or "decoded" not in outputs:
        return
    found = op.decode_tokens(model.ids(outputs["tokens"]))
    assert_near(found[: len(outputs["decoded"])], outputs["decoded"], 1e-4)
    tokens = model.ids(outputs["tokens"]).numpy()
    pixels = op.decode({"tokens": tokens})["image"]
    assert pixels.shape == (len(tokens), *op.image_sides, 3)
    assert pixels.dtype == np.uint8


def tokenizers() -> list[type[Op]]:
    found: list[type[Op]] = [
        cls for cls in registry.all_classes().values() if issubclass(cls, ImageTokenizer)
    ]
    return found


@pytest.mark.parametrize(
    "cls", tokenizers(), ids=lambda cls: cls.Config.model_fields["name"].default
)
def test_what_a_tokenizer_says_of_itself(cls: type[Op]) -> None:
    name = cls.Config.model_fields["name"].default
    assert cls.published, name
    assert cls.paper.startswith("arXiv:")
    assert cls.weights_license
    assert cls.min_agreement["float32"] == 1.0
    assert set(cls.min_agreement) == {"float32", "compiled", "bfloat16"}
    docs = cls.__doc__ or ""
    assert "icence" in docs or "icense" in docs
    for step in cls.preprocessing:
        config: Any = registry.get(str(step["name"])).Config
        config.model_validate(step)


@pytest.mark.parametrize(
    "cls", tokenizers(), ids=lambda cls: cls.Config.model_fields["name"].default
)
def test_published_sizes_need_no_checkpoint(cls: type[Op]) -> None:
    name = cls.Config.model_fields["name"].default
    for published in {p.size: p for p in cls.published}.values():
        weights = {"random_seed": 0, "size": published.size}
        op = cls(cls.Config.model_validate({"name": name, "weights": weights, "device": "cpu"}))
        sizes = op.layout.codebook_sizes
        assert op.image_sides == (published.side, published.side)
        assert op.layout.positions * len(op.layout.streams) == published.tokens
        assert (max(sizes) if sizes else None) == published.codebook
        assert op.identity()["random_weights"] is True
        with torch.device("meta"):
            assert op.encoder_net().state_dict()
