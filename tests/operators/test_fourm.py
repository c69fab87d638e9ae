"""fourm: what each model reads, its unusable rows, and configurations that do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from operators.base import FieldSpec
from operators.errors import ContractError, RowErrors, SetupError
from operators.image_tokenizers.fourm import FourM, FourMConfig
from operators.testing import assert_operator_contract
from tests.tokenizers.fourm import INPUTS, MODELS, READS, bound, ready, written

RGB = MODELS[0]


def published(size: str, **options: Any) -> FourM:
    weights = {"random_seed": 0, "size": size}
    return FourM(FourMConfig.model_validate({"weights": weights, "device": "cpu", **options}))


def configured(tmp_path: Path, *, modality: str | None = None, **changes: Any) -> FourM:
    assert RGB.config is not None
    config = {**RGB.config(RGB.golden_config()), **changes}
    folder = RGB.write(tmp_path, config=config)
    return FourM(FourMConfig.model_validate({"weights": folder, "modality": modality}))


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "field", "spec"),
    [
        ("rgb_16k", "image", "uint8[224, 224, 3]"),
        ("normal_8k", "image", "uint8[224, 224, 3]"),
        ("edge_8k", "image", "uint8[224, 224, 3]"),
        ("depth_8k", "depth", "float32[224, 224]"),
        ("semseg_4k", "classes", "uint8[224, 224]"),
        ("CLIP-B16_8k", "features", "float32[14, 14, 512]"),
        ("DINOv2-B14_8k", "features", "float32[16, 16, 768]"),
        ("ImageBind-H14_8k", "features", "float32[16, 16, 1280]"),
        ("DINOv2-B14-global_8k", "features", "float32[768]"),
        ("ImageBind-H14-global_8k", "features", "float32[1280]"),
    ],
)
def test_what_published_models_read(size: str, field: str, spec: str) -> None:
    assert {name: str(found) for name, found in published(size).inputs.items()} == {field: spec}


@pytest.mark.parametrize(
    ("size", "given", "grid"),
    [
        ("rgb_16k", FieldSpec("uint8", (448, 448, 3)), (28, 28)),
        ("rgb_16k", FieldSpec("uint8", (224, 320, 3)), (14, 20)),
        ("depth_8k", FieldSpec("float32", (320, 224)), (20, 14)),
        ("semseg_4k", FieldSpec("uint8", (256, 256)), (16, 16)),
        ("DINOv2-B14_8k", FieldSpec("float32", (32, 24, 768)), (32, 24)),
    ],
)
def test_the_grid_follows_what_the_job_gives(
    size: str, given: FieldSpec, grid: tuple[int, int]
) -> None:
    op = published(size)
    op.bind({op.input_field: given})
    assert op.layout.grid == grid
    assert op.inputs[op.input_field] == given
    assert op.outputs["tokens"].shape == (grid[0] * grid[1],)


def test_sizes_that_are_no_multiples_of_the_patch() -> None:
    op = published("depth_8k")
    op.bind({"depth": FieldSpec("float32", (230, 224))})
    with pytest.raises(ContractError, match="images of 230 x 224, expected multiples of 16 pixels"):
        _ = op.inputs


def test_views_of_depth(tmp_path: Path) -> None:
    depth = READS["depth"](INPUTS["depth"])
    views = torch.stack([depth, depth.flip(2)], dim=1)
    op = bound(written(tmp_path, "depth"), views)
    found = assert_operator_contract(op, {"depth": views.numpy()}, rows_alone=1)["tokens"]
    plain, _ = ready(tmp_path / "plain", "depth")
    assert np.array_equal(found[:, 1], plain({"depth": depth.flip(2)})["tokens"].numpy())


def test_edges_of_one_channel_are_grey_images(tmp_path: Path) -> None:
    op = bound(written(tmp_path, "depth"), torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    op = FourM(op.config.model_copy(update={"modality": "edge"}))
    assert str(op.inputs["image"]) == "uint8[64, 64, 3]"
    grey = torch.arange(256, dtype=torch.uint8)[None, :, None, None].expand(1, -1, 64, 3)
    found = op.prepare(grey)
    assert found.shape == (1, 1, 256, 64)
    torch.testing.assert_close(found[0, 0, :, 0], torch.linspace(-1, 1, 256))


def test_only_images_are_normalized_by_mean_and_deviation() -> None:
    assert "normalization" in published("normal_8k").metadata()
    depth = published("depth_8k").metadata()
    assert "normalization" not in depth
    assert "preprocessing" not in depth
    assert depth["reads"] == "depth"


# --- unusable rows -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["depth", "feature_map", "feature"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_bad_rows(tmp_path: Path, model: str, value: float) -> None:
    op, values = ready(tmp_path, model)
    good = op({op.input_field: values})["tokens"]
    broken = values.clone()
    broken[1].view(-1)[3] = value
    with pytest.raises(RowErrors) as caught:
        op({op.input_field: broken})
    assert list(caught.value.errors) == [1]
    field = op.input_field
    assert f"field '{field}' has NaN or infinity" in str(caught.value.errors[1])
    others = [row for row in range(len(values)) if row != 1]
    assert torch.equal(caught.value.good["tokens"], good[others])


@pytest.mark.parametrize("wrong", [11, 200, 254])
def test_a_class_that_there_is_not_is_a_bad_row(tmp_path: Path, wrong: int) -> None:
    op, values = ready(tmp_path, "semseg")
    good = op({"classes": values})["tokens"]
    broken = values.clone()
    broken[0, 5, 7] = wrong
    with pytest.raises(RowErrors) as caught:
        op({"classes": broken})
    assert list(caught.value.errors) == [0]
    expected = f"has class {wrong}, expected 0 to 10, or 255 for none"
    assert expected in str(caught.value.errors[0])
    assert torch.equal(caught.value.good["tokens"], good[1:])


def test_features_of_another_network(tmp_path: Path) -> None:
    op, values = ready(tmp_path, "feature_map")
    with pytest.raises(ContractError, match=r"is float32\[5, 3, 8\], expected float32\[5, 3, 20\]"):
        op({"features": values[..., :8].contiguous()})


# --- configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enc_type": "vit_h_enc"}, "enc_type is 'vit_h_enc', supported: a ViT or MLP"),
        ({"enc_type": "MLP/B_6-Wi_1024"}, "enc_type is 'MLP/B_6-Wi_1024'"),
        ({"quant_type": "memcodes"}, "quant_type is 'memcodes', supported: 'lucid'"),
        ({"num_codebooks": 2}, "num_codebooks is 2, supported: 1"),
        ({"n_channels": 4}, "n_channels is 4, supported: 3 .* or 1"),
        ({"n_channels": 1}, "does not say of what; set `modality` to depth or edge"),
        ({"n_channels": 1, "domain": "sam_mask"}, "does not say of what"),
        ({"codebook_size": "16384"}, "codebook_size is '16384', supported: an integer"),
        ({"codebook_size": None}, "the configuration has no codebook_size"),
    ],
)
def test_configurations_that_are_not_covered(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SetupError, match=message):
        _ = configured(tmp_path, **changes).inputs


@pytest.mark.parametrize(
    ("domain", "modality", "field"),
    [
        ("depth", None, "depth"),
        ("canny_edge", None, "image"),
        (None, "depth", "depth"),
        (None, "edge", "image"),
    ],
)
def test_what_a_model_of_one_channel_reads(
    tmp_path: Path, domain: str | None, modality: str | None, field: str
) -> None:
    op = configured(tmp_path, n_channels=1, domain=domain, modality=modality)
    assert list(op.inputs) == [field]


def test_modality_of_a_model_that_reads_images(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"modality='edge' is given, but .* not read one channel"):
        _ = configured(tmp_path, modality="edge").inputs


def test_a_configuration_one_level_down(tmp_path: Path) -> None:
    assert RGB.config is not None
    config = {"config": RGB.config(RGB.golden_config())}
    op = FourM(FourMConfig(weights=RGB.write(tmp_path, config=config)))
    assert str(op.inputs["image"]) == "uint8[64, 64, 3]"


def test_modality_of_random_weights() -> None:
    with pytest.raises(ContractError, match="modality='edge' is given, but the weights are random"):
        published("depth_8k", modality="edge")


# --- published sizes -----------------------------------------------------------------------------


def stored(size: str, net: str) -> dict[str, tuple[int, ...]]:
    op = published(size)
    with torch.device("meta"):
        module = getattr(op, net)()
    return {op.stored_name(name): tuple(t.shape) for name, t in module.state_dict().items()}


def test_names_and_shapes_of_rgb() -> None:
    names = stored("rgb_16k", "encoder_net")
    assert len(names) == 3 + 12 * 12 + 6 + 2 + 1
    assert names["encoder.pos_emb"] == (1, 768, 28, 28)
    assert names["encoder.proj.weight"] == (768, 3, 16, 16)
    assert names["encoder.blocks.11.attn.qkv.bias"] == (2304,)
    assert names["encoder.blocks.0.mlp.fc1.weight"] == (3072, 768)
    assert names["encoder.norm_mlp.weight"] == (768,)
    assert names["encoder.post_mlp.fc2.weight"] == (768, 3072)
    assert names["quant_proj.weight"] == (32, 768, 1, 1)
    assert names["quantize._codebook.embed"] == (16_384, 32)


def test_names_and_shapes_of_classes() -> None:
    names = stored("semseg_4k", "encoder_net")
    assert names["cls_emb.weight"] == (134, 64)
    assert names["encoder.proj.weight"] == (768, 64, 16, 16)
    decoder = stored("semseg_4k", "decoder_net")
    assert decoder["decoder.out_proj.weight"] == (134 * 256, 768)
    assert decoder["post_quant_proj.weight"] == (768, 32, 1, 1)
    assert "cls_emb.weight" not in decoder


def test_names_and_shapes_of_feature_maps() -> None:
    names = stored("ImageBind-H14_8k", "encoder_net")
    assert names["encoder.proj.weight"] == (768, 1280, 1, 1)
    assert names["encoder.pos_emb"] == (1, 768, 32, 32)
    assert stored("ImageBind-H14_8k", "decoder_net")["decoder.out_proj.bias"] == (1280,)


def test_names_and_shapes_of_feature_vectors() -> None:
    names = stored("DINOv2-B14-global_8k", "encoder_net")
    assert names["encoder.linear_in.weight"] == (1024, 768)
    assert names["encoder.blocks.5.block.0.weight"] == (4096, 1024)
    assert names["encoder.blocks.5.block.2.bias"] == (1024,)
    assert names["encoder.layernorms.5.weight"] == (1024,)
    assert names["encoder.linear_out.weight"] == (1024, 1024)
    assert names["quantize.codes"] == (16, 8192, 64)
    assert names["quantize.to_k.weight"] == (16, 64, 64)
    assert stored("DINOv2-B14-global_8k", "decoder_net")["decoder.linear_out.weight"] == (768, 1024)
