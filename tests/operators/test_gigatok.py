"""gigatok: sizes of the authors' models, the parts of its nets, and mistakes of a job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from operators.errors import ContractError, SetupError
from operators.image_tokenizers.gigatok import GigaTok, GigaTokConfig, Model
from operators.image_tokenizers.nn.gigatok_arch import NAMED
from operators.image_tokenizers.nn.gigatok_net import PlainLayer, QueryLayer, pools
from tests.golden_tokenizer import GoldenModel
from tests.tokenizers.gigatok import MODELS, authors_config

BY_NAME = {model.folder: model for model in MODELS}
WITH_DECODER = pytest.mark.parametrize("model", MODELS[1:], ids=lambda model: model.folder)
WHOLE, GRID = BY_NAME["gigatok_1d_whole"], BY_NAME["gigatok_2d"]


def operator(weights: Any, **options: Any) -> GigaTok:
    settings = {"weights": weights, "device": "cpu", **options}
    return GigaTok(GigaTokConfig.model_validate(settings))


def shapes(op: Any) -> dict[str, list[int]]:
    with torch.device("meta"):
        nets = op.encoder_net(), op.decoder_net()
    return {
        op.stored_name(name): list(tensor.shape)
        for net in nets
        for name, tensor in net.state_dict().items()
    }


def is_distillation(name: str) -> bool:
    return ".distill_mlp." in name


# --- sizes ---------------------------------------------------------------------------------------


def test_every_named_model_can_be_asked_for() -> None:
    assert set(get_args(Model)) == set(NAMED)


@pytest.mark.parametrize(
    ("size", "width", "layers", "decoder_width", "decoder_layers"),
    [
        ("VQ_SS256_e100", 512, 6, 512, 6),
        ("VQ_SB256_e200", 512, 6, 768, 12),
        ("VQ_BL256_e200", 768, 12, 1024, 24),
        ("VQ_BL256_dino_disc", 768, 12, 1024, 24),
        ("VQ_XLXXL256_e300", 1280, 36, 1536, 48),
    ],
)
def test_parameters_of_published_models(
    size: str, width: int, layers: int, decoder_width: int, decoder_layers: int
) -> None:
    found = shapes(operator({"random_seed": 0, "size": size}))
    encoder, decoder = "s2to1encoder", "s1to2decoder"
    last, decoder_last = f"transformer.{layers - 1}", f"transformer.{decoder_layers - 1}"
    expected = {
        "encoder.conv_in.weight": [128, 3, 3, 3],
        "encoder.conv_blocks.3.downsample.conv.weight": [256, 256, 3, 3],
        "encoder.conv_blocks.4.res.0.nin_shortcut.weight": [512, 256, 1, 1],
        "encoder.conv_blocks.4.attn.0.q.weight": None,
        "encoder.mid.1.conv2.weight": [512, 512, 3, 3],
        "encoder.mid.2.conv2.weight": None,
        "encoder.conv_out.weight": [256, 512, 3, 3],
        f"{encoder}.ln_pre.weight": [256],
        f"{encoder}.encoder_embed.weight": [width, 256],
        f"{encoder}.positional_embedding": [256, 1, width],
        f"{encoder}.latent_token_positional_embedding": [256, 1, width],
        f"{encoder}.global_proj.weight": [width, width],
        f"{encoder}.{last}.self_attn.in_proj_weight": [3 * width, width],
        f"{encoder}.{last}.multihead_attn.out_proj.bias": [width],
        f"{encoder}.{last}.linear1.weight": [4 * width, width],
        f"{encoder}.{last}.norm3.bias": [width],
        f"{encoder}.transformer.{layers}.norm1.weight": None,
        f"{encoder}.conv_out.weight": [256, width, 1, 1],
        "quant_conv.weight": [8, 256, 1, 1],
        "quantize.embedding.weight": [16_384, 8],
        "post_quant_conv.weight": [256, 8, 1, 1],
        f"{decoder}.decoder_embed.weight": [decoder_width, 256],
        f"{decoder}.positional_embedding": [256, 1, decoder_width],
        f"{decoder}.latent_token_positional_embedding": [256, 1, decoder_width],
        f"{decoder}.global_proj.weight": None,
        f"{decoder}.{decoder_last}.multihead_attn.in_proj_bias": [3 * decoder_width],
        f"{decoder}.transformer.{decoder_layers}.norm1.weight": None,
        f"{decoder}.conv_out.weight": [256, decoder_width, 3, 3],
        "decoder.conv_in.weight": [512, 256, 3, 3],
        "decoder.adaptive.0.gamma.weight": [512, 256],
        "decoder.adaptive.4.beta.weight": [128, 256],
        "decoder.conv_blocks.0.res.2.conv2.weight": [512, 512, 3, 3],
        "decoder.conv_blocks.0.upsample.conv1.weight": [2048, 512, 3, 3],
        "decoder.conv_blocks.4.upsample.conv1.weight": None,
        "decoder.conv_blocks.3.res.0.nin_shortcut.weight": [128, 256, 1, 1],
        "decoder.conv_out.weight": [3, 128, 3, 3],
    }
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("size", "width", "decoder_width", "attends_twice"),
    [
        ("VQ_SS256_2d", 512, 512, True),
        ("VQ_SB256_2d", 512, 768, False),
        ("VQ_BL256_2d", 768, 1024, False),
    ],
)
def test_parameters_of_2d_models(
    size: str, width: int, decoder_width: int, attends_twice: bool
) -> None:
    op = operator({"random_seed": 0, "size": size})
    found = shapes(op)
    assert found["s2dencoder.positional_embedding"] == [256, 1, width]
    assert found["s2ddecoder.conv_out.weight"] == [256, decoder_width, 3, 3]
    assert ("s2dencoder.transformer.0.multihead_attn.in_proj_bias" in found) is attends_twice
    assert ("s2ddecoder.transformer.5.norm3.bias" in found) is attends_twice
    assert not any("latent_token" in name or "global_proj" in name for name in found)
    assert op.layout.grid == (16, 16)


@WITH_DECODER
def test_the_two_halves_are_the_whole_checkpoint(model: GoldenModel, tmp_path: Path) -> None:
    op = model.build(model.write(tmp_path))
    found = set(shapes(op))
    assert {name for name in model.tensors("weights") if not is_distillation(name)} == found


def test_1d_tokens_are_no_grid(tmp_path: Path) -> None:
    layout = WHOLE.build(WHOLE.write(tmp_path)).layout
    assert (layout.positions, layout.grid, layout.nested) == (16, None, False)


def test_the_file_of_a_published_model(tmp_path: Path) -> None:
    """The file alone, as it is downloaded: the job names the model, and no config.json is read."""
    path = tmp_path / "VQ_BL256_e200.pt"
    torch.save({"model": {"quantize.embedding.weight": torch.ones(16_384, 8)}}, path)
    for weights in (str(path), str(tmp_path)):
        op = operator(weights, model="VQ_BL256_e200")
        assert op.layout.positions == 256
        with pytest.raises(SetupError, match=r"tensors \d+ missing: encoder\.conv_blocks"):
            op.setup("cpu")


# --- the parts of the nets -----------------------------------------------------------------------


def test_pools() -> None:
    """The whole map twice, left and right, quarters row by row, then four columns of two rows."""
    map_1hw1 = torch.arange(16.0).reshape(1, 4, 4, 1)
    found = pools(map_1hw1, 16)[0, :, 0].tolist()
    assert found[:4] == [7.5, 7.5, 6.5, 8.5]
    assert found[4:8] == [2.5, 4.5, 10.5, 12.5]
    assert found[8:] == [2.0, 3.0, 4.0, 5.0, 10.0, 11.0, 12.0, 13.0]


def fill(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.requires_grad_(False)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


class TorchQueryLayer(nn.Module):  # type: ignore[misc]
    """``QueryLayer`` with the attention of torch; parameters are called the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, x: torch.Tensor, position: torch.Tensor, memory: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        placed = self.norm1(x) + position
        x = x + self.self_attn(placed, placed, self.norm1(x))[0]
        x = x + self.multihead_attn(self.norm2(x) + position, keys, memory)[0]
        return x + self.linear2(nn.functional.gelu(self.linear1(self.norm3(x))))


def test_a_query_layer_is_made_of_torchs_attention() -> None:
    ours, torchs = fill(QueryLayer(12, 3), 0), TorchQueryLayer(12, 3).requires_grad_(False)
    torchs.load_state_dict(ours.state_dict())
    x, position, memory = normal(2, 5, 12), normal(1, 5, 12), normal(2, 7, 12)
    keys = memory + normal(1, 7, 12)
    expected = torchs(x, position, memory, keys)
    torch.testing.assert_close(ours(x, position, memory, keys), expected, rtol=1e-4, atol=1e-4)


def test_a_plain_layer_is_torchs_encoder_layer() -> None:
    ours = fill(PlainLayer(12, 3), 0)
    torchs = nn.TransformerEncoderLayer(
        12, 3, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    torchs.load_state_dict(ours.state_dict())
    x = normal(2, 5, 12)
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-4, atol=1e-4)


# --- what a checkpoint may hold ------------------------------------------------------------------


@pytest.mark.parametrize("model", [WHOLE, GRID], ids=lambda model: model.folder)
def test_training_only_tensors_are_left_out_and_named(
    model: GoldenModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {**model.tensors("weights"), "quantize.codebook_used": torch.zeros(65_536)}
    heads = [name for name in weights if is_distillation(name)]
    assert len(heads) == 6
    op = model.build(model.write(tmp_path, weights=weights))
    with caplog.at_level("INFO", logger="operators.image_tokenizers.base"):
        op.setup("cpu")
        assert "1 training-only tensors: quantize.codebook_used" in caplog.text
        op.decode({"tokens": model.tensors("outputs")["tokens"].numpy()[:1]})
    assert "7 training-only tensors: quantize.codebook_used, s" in caplog.text


def test_the_moving_average_comes_first(tmp_path: Path) -> None:
    trained = WHOLE.tensors("weights")
    other = {name: torch.zeros_like(tensor) for name, tensor in trained.items()}
    folder = Path(WHOLE.write(tmp_path))
    torch.save({"model": other, "ema": trained, "steps": 7}, folder / WHOLE.file)
    op = WHOLE.build(str(folder))
    op.setup("cpu")
    expected = WHOLE.tensors("outputs")["tokens"]
    assert torch.equal(op.encode(WHOLE.tensors("inputs")["images"]), expected)


# --- mistakes ------------------------------------------------------------------------------------


def changed(model: GoldenModel, **args: Any) -> Mapping[str, Any]:
    """The model's configuration with other arguments of the constructor."""
    config: Any = authors_config(model.golden_config())
    given = {**config["model"]["init_args"], **args}
    return {**config, "model": {**config["model"], "init_args": given}}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"use_qk_norm": True}, "use_qk_norm is True, supported: False"),
        ({"use_rope": True}, "use_rope is True, supported: False"),
        ({"use_lfq": True}, "use_lfq is True, supported: False"),
        ({"learnable_1d_query_init": True}, "learnable_1d_query_init is True, supported: False"),
        ({"multi_level_query_init": False}, "multi_level_query_init is False, supported: True"),
        ({"multi_level_query_init": None}, "multi_level_query_init is False, supported: True"),
        ({"decoder_ch_mult": [1, 1, 2]}, r"decoder_ch_mult is \[1, 1, 2\], supported: \[1, 1\]"),
        ({"encoder_size": "huge"}, r"the configuration has no size_table\.huge"),
        ({"num_latent_tokens": 24}, "num_latent_tokens is 24, expected one of 1, 2, 4, 8, 16, 32"),
        ({"num_latent_tokens": 256}, "num_latent_tokens is 256, expected one of 1, 2, 4"),
        ({"codebook_size": "16384"}, "codebook_size is '16384', supported: an integer"),
    ],
)
def test_configurations_that_these_nets_do_not_do(
    args: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = WHOLE.write(tmp_path, config=changed(WHOLE, **args))
    with pytest.raises(SetupError, match=message):
        _ = WHOLE.build(folder).inputs


def test_layers_of_a_2d_model(tmp_path: Path) -> None:
    folder = GRID.write(tmp_path, config=changed(GRID, transformer_layer_type="QformerLayerVar"))
    with pytest.raises(SetupError, match="'QformerLayerVar', supported: 'TransformerDecoderLayer'"):
        _ = GRID.build(folder).inputs


def test_a_file_without_a_configuration_needs_a_name(tmp_path: Path) -> None:
    folder = Path(WHOLE.write(tmp_path))
    (folder / "config.json").unlink()
    with pytest.raises(SetupError, match=r"has no config\.json"):
        _ = operator(str(folder / WHOLE.file)).inputs


def test_a_model_that_the_file_is_not(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"of another shape: .* \(expected \["):
        operator(WHOLE.write(tmp_path), model="VQ_SS256_e100").setup("cpu")


def test_a_name_beside_random_weights() -> None:
    with pytest.raises(ContractError, match="model='VQ_SS256_2d' is given, but the weights are"):
        operator({"random_seed": 0, "size": "VQ_SS256_e100"}, model="VQ_SS256_2d")
