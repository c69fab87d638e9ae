"""LlamaGen, MaskGIT's VQGAN, Open-MAGVIT2 and IBQ: what the common suite does not compare."""

from pathlib import Path

import pytest
import torch

from tests.golden_tokenizer import GoldenModel, assert_near
from tests.tokenizers.cnn import MODELS

BY_NAME = {model.folder: model for model in MODELS}


def ready(name: str, folder: Path, **options: object):  # type: ignore[no-untyped-def]
    op = BY_NAME[name].build(BY_NAME[name].write(folder), **options)
    op.setup("cpu")
    return op


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.folder)
def test_vectors_of_ids(model: GoldenModel, tmp_path: Path) -> None:
    outputs = model.tensors("outputs")
    quantize = ready(model.folder, tmp_path)._encoder.quantize
    found = quantize.decode(outputs["tokens"]).transpose(1, 2).reshape(outputs["quant"].shape)
    torch.testing.assert_close(found, outputs["quant"], rtol=0, atol=1e-6)


def test_maskgit_images_before_they_are_clamped(tmp_path: Path) -> None:
    outputs = BY_NAME["maskgit_vq"].tensors("outputs")
    found = ready("maskgit_vq", tmp_path).decode_tokens(outputs["tokens"])
    assert_near(found, outputs["decoded_unclamped"], 1e-4)


def test_factorized_ids_of_open_magvit2(tmp_path: Path) -> None:
    model = BY_NAME["open_magvit2"]
    outputs = model.tensors("outputs")
    op = ready("open_magvit2", tmp_path, factorized_bits=[7, 7])
    assert op.layout.streams == ("pre", "post")
    assert op.layout.codebook_sizes == (128, 128)
    assert op.outputs["tokens"].dtype == "uint8"
    tokens = op.encode(model.tensors("inputs")["images"])
    assert torch.equal(tokens[..., 0], outputs["tokens_pre"])
    assert torch.equal(tokens[..., 1], outputs["tokens_post"])
    assert_near(op.decode_tokens(tokens), outputs["decoded"], 1e-4)


@pytest.mark.parametrize("name", ["open_magvit2", "ibq"])
def test_the_moving_average_is_what_is_read(name: str, tmp_path: Path) -> None:
    model = BY_NAME[name]
    trained = model.tensors("weights")
    averages = {f"model_ema.{n.replace('.', '')}": tensor for n, tensor in trained.items()}
    counters = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}
    other = {n: torch.zeros_like(tensor) for n, tensor in trained.items()}
    discriminator = {"loss.discriminator.main.0.weight": torch.ones(2, 2)}
    weights = {**other, **averages, **counters, **discriminator}
    op = model.build(model.write(tmp_path, weights=weights))
    op.setup("cpu")
    outputs = model.tensors("outputs")
    assert torch.equal(op.encode(model.tensors("inputs")["images"]), outputs["tokens"])
    assert_near(op.decode_tokens(outputs["tokens"]), outputs["decoded"], 1e-4)


def test_larger_images_give_larger_grids(tmp_path: Path) -> None:
    model = BY_NAME["llamagen_vq"]
    op = ready("llamagen_vq", tmp_path)
    wide = torch.nn.functional.interpolate(model.tensors("inputs")["images"][:2], (32, 48))
    alone = op.latents(wide)
    assert alone.shape == (2, 8 * 12, 8)
    nearest = op._encoder.quantize.decode(op._encoder.quantize.encode(alone))
    assert nearest.shape == alone.shape
