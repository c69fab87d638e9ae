"""tokenflow: published sizes, what a checkpoint may hold, and mistakes of a configuration."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from operators.base import FieldSpec
from operators.errors import SetupError
from operators.image_tokenizers.tokenflow import TokenFlow, TokenFlowConfig
from tests.tokenizers.tokenflow import MODELS

(MODEL,) = MODELS
TOWER = "encoder_vqkd.vision_model."


def operator(weights: Any) -> TokenFlow:
    config = {"name": "tokenflow", "weights": weights, "device": "cpu"}
    return TokenFlow(TokenFlowConfig.model_validate(config))


def shapes(op: Any) -> dict[str, list[int]]:
    with torch.device("meta"):
        nets = op.encoder_net(), op.decoder_net()
    return {
        op.stored_name(name): list(tensor.shape)
        for net in nets
        for name, tensor in net.state_dict().items()
    }


def test_parameters_of_the_published_size() -> None:
    found = shapes(operator({"random_seed": 0, "size": "siglip_32k"}))
    layers = f"{TOWER}encoder.layers"
    expected = {
        f"{TOWER}embeddings.patch_embedding.weight": [1152, 3, 14, 14],
        f"{TOWER}embeddings.patch_embedding.bias": [1152],
        f"{TOWER}embeddings.position_embedding.weight": [729, 1152],
        f"{layers}.25.self_attn.out_proj.weight": [1152, 1152],
        f"{layers}.25.mlp.fc1.weight": [4304, 1152],
        f"{layers}.25.layer_norm2.bias": [1152],
        f"{layers}.26.layer_norm1.weight": None,
        f"{TOWER}post_layernorm.weight": None,
        f"{TOWER}head.probe": None,
        "encode_task_layer.0.weight": [1152, 1152],
        "encode_task_layer.2.weight": [32, 1152],
        "encoder.conv_blocks.4.attn.1.proj_out.weight": [512, 512, 1, 1],
        "encoder.conv_out.weight": [256, 512, 3, 3],
        "quant_conv.weight": [8, 256, 1, 1],
        "quantize.embedding_vqkd.weight": [32_768, 32],
        "quantize.embedding_vqgan.weight": [32_768, 8],
        "post_quant_conv.weight": [256, 8, 1, 1],
        "decoder.conv_blocks.0.res.2.conv2.weight": [512, 512, 3, 3],
        "decoder.conv_out.weight": [3, 128, 3, 3],
    }
    assert {name: found.get(name) for name in expected} == expected


def test_the_two_halves_are_the_checkpoint_without_the_end_of_the_tower(tmp_path: Path) -> None:
    op = MODEL.build(MODEL.write(tmp_path))
    unused = (f"{TOWER}encoder.layers.2.", f"{TOWER}post_layernorm.", f"{TOWER}head.", "scaling_")
    stored = {name for name in MODEL.tensors("weights") if not name.startswith(unused)}
    assert set(shapes(op)) == stored


def test_what_the_planner_is_told() -> None:
    op = operator("ByteFlow-AI/TokenFlow")
    assert op.weight_file == "tokenflow_siglip_32k.pt"
    assert op.inputs == {"image": FieldSpec("uint8", (384, 384, 3))}
    assert op.outputs == {"tokens": FieldSpec("uint16", (2227,), vocab_size=32_768)}
    layout: Any = op.metadata()["layout"]
    assert layout["scales"] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27]
    assert layout["positions"] == 2227


def test_the_semantic_decoder_is_of_training_alone(tmp_path: Path) -> None:
    extra = {
        "decoder_vqkd.blocks.0.attn.qkv.weight": torch.ones(3, 2),
        "decode_task_layer.2.bias": torch.ones(2),
        "quantize.codebook_used": torch.ones(96),
    }
    weights = {**MODEL.tensors("weights"), **extra}
    op = MODEL.build(MODEL.write(tmp_path, weights=weights))
    op.setup("cpu")
    op.decode({"tokens": MODEL.tensors("outputs")["tokens"].numpy()})


# --- mistakes ------------------------------------------------------------------------------------


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    op = MODEL.build(MODEL.write(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SetupError, match=r"pip install 'tokenmill\[vision\]'"):
        op.setup("cpu")


def test_a_tower_with_more_layers_than_configured(tmp_path: Path) -> None:
    config = MODEL.golden_config()
    config["siglip_vision_config"]["num_hidden_layers"] = 2
    op = MODEL.build(MODEL.write(tmp_path, config=config))
    with pytest.raises(SetupError, match=r"16 unexpected: encoder_vqkd\..*\.layers\.2\."):
        op.setup("cpu")


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("teacher", "clipb_224", "ModelArgs.teacher is 'clipb_224', supported: 'siglip_384'"),
        ("codebook_l2_norm", False, "ModelArgs.codebook_l2_norm is False, supported: True"),
        ("enhanced_decoder", True, "ModelArgs.enhanced_decoder is True, supported: False"),
        ("decoder_ch_mult", [1, 1, 2], r"ModelArgs.decoder_ch_mult is \[1, 1, 2\]"),
        ("semantic_code_dim", None, "the configuration has no ModelArgs.semantic_code_dim"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, entry: str, value: Any, message: str) -> None:
    config = MODEL.golden_config()
    config["ModelArgs"][entry] = value
    with pytest.raises(SetupError, match=message):
        _ = MODEL.build(MODEL.write(tmp_path, config=config)).inputs


@pytest.mark.parametrize("scales", [[1, 2, 3, 4], []])
def test_scales_must_end_with_the_grid(tmp_path: Path, scales: list[int]) -> None:
    config = {**MODEL.golden_config(), "scale_rq_layers": scales}
    with pytest.raises(SetupError, match=r"scale_rq_layers is .*expected to end with 6, the grid"):
        _ = MODEL.build(MODEL.write(tmp_path, config=config)).inputs
