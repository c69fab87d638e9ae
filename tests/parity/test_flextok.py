"""FlexTok against the authors' package: ids, everything before them, and the way back.

The fixture is a small model with random weights, run by the authors' code in float32 on a CPU;
``tests/golden/flextok/README.md`` says how.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from operators.image_tokenizers.flextok import FlexTok, FlexTokConfig
from tests.flextok_checkpoint import golden, golden_config, golden_weights, write_checkpoint

INPUTS, OUTPUTS = golden("inputs"), golden("outputs")
IMAGES = INPUTS["images"]
GuidanceMode = Literal["none", "cfg", "apg"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("flextok"))


@pytest.fixture(scope="module")
def op(folder: str) -> FlexTok:
    return tokenizer(folder)


def tokenizer(folder: str, **options: Any) -> FlexTok:
    op = FlexTok(FlexTokConfig(weights=folder, device="cpu", **options))
    op.setup("cpu")
    return op


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


def test_ids_of_a_batch(op: FlexTok) -> None:
    assert torch.equal(op.encode(IMAGES), OUTPUTS["tokens"])


@pytest.mark.parametrize("row", range(6))
def test_ids_of_an_image_alone(op: FlexTok, row: int) -> None:
    assert torch.equal(op.encode(IMAGES[row : row + 1]), OUTPUTS["tokens"][row : row + 1])


@pytest.mark.parametrize("num_tokens", range(1, 17))
def test_fewer_tokens_are_a_prefix(op: FlexTok, folder: str, num_tokens: int) -> None:
    shorter = FlexTok(FlexTokConfig(weights=folder, device="cpu", num_tokens=num_tokens))
    shorter._forward = shorter._encoder = op._encoder  # the same weights, loaded once
    assert torch.equal(shorter.encode(IMAGES), OUTPUTS["tokens"][:, :num_tokens])


def test_ids_of_sampled_latents(op: FlexTok) -> None:
    noise = OUTPUTS["sampled_noise"]
    assert torch.equal(
        op.tokens_of(op.trace(IMAGES, noise).registers, {}, 0), OUTPUTS["sampled_tokens"]
    )
    assert_near(op.trace(IMAGES, noise).registers, OUTPUTS["sampled_prequant"], 2e-4)


def test_everything_before_the_ids(op: FlexTok) -> None:
    trace = op.trace(IMAGES)
    assert_near(trace.vae_mean, OUTPUTS["vae_mean"], 2e-4)
    assert_near(trace.vae_logvar, OUTPUTS["vae_logvar"], 2e-4)
    assert_near(trace.latents, OUTPUTS["vae_latents_scaled"], 2e-4)
    assert_near(trace.registers, OUTPUTS["enc_latents_prequant"], 2e-4)
    assert_near(op._encoder.quantize.bound(trace.registers), OUTPUTS["fsq_bounded"], 2e-4)


def test_codes_of_ids(op: FlexTok) -> None:
    assert torch.equal(op._encoder.quantize.decode(OUTPUTS["tokens"]), OUTPUTS["quant"])


@pytest.mark.parametrize(
    ("kept", "mode", "guidance", "name"),
    [
        (1, "none", 1.0, "k1_cfg1"),
        (4, "none", 1.0, "k4_cfg1"),
        (16, "none", 1.0, "k16_cfg1"),
        (4, "cfg", 1.0, "k4_cfg1"),
        (4, "apg", 1.0, "k4_cfg1"),
        (4, "cfg", 2.5, "k4_cfg2.5"),
        (4, "apg", 4.0, "k4_apg4"),
    ],
)
def test_decoding(op: FlexTok, kept: int, mode: GuidanceMode, guidance: float, name: str) -> None:
    latents, images = op.draw(
        OUTPUTS["tokens"],
        num_tokens=kept,
        steps=3,
        guidance=guidance,
        guidance_mode=mode,
        noise=OUTPUTS["dec_noise"],
    )
    assert_near(latents, OUTPUTS[f"dec_latents_{name}"], 1e-4)
    assert_near(images[:2], OUTPUTS[f"dec_image_{name}"], 1e-4)


def test_decoding_rows_of_different_length(op: FlexTok) -> None:
    latents, _ = op.draw(
        OUTPUTS["tokens"][:3],
        num_tokens=[1, 4, 16],
        steps=3,
        guidance_mode="none",
        noise=OUTPUTS["dec_noise"][:3],
    )
    for row, kept in enumerate([1, 4, 16]):
        assert_near(latents[row], OUTPUTS[f"dec_latents_k{kept}_cfg1"][row], 1e-4)


def test_decoding_a_stored_prefix_is_decoding_with_the_rest_dropped(op: FlexTok) -> None:
    latents, _ = op.draw(
        OUTPUTS["tokens"][:, :4], steps=3, guidance_mode="none", noise=OUTPUTS["dec_noise"]
    )
    assert_near(latents, OUTPUTS["dec_latents_k4_cfg1"], 1e-4)


def test_velocity_at_several_times(op: FlexTok) -> None:
    decoder = op.decoder
    kept = (torch.arange(16) < 4).expand(6, -1)
    with torch.inference_mode():
        conditions = decoder.conditions(op._encoder.quantize.decode(OUTPUTS["tokens"]), kept)
        velocity = decoder(OUTPUTS["dec_noise"], OUTPUTS["velocity_timesteps"], conditions)
    assert_near(velocity, OUTPUTS["velocity_k4"], 1e-4)


def test_bfloat16_agrees_as_stated(folder: str) -> None:
    agreement = (tokenizer(folder, dtype="bfloat16").encode(IMAGES) == OUTPUTS["tokens"]).float()
    assert float(agreement.mean()) >= FlexTok.min_agreement["bfloat16"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_agrees_as_stated(folder: str, dtype: Literal["float32", "bfloat16"]) -> None:
    op = FlexTok(FlexTokConfig(weights=folder, device="cuda", dtype=dtype))
    op.setup("cuda")
    agreement = (op.encode(IMAGES.cuda()).cpu() == OUTPUTS["tokens"]).float()
    assert float(agreement.mean()) >= FlexTok.min_agreement[dtype]


@pytest.mark.parametrize("nested", [True, False])
def test_configuration_from_the_weight_file(tmp_path: Path, nested: bool) -> None:
    config = golden_config()
    flat = {**config["config"], "vae_arch": config["vae_arch"]}
    folder = write_checkpoint(tmp_path, config=config if nested else flat, config_in_metadata=True)
    assert torch.equal(tokenizer(folder).encode(IMAGES), OUTPUTS["tokens"])


def test_activation_checkpointing_leaves_names_usable(tmp_path: Path) -> None:
    renamed = {
        name.replace(".attn.", "._checkpoint_wrapped_module.attn."): tensor
        for name, tensor in golden_weights().items()
    }
    folder = write_checkpoint(tmp_path, weights=renamed)
    assert torch.equal(tokenizer(folder).encode(IMAGES), OUTPUTS["tokens"])


@pytest.mark.parametrize("asked", [False, True])
def test_posterior_as_the_checkpoint_asks(tmp_path: Path, asked: bool) -> None:
    config = golden_config()
    config["config"]["vae"]["sample_posterior"] = asked
    op = tokenizer(write_checkpoint(tmp_path, config=config), posterior="checkpoint")
    pixels = ((IMAGES + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    batch = {"image": pixels, "key": pa.array(list("abcdef"), pa.large_string())}
    tokens = op({name: batch[name] for name in op.inputs})["tokens"]
    assert ("key" in op.inputs) is asked
    assert np.array_equal(tokens.numpy(), OUTPUTS["tokens"].numpy()) is not asked
