"""GigaTok against the authors' code: what the common suite does not compare."""

from pathlib import Path

import pytest
import torch

from operators.image_tokenizers.base import ImageTokenizer
from operators.image_tokenizers.gigatok import GigaTok, GigaTokConfig
from operators.image_tokenizers.nn.gigatok_arch import GigaTokArch
from tests.golden_tokenizer import GoldenModel, assert_near
from tests.tokenizers.gigatok import MODELS

EVERY = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.folder)
WITH_DECODER = pytest.mark.parametrize("model", MODELS[1:], ids=lambda model: model.folder)


def ready(model: GoldenModel, folder: Path) -> ImageTokenizer[GigaTokConfig, GigaTokArch]:
    op = model.build(model.write(folder))
    assert isinstance(op, GigaTok)
    op.setup("cpu")
    return op


@EVERY
def test_what_the_convolutions_give(model: GoldenModel, tmp_path: Path) -> None:
    op = ready(model, tmp_path)
    with torch.inference_mode():
        found = op._encoder.encoder(model.tensors("inputs")["images"])
    assert_near(found, model.tensors("outputs")["cnn_feature"], 1e-5)


@EVERY
def test_latents_are_near_enough_for_ids_of_large_codebooks(
    model: GoldenModel, tmp_path: Path
) -> None:
    """Ten times closer than the common suite asks: channels last would not do on a CPU."""
    assert model.prequant is not None
    op = ready(model, tmp_path)
    found = op.latents(model.tensors("inputs")["images"])
    assert_near(found, model.prequant(model.tensors("outputs")), 2e-5)


@EVERY
def test_vectors_of_ids(model: GoldenModel, tmp_path: Path) -> None:
    """The authors' rotation trick returns the entry of length 1, up to rounding."""
    outputs = model.tensors("outputs")
    found = ready(model, tmp_path)._encoder.quantize.decode(outputs["tokens"])
    expected = outputs["quant"].flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@WITH_DECODER
def test_what_the_transformer_gives_to_the_decoder(model: GoldenModel, tmp_path: Path) -> None:
    outputs = model.tensors("outputs")
    op = ready(model, tmp_path)
    with torch.inference_mode():
        found = op.decoder.map_of(outputs["tokens"])
    assert_near(found, outputs["decoder_map"], 2e-5)
