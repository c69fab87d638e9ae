"""titok and one_d_piece: published sizes, what a job may ask for, and each mistake of a job."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from operators import registry
from operators.base import FieldSpec
from operators.errors import ContractError, SetupError
from operators.image_tokenizers.titok_family import TiTokFamily
from operators.testing import assert_operator_contract
from tests.golden_tokenizer import GoldenModel
from tests.tokenizers.titok import MODELS, text_aware, with_sizes

LEGACY, LATER, CONTINUOUS, NESTED = MODELS
Family = TiTokFamily[Any]


def operator(name: str, weights: Any, **options: Any) -> Family:
    config: Any = registry.get(name).Config
    settings = {"name": name, "weights": weights, "device": "cpu", **options}
    op = registry.build(config.model_validate(settings))
    assert isinstance(op, TiTokFamily)
    return op


def changed(model: GoldenModel, folder: Path, **entries: Any) -> Any:
    """Return the operator of a model whose configuration has other entries."""
    config = with_sizes(model.golden_config())
    config["model"]["vq_model"].update(entries)
    return model.build(model.write(folder, config=config))


def keys(num: int) -> pa.Array:
    return pa.array([f"sample{i}" for i in range(num)], pa.large_string())


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        (
            "titok",
            "l32",
            {
                "latent_tokens": [32, 1024],
                "encoder.patch_embed.weight": [1024, 3, 16, 16],
                "encoder.positional_embedding": [257, 1024],
                "encoder.transformer.23.attn.in_proj_weight": [3072, 1024],
                "encoder.transformer.24.ln_1.weight": None,
                "encoder.conv_out.weight": [12, 1024, 1, 1],
                "quantize.embedding.weight": [4096, 12],
                "decoder.ffn.2.weight": [1024, 2048, 1, 1],
                "decoder.conv_out.weight": None,
                "pixel_quantize.embedding.weight": [1024, 256],
                "pixel_decoder.up.4.upsample_conv.weight": [512, 512, 3, 3],
            },
        ),
        ("titok", "s128", {"decoder.transformer.7.mlp.c_fc.weight": [2048, 512]}),
        (
            "titok",
            "bl64_vq8k",
            {
                "encoder.latent_token_positional_embedding": [64, 768],
                "encoder.transformer.11.mlp.c_proj.weight": [768, 3072],
                "decoder.decoder_embed.weight": [1024, 64],
                "decoder.mask_token": [1, 1, 1024],
                "decoder.ffn.0.weight": [768, 1024, 1, 1],
                "decoder.conv_out.weight": [3, 3, 3, 3],
                "quantize.embedding.weight": [8192, 64],
                "pixel_quantize.embedding.weight": None,
                "decoder.text_guidance_proj.weight": None,
            },
        ),
        (
            "titok",
            "ll32_vae_c16",
            {
                "encoder.conv_out.weight": [32, 1024, 1, 1],
                "decoder.decoder_embed.weight": [1024, 16],
                "quantize.embedding.weight": None,
            },
        ),
        (
            "titok",
            "tatitok_sl128_vae",
            {
                "latent_tokens": [128, 512],
                "decoder.text_guidance_proj.weight": [1024, 768],
                "decoder.text_guidance_positional_embedding": [77, 1024],
            },
        ),
        (
            "one_d_piece",
            "b256",
            {
                "latent_tokens": [256, 768],
                "encoder.conv_out.bias": [12],
                "decoder.latent_token_positional_embedding": [256, 768],
                "pixel_decoder.conv_in.weight": [512, 256, 3, 3],
            },
        ),
    ],
)
def test_parameters_of_published_sizes(
    name: str, size: str, expected: dict[str, list[int] | None]
) -> None:
    found = shapes(operator(name, {"random_seed": 0, "size": size}))
    assert {each: found.get(each) for each in expected} == expected


def shapes(op: Family) -> dict[str, list[int]]:
    with torch.device("meta"):
        nets = op.encoder_net(), op.decoder_net()
    return {
        op.stored_name(name): list(tensor.shape)
        for net in nets
        for name, tensor in net.state_dict().items()
    }


@pytest.mark.parametrize("model", [LEGACY, LATER, NESTED], ids=lambda model: model.folder)
def test_the_two_halves_are_the_whole_checkpoint(model: GoldenModel, tmp_path: Path) -> None:
    op: Any = model.build(model.write(tmp_path))
    assert set(shapes(op)) == set(model.tensors("weights"))


def test_published_fields() -> None:
    ids = operator("titok", {"random_seed": 0, "size": "bl128_vq8k"})
    assert ids.inputs == {"image": FieldSpec("uint8", (256, 256, 3))}
    assert ids.outputs == {"tokens": FieldSpec("uint16", (128,), vocab_size=8192)}
    continuous = operator("titok", {"random_seed": 0, "size": "bl128_vae_c16"})
    assert continuous.outputs == {"latents": FieldSpec("float32", (128, 16))}
    nested = operator("one_d_piece", {"random_seed": 0, "size": "s256"}, num_tokens=40)
    assert nested.outputs == {"tokens": FieldSpec("uint16", (40,), vocab_size=4096)}
    layout: Any = nested.metadata()["layout"]
    assert layout["nested"] is True


# --- continuous latents --------------------------------------------------------------------------


def test_latents_as_float16(tmp_path: Path) -> None:
    folder = CONTINUOUS.write(tmp_path)
    wide, narrow = CONTINUOUS.build(folder), CONTINUOUS.build(folder, latent_dtype="float16")
    batch = {"image": CONTINUOUS.pixels(wide)}
    expected = assert_operator_contract(wide, batch, rows_alone=0)["latents"]
    found = assert_operator_contract(narrow, batch, rows_alone=0)["latents"]
    assert found.dtype == np.float16
    assert np.array_equal(found, expected.astype(np.float16))


def test_contract_of_samples(tmp_path: Path) -> None:
    op = CONTINUOUS.build(CONTINUOUS.write(tmp_path), posterior="sample", seed=3)
    assert_operator_contract(op, {"image": CONTINUOUS.pixels(op), "key": keys(6)}, rows_alone=2)
    assert op.metadata()["posterior"] == "sample"
    assert op.metadata()["latent_channels"] == 8


def test_samples_depend_on_seed_key_and_view_alone(tmp_path: Path) -> None:
    folder = CONTINUOUS.write(tmp_path)

    def sample(seed: int, names: pa.Array, views: int | None = None) -> np.ndarray:
        op = CONTINUOUS.build(folder, posterior="sample", seed=seed)
        shape = (64, 64, 3) if views is None else (views, 64, 64, 3)
        op.bind({"image": FieldSpec("uint8", shape)})
        op.setup("cpu")
        same = torch.full((len(names), *shape), 99, dtype=torch.uint8)
        found: np.ndarray = op({"image": same, "key": names})["latents"].numpy()
        return found

    first = sample(0, keys(3))
    assert np.array_equal(first[1:], sample(0, keys(3)[1:]))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, sample(1, keys(3)))
    of_views = sample(0, keys(3), views=2)
    assert np.array_equal(of_views[:, 0], first)
    assert not np.array_equal(of_views[:, 1], first)


@pytest.mark.parametrize("option", [{"posterior": "sample"}, {"latent_dtype": "float16"}])
def test_options_of_continuous_latents_for_a_model_with_a_codebook(
    option: dict[str, Any], tmp_path: Path
) -> None:
    op = LATER.build(LATER.write(tmp_path), **option)
    with pytest.raises(ContractError, match=r"is given, but .* has a codebook; remove"):
        _ = op.outputs


# --- weights -------------------------------------------------------------------------------------


def test_a_plain_file_of_a_published_model(tmp_path: Path) -> None:
    """The file alone, as it is downloaded: the job names the model, and no config.json is read."""
    path = tmp_path / "tokenizer_titok_l32.bin"
    torch.save({"quantize.embedding.weight": torch.ones(4096, 12)}, path)
    op = operator("titok", str(path), model="l32")
    assert op.layout.positions == 32
    with pytest.raises(SetupError, match=r"tensors \d+ missing: encoder"):
        op.setup("cpu")


def test_the_hub_id_of_the_plain_files() -> None:
    op = operator("titok", "fun-research/TiTok", model="b64")
    assert (op.weight_file, op.layout.positions) == ("tokenizer_titok_b64.bin", 64)
    op = operator("titok", "fun-research/TiTok")
    with pytest.raises(ContractError, match=r"3 models are published .* one of l32, b64, s128"):
        _ = op.inputs


def test_a_hub_id_with_a_configuration() -> None:
    op = operator("titok", "yucornetto/tokenizer_titok_l32_imagenet")
    assert (op.model, op.weight_file) == (None, "model.safetensors")


def test_a_hub_id_of_one_d_piece_says_its_sizes() -> None:
    op = operator("one_d_piece", "turing-motors/One-D-Piece-L-256")
    assert op.arch.encoder.width == 1024


def test_titok_is_not_nested(tmp_path: Path) -> None:
    folder = LEGACY.write(tmp_path)
    with pytest.raises(SetupError, match=r"of a TiTok, whose tokens are not nested; .*titok"):
        _ = operator("one_d_piece", folder).inputs


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"quantize_mode": "fsq"}, "quantize_mode is 'fsq', supported: 'vq' or 'vae'"),
        ({"num_latent_tokens": None}, "the configuration has no model.vq_model.num_latent_tokens"),
        ({"vit_enc_model_size": "huge"}, "vit_enc_model_size is 'huge', supported: 'small' or"),
        ({"finetune_decoder": True}, "finetune_decoder is true, expected false where is_legacy"),
        ({"vit_enc_patch_size": 24}, "crop_size is 64, expected a multiple of the patch sides 24"),
    ],
)
def test_configurations_that_these_nets_do_not_do(
    entries: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match=message):
        _ = changed(LATER, tmp_path, **entries).inputs


def test_absent_entries_have_the_authors_defaults(tmp_path: Path) -> None:
    config = with_sizes(LEGACY.golden_config())
    for entry in ("is_legacy", "finetune_decoder"):
        del config["model"]["vq_model"][entry]
    op: Any = LEGACY.build(LEGACY.write(tmp_path, config=config))
    assert op.arch.legacy
    assert op.arch.pixels is not None


# --- decoding ------------------------------------------------------------------------------------


def test_a_first_stage_checkpoint_encodes_but_does_not_decode(tmp_path: Path) -> None:
    op = changed(LEGACY, tmp_path, finetune_decoder=False)
    op.setup("cpu")
    tokens = LEGACY.tensors("outputs")["tokens"][:, 0]
    assert torch.equal(op.encode(LEGACY.tensors("inputs")["images"]), tokens)
    with pytest.raises(SetupError, match="gives MaskGIT codes, not images; use one of the second"):
        op.decode({"tokens": tokens.numpy()})


@pytest.mark.parametrize(
    ("model", "num", "expected"),
    [(LEGACY, 15, "16"), (LATER, 13, "12"), (NESTED, 33, "1 to 32"), (NESTED, 0, "1 to 32")],
    ids=["fewer", "more", "more than all", "none"],
)
def test_wrong_number_of_tokens(
    model: GoldenModel, num: int, expected: str, tmp_path: Path
) -> None:
    op = model.build(model.write(tmp_path))
    with pytest.raises(ContractError, match=f"{num} tokens of an image, expected {expected};"):
        op.decode({"tokens": np.zeros((2, num), np.uint16)})


def test_a_text_aware_decoder_says_what_is_missing(tmp_path: Path) -> None:
    op = LATER.build(LATER.write(tmp_path, weights=text_aware(LATER)))
    tokens = LATER.tensors("outputs")["tokens"][:2, 0]
    with pytest.raises(ContractError, match=r"no text is given, but .* features \[2, 77, 768\]"):
        op.decode({"tokens": tokens.numpy()})
    decode: Callable[..., torch.Tensor] = op.decode_tokens
    with pytest.raises(ContractError, match=r"a text \[2, 77, 512\] is given"):
        decode(tokens, torch.zeros(2, 77, 512))


def test_a_text_for_a_decoder_that_reads_none(tmp_path: Path) -> None:
    op = LATER.build(LATER.write(tmp_path))
    decode: Callable[..., torch.Tensor] = op.decode_tokens
    with pytest.raises(ContractError, match=r"text is given, but .* draws from tokens alone"):
        decode(LATER.tensors("outputs")["tokens"][:2, 0], torch.zeros(2, 77, 768))


def test_text_aware_models_are_known_by_their_size() -> None:
    aware = operator("titok", {"random_seed": 0, "size": "tatitok_bl32_vae"})
    assert aware.reads_text
    assert not operator("titok", {"random_seed": 0, "size": "bl64_vae_c16"}).reads_text
    assert operator("titok", "weights.bin", model="tatitok_bl32_vq").reads_text


# --- lengths -------------------------------------------------------------------------------------


def test_more_tokens_than_the_model_has(tmp_path: Path) -> None:
    op = NESTED.build(NESTED.write(tmp_path), num_tokens=33)
    with pytest.raises(ContractError, match=r"num_tokens=33, but the model has 32; .*1\.\.32"):
        _ = op.outputs


def test_no_tokens_at_all() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        operator("one_d_piece", {"random_seed": 0, "size": "s256"}, num_tokens=0)


def test_contract_of_a_prefix(tmp_path: Path) -> None:
    op = NESTED.build(NESTED.write(tmp_path), num_tokens=5)
    out = assert_operator_contract(op, {"image": NESTED.pixels(op)}, rows_alone=1)
    assert out["tokens"].shape == (6, 5)
    assert op.decode({"tokens": out["tokens"][:2]})["image"].shape == (2, 64, 64, 3)
