"""TokenFlow against the authors' code: what the common suite does not compare."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from operators.errors import ContractError
from operators.image_tokenizers.base import ImageTokenizer
from tests.golden_tokenizer import assert_near
from tests.tokenizers.tokenflow import MODELS

(MODEL,) = MODELS
OUTPUTS = MODEL.tensors("outputs")
ENDS = (1, 5, 14, 30, 66)  # of the scales 1, 2, 3, 4 and 6


@pytest.fixture(scope="module")
def op(tmp_path_factory: pytest.TempPathFactory) -> ImageTokenizer[Any, Any]:
    found = MODEL.build(MODEL.write(tmp_path_factory.mktemp("tokenflow")))
    found.setup("cpu")
    return found


def test_vectors_of_all_scales(op: ImageTokenizer[Any, Any]) -> None:
    vectors = op._encoder.quantize.decode(OUTPUTS["tokens"])
    assert_near(vectors.transpose(1, 2).unflatten(2, (6, 6)), OUTPUTS["quant"], 1e-6)


def test_pixels_before_they_are_resized(op: ImageTokenizer[Any, Any]) -> None:
    drawn = op.decoder.drawn(OUTPUTS["tokens"])
    assert_near(drawn, OUTPUTS["pixel_decoded_native"], 1e-4)
    resized = F.interpolate(OUTPUTS["pixel_decoded_native"], (48, 48), mode="bicubic")
    assert_near(op.decode_tokens(OUTPUTS["tokens"]), resized, 1e-4)


def test_the_first_scales_alone_can_be_drawn(op: ImageTokenizer[Any, Any]) -> None:
    tokens = OUTPUTS["tokens"].numpy().astype(np.uint8)
    images = [op.decode({"tokens": tokens[:, :end]})["image"] for end in ENDS]
    assert {image.shape for image in images} == {(4, 48, 48, 3)}
    whole = images[-1].astype(int)
    away = [float(np.abs(image.astype(int) - whole).mean()) for image in images]
    assert away == sorted(away, reverse=True)
    with pytest.raises(ContractError, match="4 ids, expected whole scales: 1, 5, 14, 30, 66"):
        op.decode({"tokens": tokens[:, :4]})


def test_latents_of_the_last_layer_are_not_what_is_read(tmp_path: Path) -> None:
    """hidden_states[-2]: the last layer, the norm after it and the head change nothing."""
    tower = "encoder_vqkd.vision_model."
    unused = (f"{tower}encoder.layers.2.", f"{tower}post_layernorm.", f"{tower}head.")
    weights = MODEL.tensors("weights")
    found = {
        name: tensor + 1 if name.startswith(unused) else tensor for name, tensor in weights.items()
    }
    assert sum(name.startswith(unused) for name in weights) == 16 + 2 + 11
    op = MODEL.build(MODEL.write(tmp_path, weights=found))
    op.setup("cpu")
    assert torch.equal(op.encode(MODEL.tensors("inputs")["images"]), OUTPUTS["tokens"])
