"""The convolutional tokenizers: published sizes, free resolutions, and mistakes of a job."""

from pathlib import Path
from typing import Any

import pytest
import torch

from operators import registry
from operators.base import FieldSpec
from operators.errors import ContractError, SetupError
from operators.image_tokenizers.base import ImageTokenizer
from tests.tokenizers.cnn import MODELS

BY_NAME = {model.folder: model for model in MODELS}
Op = ImageTokenizer[Any, Any]


def operator(name: str, weights: Any, **options: Any) -> Op:
    config: Any = registry.get(name).Config
    settings = {"name": name, "weights": weights, "device": "cpu", **options}
    op = registry.build(config.model_validate(settings))
    assert isinstance(op, ImageTokenizer)
    return op


def shapes(op: Op) -> dict[str, list[int]]:
    with torch.device("meta"):
        nets = op.encoder_net(), op.decoder_net()
    return {
        op.stored_name(name): list(tensor.shape)
        for net in nets
        for name, tensor in net.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        (
            "llamagen_vq",
            "ds16_c2i",
            {
                "encoder.conv_blocks.4.attn.1.proj_out.weight": [512, 512, 1, 1],
                "encoder.conv_blocks.3.downsample.conv.weight": [256, 256, 3, 3],
                "encoder.mid.1.norm.weight": [512],
                "decoder.conv_blocks.0.res.2.conv2.weight": [512, 512, 3, 3],
                "decoder.conv_blocks.4.res.0.nin_shortcut.weight": None,
                "decoder.conv_blocks.3.res.0.nin_shortcut.weight": [128, 256, 1, 1],
                "quant_conv.weight": [8, 256, 1, 1],
                "quantize.embedding.weight": [16_384, 8],
            },
        ),
        ("llamagen_vq", "ds8_c2i", {"encoder.conv_blocks.3.attn.1.k.bias": [512]}),
        (
            "maskgit_vq",
            "imagenet_f16_256",
            {
                "encoder.down.4.block.0.nin_shortcut.weight": [512, 512, 1, 1],
                "encoder.conv_in.bias": None,
                "encoder.mid.1.conv1.weight": [512, 512, 3, 3],
                "decoder.up.4.upsample_conv.bias": [512],
                "quantize.embedding.weight": [1024, 256],
            },
        ),
        (
            "open_magvit2",
            "imagenet_256_L",
            {
                "encoder.conv_out.weight": [18, 512, 1, 1],
                "encoder.down.3.downsample.bias": [256],
                "encoder.mid_block.3.conv2.weight": [512, 512, 3, 3],
                "decoder.adaptive.4.gamma.weight": [512, 18],
                "decoder.adaptive.0.beta.weight": [128, 18],
                "decoder.up.4.upsample.conv1.weight": [2048, 512, 3, 3],
            },
        ),
        ("open_magvit2", "pretrain256_16384", {"encoder.conv_out.bias": [14]}),
        ("open_magvit2", "imagenet_128_L", {"encoder.down.4.block.0.conv1.weight": None}),
        (
            "ibq",
            "imagenet256_262144",
            {
                "encoder.down.4.attn.3.q.weight": [512, 512, 1, 1],
                "encoder.mid.attn_1.v.bias": [512],
                "decoder.up.4.attn.4.norm.bias": [512],
                "quantize.embedding.weight": [262_144, 256],
                "post_quant_conv.weight": [256, 256, 1, 1],
            },
        ),
    ],
)
def test_parameters_of_published_sizes(
    name: str, size: str, expected: dict[str, list[int] | None]
) -> None:
    found = shapes(operator(name, {"random_seed": 0, "size": size}))
    assert {each: found.get(each) for each in expected} == expected


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.folder)
def test_the_two_halves_are_the_whole_checkpoint(model: Any, tmp_path: Path) -> None:
    op = model.build(model.write(tmp_path))
    assert set(shapes(op)) == set(model.tensors("weights"))


@pytest.mark.parametrize("side", [256, 384, 512])
def test_the_grid_follows_the_images(side: int) -> None:
    op = operator("llamagen_vq", {"random_seed": 0, "size": "ds16_c2i"})
    op.bind({"image": FieldSpec("uint8", (side, side, 3))})
    assert op.inputs["image"].shape == (side, side, 3)
    assert op.outputs["tokens"] == FieldSpec("uint16", ((side // 16) ** 2,), vocab_size=16_384)
    layout: Any = op.metadata()["layout"]
    assert layout["grid"] == [side // 16, side // 16]


def test_images_must_be_multiples_of_the_stride() -> None:
    op = operator("ibq", {"random_seed": 0, "size": "imagenet256_1024"})
    op.bind({"image": FieldSpec("uint8", (100, 256, 3))})
    with pytest.raises(ContractError, match="images of 100 x 256, expected multiples of 16 pixels"):
        _ = op.inputs


def test_a_hub_id_of_one_model_says_its_sizes() -> None:
    op = operator("ibq", "TencentARC/IBQ-Tokenizer-8192")
    assert op.layout.codebook_sizes == (8192,)
    assert op.weight_file == "imagenet256_8192.ckpt"


def test_a_hub_id_of_several_models_needs_another_word() -> None:
    op = operator("llamagen_vq", "FoundationVision/LlamaGen")
    with pytest.raises(ContractError, match="set `model` to one of ds16_c2i, ds8_c2i"):
        _ = op.inputs
    op = operator("llamagen_vq", "FoundationVision/LlamaGen", model="ds8_c2i")
    assert op.weight_file == "vq_ds8_c2i.pt"
    assert op.layout.positions == 1024


def test_a_model_of_random_weights() -> None:
    with pytest.raises(ContractError, match="model='ds8_c2i' is given, but the weights are random"):
        operator("llamagen_vq", {"random_seed": 0, "size": "ds16_c2i"}, model="ds8_c2i")


def test_a_single_file_of_a_published_model(tmp_path: Path) -> None:
    """The file alone, as it is downloaded: the job names the model, and no config.json is read."""
    weights = {"quantize.embedding.weight": torch.ones(16_384, 8)}
    torch.save({"model": weights}, tmp_path / "vq_ds16_c2i.pt")
    op = operator("llamagen_vq", str(tmp_path / "vq_ds16_c2i.pt"), model="ds16_c2i")
    assert op.layout.positions == 256
    with pytest.raises(SetupError, match=r"tensors \d+ missing: encoder"):
        op.setup("cpu")


@pytest.mark.parametrize("bits", [[7, 8], [0, 14], [6, 12]])
def test_factorized_bits_must_add_up(bits: list[int], tmp_path: Path) -> None:
    model = BY_NAME["open_magvit2"]
    op = model.build(model.write(tmp_path), factorized_bits=bits)
    with pytest.raises(ContractError, match="two numbers that add up to the 14 bits of an id"):
        _ = op.outputs


def test_a_configuration_that_these_nets_do_not_do(tmp_path: Path) -> None:
    model = BY_NAME["ibq"]
    config = {**model.golden_config(), "l2_normalize": True}
    op = model.build(model.write(tmp_path, config=config))
    with pytest.raises(SetupError, match="l2_normalize is True, supported: False"):
        _ = op.arch
