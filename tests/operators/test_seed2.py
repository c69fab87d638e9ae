"""seed2: names and shapes of the published model, and configurations that do not fit."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from operators.errors import SetupError
from operators.image_tokenizers.nn.seed2_net import Seed2Embedder
from operators.image_tokenizers.seed2 import Seed2, Seed2Config
from tests.tokenizers.seed2 import MODELS

MODEL = MODELS[0]


def published() -> Seed2:
    weights = {"random_seed": 0, "size": "seed2"}
    return Seed2(Seed2Config.model_validate({"weights": weights, "device": "cpu"}))


def shapes(op: Seed2, module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {op.stored_name(name): tuple(t.shape) for name, t in module.state_dict().items()}


def test_names_and_shapes_of_the_published_encoder() -> None:
    op = published()
    with torch.device("meta"):
        found = shapes(op, op.encoder_net())
    assert found["visual_encoder.cls_token"] == (1, 1, 1408)
    assert found["visual_encoder.pos_embed"] == (1, 257, 1408)
    assert found["visual_encoder.patch_embed.proj.weight"] == (1408, 3, 14, 14)
    block = {n: s for n, s in found.items() if n.startswith("visual_encoder.blocks.38.")}
    assert {n.removeprefix("visual_encoder.blocks.38."): s for n, s in block.items()} == {
        "norm1.weight": (1408,),
        "norm1.bias": (1408,),
        "attn.qkv.weight": (4224, 1408),
        "attn.q_bias": (1408,),
        "attn.v_bias": (1408,),
        "attn.proj.weight": (1408, 1408),
        "attn.proj.bias": (1408,),
        "norm2.weight": (1408,),
        "norm2.bias": (1408,),
        "mlp.fc1.weight": (6144, 1408),
        "mlp.fc1.bias": (6144,),
        "mlp.fc2.weight": (1408, 6144),
        "mlp.fc2.bias": (1408,),
    }
    assert found["ln_vision.weight"] == (1408,)
    assert found["query_tokens"] == (1, 32, 768)
    layer = "Qformer.bert.encoder.layer."
    assert found[f"{layer}10.crossattention.self.key.weight"] == (768, 1408)
    assert f"{layer}11.crossattention.self.key.weight" not in found
    assert found[f"{layer}11.intermediate_query.dense.weight"] == (3072, 768)
    assert found[f"{layer}11.output_query.LayerNorm.bias"] == (768,)
    assert found["encode_task_layer.2.weight"] == (32, 768)
    assert found["quantize.embedding.weight"] == (8192, 32)
    # 13 of 39 blocks, 5 around them; 16 of 12 layers, 10 more of every other, and the first norm.
    assert len(found) == 13 * 39 + 6 + 1 + 16 * 12 + 10 * 6 + 2 + 4 + 1


def test_names_and_shapes_of_the_published_embedder() -> None:
    op = published()
    with torch.device("meta"):
        found = shapes(op, Seed2Embedder(op.arch))
    assert found["decode_task_layer.2.weight"] == (768, 32)
    assert found["pos_embed_image"] == (1, 32, 768)
    assert found["blocks_image.3.attn.qkv.bias"] == (2304,)
    assert found["image_down.4.weight"] == (32, 128)
    assert found["distill_image_proj.weight"] == (1024, 1024)


def test_parts_together_are_all_that_is_used_of_the_checkpoint(tmp_path: Path) -> None:
    op = MODEL.build(MODEL.write(tmp_path))
    assert isinstance(op, Seed2)
    with torch.device("meta"):
        parts = (op.encoder_net(), Seed2Embedder(op.arch))
    used = {name for part in parts for name in shapes(op, part)}
    unused = set(MODEL.tensors("weights")) - used
    assert {name.split(".")[0] for name in unused} == {"pos_embed", "blocks", "Qformer"}
    assert [name for name in unused if name.startswith("Qformer")] == [
        "Qformer.bert.embeddings.position_ids"
    ]


def test_unused_tensors_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    op = MODEL.build(MODEL.write(tmp_path))
    with caplog.at_level("INFO", logger="operators.image_tokenizers.base"):
        op.setup("cpu")
    assert "26 training-only tensors: Qformer.bert.embeddings.position_ids, blocks.0" in caplog.text


def test_the_hub_id_says_the_model() -> None:
    op = Seed2(Seed2Config(weights="AILab-CVC/seed-tokenizer-2"))
    assert op.layout.positions == 32
    assert op.inputs["image"].shape == (224, 224, 3)
    assert op.metadata()["causal"] is True


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("Blip2QformerQuantizer", {"use_qformer_image": True}, "use_qformer_image is True"),
        ("vision", {"qkv_bias": False}, r"vision\.qkv_bias is False, supported: True"),
        ("vision", {"norm_eps": 1e-5}, r"vision\.norm_eps is 1e-05, supported: 1e-06"),
        ("vision", {"mlp_ratio": "4"}, r"vision\.mlp_ratio is '4', supported: a number"),
        ("qformer", {"hidden_act": "relu"}, r"qformer\.hidden_act is 'relu'"),
        ("qformer", {"hidden_size": None}, r"the configuration has no qformer\.hidden_size"),
    ],
)
def test_configurations_that_are_not_covered(
    tmp_path: Path, section: str, changes: dict[str, Any], message: str
) -> None:
    config = MODEL.golden_config()
    config[section] = {**config[section], **changes}
    folder = MODEL.write(tmp_path, config=config)
    with pytest.raises(SetupError, match=message):
        _ = Seed2(Seed2Config(weights=folder)).inputs


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    op = MODEL.build(MODEL.write(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SetupError, match=r"pip install 'tokenmill\[vision\]'"):
        op.setup("cpu")
