"""TiTok and One-D-Piece: what the common suite does not compare."""

from pathlib import Path
from typing import Any

import pytest
import torch

from operators.image_tokenizers.nn.latent_vit import Attention, Block, Trunk
from operators.image_tokenizers.nn.latent_vit_arch import ViTSize
from operators.image_tokenizers.titok import TiTok
from tests.golden_tokenizer import GoldenModel, assert_near
from tests.tokenizers.titok import MODELS, text_aware, with_sizes

BY_NAME = {model.folder: model for model in MODELS}
WITH_IDS = [model for model in MODELS if model.folder != "titok_vae"]


def ready(model: GoldenModel, folder: Path, **options: Any) -> Any:
    op = model.build(model.write(folder), **options)
    op.setup("cpu")
    return op


def rows(values_BC1L: torch.Tensor) -> torch.Tensor:
    return values_BC1L[:, :, 0].transpose(1, 2)


@pytest.mark.parametrize("model", WITH_IDS, ids=lambda model: model.folder)
def test_vectors_of_ids(model: GoldenModel, tmp_path: Path) -> None:
    outputs = model.tensors("outputs")
    found = ready(model, tmp_path)._encoder.quantize.decode(outputs["tokens"][:, 0])
    torch.testing.assert_close(found, rows(outputs["z_quantized"]), rtol=0, atol=1e-5)


def test_mean_and_sample_of_continuous_latents(tmp_path: Path) -> None:
    model = BY_NAME["titok_vae"]
    outputs, op = model.tensors("outputs"), ready(BY_NAME["titok_vae"], tmp_path)
    images = model.tensors("inputs")["images"]
    assert_near(op.encode(images), rows(outputs["mean"]), 2e-4)
    posterior, moments = op._encoder.quantize, op.latents(images)
    drawn = posterior.sample(moments, rows(outputs["noise"]))
    assert_near(drawn, rows(outputs["sample"]), 2e-4)


def test_log_variances_are_clamped(tmp_path: Path) -> None:
    posterior = ready(BY_NAME["titok_vae"], tmp_path)._encoder.quantize
    found = posterior.sample(torch.tensor([[1.0, 1.0, 1e9, -1e9]]), torch.ones(1, 2))
    torch.testing.assert_close(found, 1 + torch.tensor([[10.0, -15.0]]).exp())


@pytest.mark.parametrize("kept", [1, 2, 5, 16, 32])
def test_images_of_a_prefix(kept: int, tmp_path: Path) -> None:
    model = BY_NAME["one_d_piece"]
    outputs = model.tensors("outputs")
    tokens = outputs["tokens"][:2, 0, :kept]
    found = ready(model, tmp_path).decode_tokens(tokens)
    assert_near(found, outputs[f"decoded_k{kept}"], 1e-4)


@pytest.mark.parametrize("kept", [1, 7, 32])
def test_fewer_tokens_are_a_prefix(kept: int, tmp_path: Path) -> None:
    model = BY_NAME["one_d_piece"]
    op = ready(model, tmp_path, num_tokens=kept)
    found = op({"image": torch.from_numpy(model.pixels(op))})["tokens"]
    assert torch.equal(found.long(), model.tensors("outputs")["tokens"][:, 0, :kept])


def test_continuous_latents_are_decoded_as_vectors_of_ids_are(tmp_path: Path) -> None:
    """The two decoders are one net: a continuous model with the weights of the other."""
    model = BY_NAME["titok_vq_nonlegacy"]
    outputs, weights = model.tensors("outputs"), dict(model.tensors("weights"))
    del weights["quantize.embedding.weight"]
    config = with_sizes(model.golden_config())
    config["model"]["vq_model"]["quantize_mode"] = "vae"
    op = model.build(model.write(tmp_path, weights=weights, config=config))
    latents = rows(outputs["z_quantized"])
    assert_near(op.decode_tokens(latents), outputs["decoded"], 1e-4)
    images = op.decode({"latents": latents.numpy()})["image"]
    expected = op.normalization.bytes_of(outputs["decoded"]).permute(0, 2, 3, 1)
    assert abs(images.astype(int) - expected.numpy().astype(int)).max() <= 1


def test_a_text_aware_model_has_the_same_ids(tmp_path: Path) -> None:
    model = BY_NAME["titok_vq_nonlegacy"]
    op = model.build(model.write(tmp_path, weights=text_aware(model)))
    op.setup("cpu")
    tokens = op.encode(model.tensors("inputs")["images"])
    assert torch.equal(tokens, model.tensors("outputs")["tokens"][:, 0])


def test_a_text_is_more_tokens_for_the_decoder(tmp_path: Path) -> None:
    """Its features are projected, given their own positions, and seen by the patches."""
    model = BY_NAME["titok_vq_nonlegacy"]
    weights = text_aware(model)
    op = model.build(model.write(tmp_path, weights=weights))
    assert isinstance(op, TiTok)
    tokens = model.tensors("outputs")["tokens"][:2, 0]
    text = torch.randn(2, 77, 768, generator=torch.Generator().manual_seed(0))
    head = op.decoder.decoder
    projected = text @ weights["decoder.text_guidance_proj.weight"].T
    projected += weights["decoder.text_guidance_proj.bias"]
    projected += weights["decoder.text_guidance_positional_embedding"]
    latents = op.decoder.quantize.decode(tokens) @ weights["decoder.decoder_embed.weight"].T
    latents += weights["decoder.decoder_embed.bias"]
    latents += weights["decoder.latent_token_positional_embedding"]
    blank = weights["decoder.mask_token"].expand(2, 16, -1)
    start = torch.cat([weights["decoder.class_embedding"].expand(2, 1, -1), blank], dim=1)
    start = start + weights["decoder.positional_embedding"]
    with torch.inference_mode():
        sequence = head.ln_pre(torch.cat([start, latents, projected], dim=1))
        for block in head.transformer:
            sequence = block(sequence)
        drawn = head.ffn(head.ln_post(sequence[:, 1:17]).transpose(1, 2).unflatten(2, (4, 4)))
        pixels = drawn.unflatten(1, (16, 16, 3)).permute(0, 3, 4, 1, 5, 2).reshape(2, 3, 64, 64)
        expected = head.conv_out(pixels)
    assert_near(op.decode_tokens(tokens, text), expected, 1e-5)


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    theirs, ours = torch.nn.MultiheadAttention(32, 4, batch_first=True), Attention(32, 4)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 7, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x, slice(None)), theirs(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("wanted", [slice(-3, None), slice(1, 5)])
def test_the_last_block_computes_the_wanted_tokens_alone(wanted: slice) -> None:
    torch.manual_seed(0)
    trunk, sizes = Trunk(ViTSize(32, 3, 4)), []
    for tensor in trunk.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) / 6)
    x = whole = torch.randn(2, 9, 32)
    trunk[-1].mlp.register_forward_hook(lambda _, __, out: sizes.append(out.shape[1]))
    with torch.inference_mode():
        found = trunk(x, wanted)
        for block in trunk:
            assert isinstance(block, Block)
            whole = block(whole)
    assert_near(found, whole[:, wanted], 1e-5)
    assert sizes == [found.shape[1], 9]
