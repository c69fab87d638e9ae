"""flextok: the contract, what a job may ask for, and each mistake a user can make."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from operators.base import FieldSpec, Invertible, Resources
from operators.errors import ContractError, SetupError
from operators.image_tokenizers.base import RandomWeights
from operators.image_tokenizers.flextok import FlexTok, FlexTokConfig, Size
from operators.image_tokenizers.nn.flextok_arch import published_arch
from operators.image_tokenizers.nn.flextok_net import FlexTokDecoder, FlexTokEncoder
from operators.image_tokenizers.nn.patches import patchify, sincos_table, unpatchify
from operators.image_tokenizers.nn.precision import float32_arithmetic
from operators.image_tokenizers.nn.random_weights import fill_random
from operators.image_tokenizers.nn.transformer import Transformer, causal_last_mask
from operators.testing import assert_operator_contract
from operators.weights import Checkpoint
from tests.flextok_checkpoint import golden, golden_config, golden_weights, write_checkpoint

D12 = RandomWeights[Size](random_seed=0, size="d12_d12")
REGISTERS = "encoder.module_dict.enc_register_module.registers"
NULLCOND = "decoder.module_dict.dec_latent_dropout.nullcond"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("flextok"))


def operator(weights: str | RandomWeights[Size], **options: Any) -> FlexTok:
    return FlexTok(FlexTokConfig(weights=weights, **{"device": "cpu", **options}))


def images(num: int, side: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3), dtype=np.uint8)


def keys(num: int) -> pa.Array:
    return pa.array([f"sample{i}" for i in range(num)], pa.large_string())


@pytest.mark.parametrize("options", [{}, {"num_tokens": 5}])
def test_contract(folder: str, options: dict[str, Any]) -> None:
    op = operator(folder, **options)
    out = assert_operator_contract(op, {"image": images(5)})
    assert out["tokens"].shape == (5, options.get("num_tokens", 16))


def test_contract_of_bfloat16(folder: str) -> None:
    """Whatever the company; but another batch size rounds otherwise, so that no row goes alone."""
    assert_operator_contract(operator(folder, dtype="bfloat16"), {"image": images(5)}, rows_alone=0)


def test_contract_of_sampled_latents(folder: str) -> None:
    op = operator(folder, posterior="sample", seed=3)
    assert_operator_contract(op, {"image": images(5), "key": keys(5)})


def test_uint8_images_are_normalized_as_the_authors_do(folder: str) -> None:
    op = operator(folder)
    op.setup("cpu")
    pixels = ((golden("inputs")["images"] * 0.5 + 0.5) * 255).round().to(torch.uint8)
    tokens = op({"image": pixels.permute(0, 2, 3, 1)})["tokens"]
    assert tokens.dtype == torch.uint16
    assert torch.equal(tokens.long(), golden("outputs")["tokens"])


def test_samples_depend_on_seed_and_key_alone(folder: str) -> None:
    def tokens(seed: int, names: pa.Array) -> np.ndarray:
        op = operator(folder, posterior="sample", seed=seed)
        op.setup("cpu")
        same = torch.from_numpy(images(1)).expand(len(names), -1, -1, -1)
        found: np.ndarray = op({"image": same, "key": names})["tokens"].numpy()
        return found

    first = tokens(0, keys(3))
    assert np.array_equal(first[1:], tokens(0, keys(3)[1:]))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, tokens(1, keys(3)))


def test_decode_gives_images_of_any_prefix(folder: str) -> None:
    op = operator(folder)
    assert isinstance(op, Invertible)
    tokens = golden("outputs")["tokens"].numpy().astype(np.uint16)
    whole = op.decode({"tokens": tokens})["image"]
    assert (whole.dtype, whole.shape) == (np.dtype("uint8"), (6, 64, 64, 3))
    assert op.decode({"tokens": tokens[:, :3]})["image"].shape == (6, 64, 64, 3)
    alone = op.decode({"tokens": tokens[2:3]})["image"]
    assert np.abs(alone[0].astype(int) - whole[2].astype(int)).max() <= 1


def test_what_the_planner_is_told_needs_no_weights(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    op = operator(folder, num_tokens=4)
    assert op.inputs == {"image": FieldSpec("uint8", (64, 64, 3))}
    assert op.outputs == {"tokens": FieldSpec("uint16", (4,), vocab_size=64_000)}
    found = op.metadata()
    layout: Any = found["layout"]
    assert layout["nested"] is True
    assert (layout["positions"], found["model_positions"]) == (4, 16)
    assert found["levels"] == [8, 8, 8, 5, 5, 5]


def test_published_fields() -> None:
    op = operator(D12)
    assert op.inputs == {"image": FieldSpec("uint8", (256, 256, 3))}
    assert op.outputs == {"tokens": FieldSpec("uint16", (256,), vocab_size=64_000)}


def test_resources_follow_the_device(folder: str) -> None:
    assert operator(folder).resources == Resources(cpus=1, gpus=0)
    assert FlexTok(FlexTokConfig(weights=folder)).resources == Resources(cpus=1, gpus=1)


def test_identity_pins_a_folder_by_its_files(tmp_path: Path) -> None:
    first = operator(write_checkpoint(tmp_path / "a")).identity()
    assert first == operator(write_checkpoint(tmp_path / "b")).identity()
    weights = golden_weights()
    weights["encoder.module_dict.enc_to_latents.proj.bias"][0] += 1
    assert first != operator(write_checkpoint(tmp_path / "c", weights=weights)).identity()
    config = golden_config()
    config["config"]["vae"]["scaling_factor"] = 0.5
    assert first != operator(write_checkpoint(tmp_path / "d", config=config)).identity()


def test_a_moving_revision_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(Checkpoint, "identity", lambda self: {"revision": commit})
    warning = operator("owner/name").identity()["warning"]
    assert f"owner/name is not pinned and may change between runs; add `revision: {commit}`" in str(
        warning
    )
    assert operator("owner/name", revision=commit).identity() == {"revision": commit}


def test_random_weights_say_so() -> None:
    identity = operator(D12).identity()
    assert identity["random_weights"] is True
    assert "tokens mean nothing" in str(identity["warning"])


def test_random_weights_of_a_published_size() -> None:
    op = operator(D12, num_tokens=16)
    op.setup("cpu")
    tokens = op({"image": torch.from_numpy(images(1, side=256))})["tokens"]
    assert tokens.shape == (1, 16)
    assert len(tokens.long().unique()) > 4


def test_random_weights_depend_on_seed_and_name_alone(folder: str) -> None:
    def filled(seed: int) -> dict[str, torch.Tensor]:
        with torch.device("meta"):
            module = FlexTokEncoder(operator(folder).arch)
        fill_random(module, seed)
        found: dict[str, torch.Tensor] = module.state_dict()
        return found

    first, again, other = filled(0), filled(0), filled(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[REGISTERS], other[REGISTERS])
    wq = "encoder.module_dict.enc_transformer.blocks.{}.attn.wq.weight"
    assert not torch.equal(first[wq.format(0)], first[wq.format(1)])


@pytest.mark.slow
def test_contract_of_a_published_size() -> None:
    assert_operator_contract(operator(D12), {"image": images(2, side=256)}, rows_alone=1)


@pytest.mark.parametrize(
    ("size", "dim", "hidden", "decoder_dim"),
    [
        ("d12_d12", 768, 2048, 768),
        ("d18_d18", 1152, 3072, 1152),
        ("d18_d28", 1152, 3072, 1792),
    ],
)
def test_parameters_of_published_sizes(size: str, dim: int, hidden: int, decoder_dim: int) -> None:
    with torch.device("meta"):
        halves = FlexTokEncoder(published_arch(size)), FlexTokDecoder(published_arch(size))
    shapes = {
        name: list(tensor.shape) for half in halves for name, tensor in half.state_dict().items()
    }
    expected = {
        "vae.vae.quant_conv.weight": [32, 32, 1, 1],
        "vae.vae.encoder.conv_out.weight": [32, 512, 3, 3],
        "vae.vae.encoder.down_blocks.3.resnets.1.conv2.weight": [512, 512, 3, 3],
        "vae.vae.encoder.mid_block.attentions.0.to_out.0.weight": [512, 512],
        "vae.vae.decoder.up_blocks.3.resnets.2.conv2.weight": [128, 128, 3, 3],
        "encoder.module_dict.enc_patch_emb.patch_proj.weight": [dim, 64],
        "encoder.module_dict.enc_patch_emb.patch_proj.bias": [dim],
        "encoder.module_dict.enc_posemb_module.posembs": [1, dim, 16, 16],
        "encoder.module_dict.enc_register_module.registers": [256, dim],
        "encoder.module_dict.enc_transformer.blocks.11.attn.wq.weight": [dim, dim],
        "encoder.module_dict.enc_transformer.blocks.11.mlp.fc1.weight": [hidden, dim],
        "encoder.module_dict.enc_transformer.blocks.11.mlp.fc2.weight": [dim, hidden],
        "encoder.module_dict.enc_to_latents.proj.weight": [6, dim],
        "decoder.module_dict.dec_from_latents.proj.weight": [decoder_dim, 6],
        "decoder.module_dict.dec_registers_posemb_module.posembs": [1, 1, decoder_dim, 256],
        "decoder.module_dict.dec_nested_dropout.dropout_mask_token": [decoder_dim],
        "decoder.module_dict.dec_latent_dropout.nullcond": [decoder_dim],
        "decoder.module_dict.dec_time_embedder.mlp.0.weight": [decoder_dim, 256],
        "decoder.module_dict.dec_transformer.blocks.11.adaLN_modulation.1.bias": [12 * decoder_dim],
        "decoder.module_dict.dec_to_patches.adaLN_modulation.1.weight": [
            2 * decoder_dim,
            decoder_dim,
        ],
        "decoder.module_dict.dec_to_patches.proj.weight": [64, decoder_dim],
    }
    assert {name: shapes.get(name) for name in expected} == expected
    depth = dim // 64
    assert f"encoder.module_dict.enc_transformer.blocks.{depth - 1}.attn.proj.weight" in shapes
    assert f"encoder.module_dict.enc_transformer.blocks.{depth}.attn.proj.weight" not in shapes


def test_the_two_halves_are_the_whole_checkpoint(folder: str) -> None:
    arch = operator(folder).arch
    with torch.device("meta"):
        halves = FlexTokEncoder(arch), FlexTokDecoder(arch)
    names = {name for half in halves for name in half.state_dict()}
    assert names == set(golden_weights())


# --- mistakes ------------------------------------------------------------------------------------


def change(edit: Callable[[dict[str, torch.Tensor]], object]) -> Mapping[str, torch.Tensor]:
    weights = golden_weights()
    edit(weights)
    return weights


def test_missing_tensor(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, weights=change(lambda w: w.pop(REGISTERS)))
    with pytest.raises(SetupError, match=f"tensors 1 missing: {REGISTERS}"):
        operator(folder).setup("cpu")


def test_unexpected_tensor(tmp_path: Path) -> None:
    extra = {"encoder.module_dict.enc_register_module.gain": torch.ones(3)}
    folder = write_checkpoint(tmp_path, weights=change(lambda w: w.update(extra)))
    with pytest.raises(SetupError, match=r"1 unexpected: encoder\..*\.gain"):
        operator(folder).setup("cpu")


def test_tensor_of_another_shape(tmp_path: Path) -> None:
    short = {REGISTERS: torch.zeros(15, 128)}
    folder = write_checkpoint(tmp_path, weights=change(lambda w: w.update(short)))
    with pytest.raises(SetupError, match=r"registers \[15, 128\] \(expected \[16, 128\]\)"):
        operator(folder).setup("cpu")


def test_decoder_tensors_are_checked_when_decoding_and_not_before(tmp_path: Path) -> None:
    op = operator(write_checkpoint(tmp_path, weights=change(lambda w: w.pop(NULLCOND))))
    op.setup("cpu")
    with pytest.raises(SetupError, match=f"tensors 1 missing: {NULLCOND}"):
        op.decode({"tokens": np.zeros((1, 16), np.uint16)})


def test_training_only_heads_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = golden_config()
    config["config"]["decoder"]["module_dict"]["dec_repa_head"] = {"dim": 64}
    head = {"decoder.module_dict.dec_repa_head.mlp.weight": torch.ones(2, 2)}
    op = operator(
        write_checkpoint(tmp_path, config=config, weights=change(lambda w: w.update(head)))
    )
    with caplog.at_level("INFO", logger="operators.image_tokenizers.base"):
        op.decode({"tokens": np.zeros((1, 16), np.uint16)})
    assert "1 training-only tensors: decoder.module_dict.dec_repa_head.mlp.weight" in caplog.text


def test_unknown_encoder_module_is_refused(tmp_path: Path) -> None:
    config = golden_config()
    config["config"]["encoder"]["module_dict"]["enc_extra"] = {}
    with pytest.raises(SetupError, match=r"encoder\.module_dict lacks or adds enc_extra"):
        _ = operator(write_checkpoint(tmp_path, config=config)).inputs


def test_unknown_attention_pattern_is_refused(tmp_path: Path) -> None:
    config = golden_config()
    config["config"]["encoder"]["module_dict"]["enc_seq_packer"]["mask_mode"] = "full"
    with pytest.raises(SetupError, match="mask_mode is 'full', supported: 'causal_last'"):
        _ = operator(write_checkpoint(tmp_path, config=config)).inputs


def test_oblong_images_are_refused(tmp_path: Path) -> None:
    config = golden_config()
    config["config"]["encoder"]["module_dict"]["enc_posemb_module"]["max_sizes"] = [4, 8]
    with pytest.raises(SetupError, match=r"max_sizes is \[4, 8\], expected a square"):
        _ = operator(write_checkpoint(tmp_path, config=config)).inputs


def test_configuration_of_another_model(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, config={"model_type": "bert"})
    with pytest.raises(SetupError, match=r"the configuration has no encoder; .*FlexTok model"):
        _ = operator(folder).inputs


def test_unknown_autoencoder_size(tmp_path: Path) -> None:
    config = {**golden_config(), "vae_arch": {"groups": 8}}
    with pytest.raises(SetupError, match="vae_arch has groups, supported: block_out_channels"):
        _ = operator(write_checkpoint(tmp_path, config=config)).inputs


def test_more_tokens_than_the_model_has(folder: str) -> None:
    with pytest.raises(ContractError, match=r"num_tokens=17, but the model has 16; .*1\.\.16"):
        _ = operator(folder, num_tokens=17).outputs


def test_no_tokens_at_all(folder: str) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        operator(folder, num_tokens=0)


def test_unknown_size() -> None:
    with pytest.raises(ValidationError, match="d18_d28"):
        FlexTokConfig.model_validate({"weights": {"random_seed": 0, "size": "d13"}})


def test_revision_of_random_weights() -> None:
    with pytest.raises(ContractError, match="revision='main' is given, but the weights are random"):
        operator(D12, revision="main")


def test_no_gpu(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SetupError, match=r"torch finds no GPU; .*`device: cpu`"):
        FlexTok(FlexTokConfig(weights=folder)).setup("cuda")


def test_missing_extra(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.vae", None)
    with pytest.raises(SetupError, match=r"pip install 'tokenmill\[flextok\]'"):
        operator(folder).setup("cpu")


@pytest.mark.parametrize(
    "wrong",
    [images(2).astype(np.float32), images(2, side=32), images(2).transpose(0, 3, 1, 2).copy()],
    ids=["float", "small", "channels first"],
)
def test_wrong_images(folder: str, wrong: np.ndarray) -> None:
    op = operator(folder)
    op.setup("cpu")
    with pytest.raises(ContractError, match=r"flextok: field 'image' is .* uint8\[64, 64, 3\]"):
        op({"image": torch.from_numpy(wrong)})


# --- shared nets ---------------------------------------------------------------------------------


def test_patches_are_row_major_with_channels_fastest() -> None:
    values = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    patches = patchify(values, 2)
    assert patches.shape == (2, 4, 12)
    expected = [values[0, c, 0 + r, 2 + k] for r in (0, 1) for k in (0, 1) for c in (0, 1, 2)]
    assert torch.equal(patches[0, 1], torch.stack(expected))
    assert torch.equal(unpatchify(patches, 2, 2), values)


def test_positions_are_those_of_the_checkpoint() -> None:
    stored = golden("weights")["encoder.module_dict.enc_posemb_module.posembs"]
    torch.testing.assert_close(sincos_table(128, 4), stored, rtol=0, atol=1e-6)


def test_registers_see_patches_and_earlier_registers() -> None:
    found = causal_last_mask(2, 3, torch.device("cpu")).int().tolist()
    assert found == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_softmax_scale_follows_the_head_dim() -> None:
    """8 / head_dim, which is not 1 / sqrt(head_dim) away from 64."""
    torch.manual_seed(0)
    net = Transformer(32, depth=1, head_dim=16, hidden=8)
    attn, x = net.blocks[0].attn, torch.randn(1, 5, 32)
    with torch.inference_mode():
        q, k, v = (w(x).reshape(5, 2, 16).transpose(0, 1) for w in (attn.wq, attn.wk, attn.wv))
        q, k = (torch.nn.functional.layer_norm(t, (16,), eps=1e-5) for t in (q, k))
        mixed = torch.softmax(q @ k.transpose(1, 2) * 0.5, dim=-1) @ v
        expected = attn.proj(mixed.transpose(0, 1).reshape(1, 5, 32))
        torch.testing.assert_close(attn(x, None), expected)


def test_float32_settings_are_put_back() -> None:
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = (conv.fp32_precision, matmul.fp32_precision, torch.backends.cudnn.deterministic)
    with float32_arithmetic(tf32=False):
        inside = (conv.fp32_precision, matmul.fp32_precision, torch.backends.cudnn.deterministic)
        assert inside == ("ieee", "ieee", True)
    with float32_arithmetic(tf32=True):
        assert (conv.fp32_precision, matmul.fp32_precision) == ("tf32", "tf32")
    after = (conv.fp32_precision, matmul.fp32_precision, torch.backends.cudnn.deterministic)
    assert after == before
