"""4M's tokenizers against the authors' code: depth, classes, features, and images of any size."""

from pathlib import Path

import numpy as np
import pytest
import torch

from operators.errors import SetupError
from operators.testing import assert_operator_contract
from tests.golden_tokenizer import assert_near
from tests.tokenizers.fourm import INPUTS, MODELS, OUTPUTS, READS, bound, ready, written

KINDS = pytest.mark.parametrize("model", READS)
GRIDS = pytest.mark.parametrize("images", ["rgb_96x48", "rgb_128x128"])


@KINDS
def test_ids_are_the_authors(tmp_path: Path, model: str) -> None:
    op, values = ready(tmp_path, model)
    expected = OUTPUTS[f"{model}:tokens"].flatten(1)
    found = op({op.input_field: values})["tokens"]
    assert torch.equal(found.long(), expected)
    for row in range(len(values)):
        alone = op({op.input_field: values[row : row + 1]})["tokens"]
        assert torch.equal(alone, found[row : row + 1])


@KINDS
def test_latents(tmp_path: Path, model: str) -> None:
    op, values = ready(tmp_path, model)
    expected = OUTPUTS[f"{model}:prequant"].flatten(2).transpose(1, 2)
    if model == "feature_map":
        expected = torch.nn.functional.normalize(expected, dim=-1)
    elif model == "feature":
        expected = expected[:, 0]
    assert_near(op.latents(op.prepare(values)), expected, 2e-4)


@KINDS
def test_contract(tmp_path: Path, model: str) -> None:
    values = READS[model](INPUTS[model])
    op = bound(written(tmp_path, model), values)
    assert_operator_contract(op, {op.input_field: values.numpy()})


def test_depth_is_standardized_as_by_the_authors(tmp_path: Path) -> None:
    op, values = ready(tmp_path, "depth")
    assert_near(op.prepare(values), INPUTS["depth_standardized"], 1e-5)


def test_classes_are_moved_up_and_none_is_zero(tmp_path: Path) -> None:
    op, values = ready(tmp_path, "semseg")
    assert torch.equal(op.prepare(values), INPUTS["semseg_shifted"])
    assert int(values.max()) == 255


def test_decoded_classes(tmp_path: Path) -> None:
    op, _ = ready(tmp_path, "semseg")
    tokens, scores = OUTPUTS["semseg:tokens"].flatten(1), OUTPUTS["semseg:decoded"]
    assert_near(op.decode_tokens(tokens), scores, 1e-4)
    found = op.decode({"tokens": tokens.numpy()})["classes"]
    assert found.dtype == np.uint8
    assert np.array_equal(found, ((scores.argmax(1) + 255) % 256).numpy())


@pytest.mark.parametrize("model", ["feature_map", "feature"])
def test_decoded_features(tmp_path: Path, model: str) -> None:
    op, values = ready(tmp_path, model)
    tokens, expected = OUTPUTS[f"{model}:tokens"].flatten(1), OUTPUTS[f"{model}:decoded"]
    found = op.decode({"tokens": tokens.numpy()})["features"]
    assert found.shape == values.shape
    channels_last = expected.permute(0, 2, 3, 1).reshape(found.shape)
    assert_near(torch.from_numpy(found), channels_last, 1e-4)


def test_a_diffusion_decoder_is_not_covered(tmp_path: Path) -> None:
    op, _ = ready(tmp_path, "depth")
    with pytest.raises(SetupError, match="by diffusion, which is not covered"):
        op.decode({"tokens": OUTPUTS["depth:tokens"].flatten(1).numpy()})


@GRIDS
def test_images_of_other_sizes(tmp_path: Path, images: str) -> None:
    """The table of positions is resampled, for the encoder and the decoder."""
    pixels = INPUTS[images]
    op = bound(MODELS[0].write(tmp_path), pixels)
    op.setup("cpu")
    expected = OUTPUTS[f"{images}:tokens"]
    assert op.layout.grid == tuple(expected.shape[1:])
    assert torch.equal(op({"image": pixels})["tokens"].long(), expected.flatten(1))
    latents = OUTPUTS[f"{images}:prequant"].flatten(2).transpose(1, 2)
    assert_near(op.latents(op.prepare(pixels)), latents, 2e-4)
    decoded = op.decode_tokens(expected.flatten(1))
    assert_near(decoded[:1], OUTPUTS[f"{images}:decoded"], 1e-4)


@KINDS
def test_bfloat16_agrees_as_stated(tmp_path: Path, model: str) -> None:
    values = READS[model](INPUTS[model])
    op = bound(written(tmp_path, model), values, dtype="bfloat16")
    op.setup("cpu")
    same = op({op.input_field: values})["tokens"].long() == OUTPUTS[f"{model}:tokens"].flatten(1)
    assert float(same.float().mean()) >= op.min_agreement["bfloat16"]
