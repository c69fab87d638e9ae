"""vision_encoder: features and signals of every family, against transformers' eager attention."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from operators.base import FieldSpec, Ragged
from operators.encoders.nn import attention
from operators.errors import ContractError, RowErrors, SetupError
from operators.image.anyres import kept_tokens
from operators.testing import assert_operator_contract
from tests.encoder_models import (
    HEADS,
    LAYERS,
    MODELS,
    PATCH,
    PREFIX,
    PROCESSOR,
    SIDE,
    TOKENS,
    WIDTH,
    WITHOUT_CLASS_TOKEN,
    config_of,
    encode,
    encoder,
    model_of,
    pixels,
    spec_of,
    truth,
    write,
)

SIGNALS = ("attention", "cls_attention", "keys", "values")
FAMILIES = pytest.mark.parametrize("model_type", MODELS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A worker has a fixed number of threads too: sums are cut between them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def prefix_of(model_type: str) -> int:
    return PREFIX.get(model_type, 0 if model_type in WITHOUT_CLASS_TOKEN else 1)


@FAMILIES
def test_features_and_signals_are_those_of_the_model(model_type: str, tmp_path: Path) -> None:
    model, images = model_of(config_of(model_type)), pixels(3)
    prefix, has_class = prefix_of(model_type), model_type not in WITHOUT_CLASS_TOKEN
    received = {} if has_class else {"cls_attention": "received"}
    asked = (*SIGNALS, *(("cls", "cls_logits") if has_class else ()))
    options = {"attention_layers": [1, -2], "layers": [0, 2, -2], **received}
    step = encoder(write(model, tmp_path), asked, **options)
    found, wanted = encode(step, {"image": images}), truth(model, images)
    states = torch.cat([wanted.hidden_states[i] for i in (0, 2, LAYERS - 1)], dim=2)
    close(found["features"], states[:, prefix:])
    maps = torch.stack([wanted.attentions[i] for i in (1, LAYERS - 2)], dim=1)
    close(found["attention"], maps[..., prefix:, prefix:])
    if has_class:
        close(found["cls"], states[:, 0])
        close(found["cls_attention"], maps[..., 0, prefix:])
        whole = maps[..., 0, prefix:].log()  # the softmax takes away what is common to a row
        logits = found["cls_logits"]
        close(logits - logits[..., :1], whole - whole[..., :1])
    else:
        close(found["cls_attention"], maps.mean(dim=3))
    assert found["keys"].shape == found["values"].shape == (3, TOKENS, HEADS, WIDTH // HEADS)
    for name, spec in step.outputs.items():
        assert spec.shape == tuple(found[name].shape[1:])


@FAMILIES
def test_the_last_state_is_the_models_own(model_type: str, tmp_path: Path) -> None:
    model, images = model_of(config_of(model_type)), pixels(2)
    weights = write(model, tmp_path)
    wanted, prefix = truth(model, images), prefix_of(model_type)
    for layer, state in ((-1, wanted.hidden_states[-1]), ("last_hidden_state", None)):
        found = encode(encoder(weights, layers=[layer]), {"image": images})
        expected = wanted.last_hidden_state if state is None else state
        close(found["features"], expected[:, prefix:])


def test_keys_and_values_are_what_the_attention_is_made_of(tmp_path: Path) -> None:
    """Their attention, by hand, is what the map and the layer's projection say."""
    model = model_of(config_of("siglip_vision_model"))
    layer, images = LAYERS - 2, pixels(2)
    block = model.encoder.layers[layer]
    wanted = truth(model, images)
    normed = block.layer_norm1(wanted.hidden_states[layer])
    asked = ("keys", "values")
    found = encode(encoder(write(model, tmp_path), asked), {"image": images})
    shape = (2, TOKENS, HEADS, WIDTH // HEADS)
    close(found["keys"], block.self_attn.k_proj(normed).reshape(shape).detach())
    close(found["values"], block.self_attn.v_proj(normed).reshape(shape).detach())


@FAMILIES
def test_rows_do_not_depend_on_their_company(model_type: str, tmp_path: Path) -> None:
    asked = ("keys", "attention")
    step = encoder(write(model_of(config_of(model_type)), tmp_path), asked)
    batch = {"image": pixels(6)}
    step.bind({"image": spec_of(batch["image"])})
    assert_operator_contract(step, batch)


def test_nothing_is_noted_that_nobody_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers whose map is not asked for stay fused: no softmax is taken outside of sdpa."""
    taken: list[str] = []
    weights_of = attention._weights

    def counted(what: str, *args: Any) -> torch.Tensor:
        taken.append(what)
        return weights_of(what, *args)

    monkeypatch.setattr(attention, "_weights", counted)
    weights = write(model_of(config_of("vit")), tmp_path)
    encode(encoder(weights, ("keys",)), {"image": pixels(2)})
    assert taken == []
    encode(encoder(weights, ("cls_attention",)), {"image": pixels(2)})
    assert taken == ["cls_attention"]


def test_layers_behind_the_last_one_asked_for_are_dropped(tmp_path: Path) -> None:
    weights = write(model_of(config_of("vit")), tmp_path)
    step = encoder(weights, ("cls_attention",), layers=[1], attention_layers=[1])
    encode(step, {"image": pixels(1)})
    assert step._tower is not None
    assert len(step._tower._blocks) == 2


def test_views_and_crops_are_encoded_one_by_one(tmp_path: Path) -> None:
    weights = write(model_of(config_of("dinov2")), tmp_path)
    images = pixels(6)
    alone = encode(encoder(weights, ("cls_attention",)), {"image": images})
    views = {"image": images.reshape(2, 3, *images.shape[1:])}
    found = encode(encoder(weights, ("cls_attention",)), views)
    assert torch.equal(found["features"].flatten(0, 1), alone["features"])
    assert torch.equal(found["cls_attention"].flatten(0, 1), alone["cls_attention"])
    offsets = np.array([0, 1, 1, 6])
    crops = {"image": Ragged(images, offsets)}
    step = encoder(weights, ("cls_attention",))
    ragged = encode(step, crops)
    assert np.array_equal(ragged["features"].values, alone["features"].numpy())
    assert np.array_equal(ragged["features"].offsets, offsets)
    assert step.outputs["features"] == FieldSpec("float32", (None, TOKENS, WIDTH))
    assert_operator_contract(step, crops)


def test_a_batch_without_crops_gives_rows_without_features(tmp_path: Path) -> None:
    step = encoder(write(model_of(config_of("vit")), tmp_path), ("keys",))
    found = encode(step, {"image": Ragged(pixels(0), np.zeros(3, np.int64))})
    assert found["features"].lengths.tolist() == [0, 0]
    assert found["keys"].values.shape == (0, TOKENS, HEADS, WIDTH // HEADS)


def test_padding_of_crops_is_told_where_their_layout_is_known(tmp_path: Path) -> None:
    step = encoder(write(model_of(config_of("vit")), tmp_path), ("token_mask",))
    grids = np.array([[1, 2, 100, 70], [2, 1, 30, 90]], np.int32)
    batch = {"image": Ragged(pixels(6), np.array([0, 3, 6])), "crop_grid": grids}
    found = encode(step, batch)
    side = SIDE // PATCH
    wanted = [kept_tokens((h, w), (r, c), (side, side)) for r, c, h, w in grids.tolist()]
    assert np.array_equal(found["token_mask"].values, np.concatenate(wanted))
    assert_operator_contract(step, batch)
    step.bind({"image": spec_of(pixels(1)), "crop_grid": FieldSpec("int32", (4,))})
    assert "token_mask" not in step.offers
    wrong = {**batch, "crop_grid": torch.from_numpy(grids + 1)}
    step.bind({name: spec_of(column) for name, column in batch.items()})
    with pytest.raises(ContractError, match=r"3 crops, but its crop_grid is \[2, 3, 101, 71\]"):
        step(wrong)


@pytest.mark.parametrize("store", ["float16", "bfloat16"])
def test_features_are_stored_in_fewer_bits(store: str, tmp_path: Path) -> None:
    weights = write(model_of(config_of("clip_vision_model")), tmp_path)
    exact = encode(encoder(weights), {"image": pixels(2)})["features"]
    step = encoder(weights, ("keys", "cls_attention"), store_dtype=store)
    found = encode(step, {"image": pixels(2)})
    assert torch.equal(found["features"], exact.to(getattr(torch, store)))
    assert str(found["keys"].dtype) == f"torch.{store}"
    assert found["cls_attention"].dtype == torch.float32
    step.bind({"image": FieldSpec("uint8", (None, SIDE, SIDE, 3))})
    assert_operator_contract(step, {"image": Ragged(pixels(5), np.array([0, 2, 5]))})


@FAMILIES
def test_bfloat16_is_near(model_type: str, tmp_path: Path) -> None:
    weights = write(model_of(config_of(model_type)), tmp_path)
    batch = {"image": pixels(2)}
    exact = encode(encoder(weights), batch)["features"]
    rough = encode(encoder(weights, ("keys",), dtype="bfloat16"), batch)["features"]
    near = torch.nn.functional.cosine_similarity(exact, rough, dim=2)
    assert rough.dtype == torch.float32
    assert float(near.min()) > 0.98


def test_images_of_another_size(tmp_path: Path) -> None:
    model, images = model_of(config_of("clip_vision_model")), pixels(2, side=2 * SIDE)
    weights = write(model, tmp_path)
    with pytest.raises(ContractError, match="does not take images of 56 x 56 pixels"):
        encode(encoder(weights), {"image": images})
    found = encode(encoder(weights, interpolate=True), {"image": images})
    assert found["features"].shape == (2, 4 * TOKENS, WIDTH)
    weights = write(model_of(config_of("dinov2")), tmp_path / "dinov2")
    found = encode(encoder(weights), {"image": images})
    assert found["features"].shape == (2, 4 * TOKENS, WIDTH)


# --- checkpoints --------------------------------------------------------------------------------


def dual(kind: str, folder: Path) -> tuple[Any, str]:
    """Write a model of images and text; return its vision part."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "intermediate_size": 16, "vocab_size": 99}
    vision = config_of(f"{kind}_vision_model").to_dict()
    config = transformers.CONFIG_MAPPING[kind](vision_config=vision, text_config=text)
    model = model_of(config)
    return model.vision_model, write(model, folder)


def assistant(kind: str, folder: Path) -> tuple[Any, str]:
    """Write a model that talks about images; return its vision part."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "num_key_value_heads": 2, "intermediate_size": 16, "vocab_size": 99}
    tower, language = {
        "llava": ("clip_vision_model", "llama"),
        "internvl": ("internvl_vision", "qwen2"),
    }[kind]
    config = transformers.CONFIG_MAPPING[kind](
        vision_config=config_of(tower).to_dict(), text_config={**text, "model_type": language}
    )
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    return model.model.vision_tower, write(model, folder)


def classifier(kind: str, folder: Path) -> tuple[Any, str]:
    """Write a model with a head of classes; return what is before it."""
    model = transformers.ViTForImageClassification(config_of(kind)).eval()
    return model.vit, write(model, folder)


@pytest.mark.parametrize(
    ("larger", "kind"),
    [
        (dual, "clip"),
        (dual, "siglip"),
        (assistant, "llava"),
        (assistant, "internvl"),
        (classifier, "vit"),
    ],
)
def test_the_vision_part_of_a_larger_model_is_read(larger: Any, kind: str, tmp_path: Path) -> None:
    vision, weights = larger(kind, tmp_path)
    vision.set_attn_implementation("eager")
    images = pixels(2)
    wanted = truth(vision, images).hidden_states[-2][:, prefix_of(vision.config.model_type) :]
    close(encode(encoder(weights), {"image": images})["features"], wanted)


def test_names_that_older_versions_wrote_are_read(tmp_path: Path) -> None:
    vision, weights = assistant("llava", tmp_path)
    vision.set_attn_implementation("eager")
    file = Path(weights) / "model.safetensors"
    older = {
        re.sub(
            r"^(?:model\.)?vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name
        ): t
        for name, t in load_file(file).items()
    }
    assert any(name.startswith("vision_tower.vision_model.") for name in older)
    save_file(older, file)
    wanted = truth(vision, pixels(2)).hidden_states[-2][:, 1:]
    close(encode(encoder(weights), {"image": pixels(2)})["features"], wanted)


def test_shards_without_a_part_of_the_tower_are_not_read(tmp_path: Path) -> None:
    vision, _ = dual("clip", tmp_path)
    folder, whole = tmp_path / "shards", transformers.CLIPModel.from_pretrained(tmp_path)
    whole.save_pretrained(folder, max_shard_size="20KB")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if name.startswith("vision_model.")}
    others = set(index.values()) - needed
    for name in others:
        (folder / name).unlink()
    assert others
    wanted = truth(vision, pixels(2)).hidden_states[-2][:, 1:]
    close(encode(encoder(str(folder)), {"image": pixels(2)})["features"], wanted)


def test_weights_in_several_files_or_pickles_are_read(tmp_path: Path) -> None:
    model, images = model_of(config_of("vit")), pixels(2)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    (tmp_path / "shards" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    step = encoder(str(tmp_path / "shards"))
    found = encode(step, {"image": images})["features"]
    close(found, truth(model, images).hidden_states[-2][:, 1:])
    digests = step.identity()["sha256"]
    assert isinstance(digests, dict)
    assert len([name for name in digests if name.startswith("model-0")]) > 2
    folder = Path(write(model, tmp_path / "pickle"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(encode(encoder(str(folder)), {"image": images})["features"], found)


def test_internvit_as_its_authors_publish_it(tmp_path: Path) -> None:
    model, images = model_of(config_of("internvl_vision", attention_bias=True)), pixels(2)
    folder = Path(write(model, tmp_path))
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        new = name.replace("encoder.layer.", "encoder.layers.")
        for theirs, ours in (
            ("embeddings.class_embedding", "embeddings.cls_token"),
            ("embeddings.position_embedding", "embeddings.position_embeddings"),
            ("embeddings.patch_embedding.", "embeddings.patch_embeddings.projection."),
            (".ls1", ".lambda_1"),
            (".ls2", ".lambda_2"),
            (".attn.proj.", ".attention.projection_layer."),
            (".attn.", ".attention."),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
        ):
            new = new.replace(ours, theirs)
        renamed[new] = tensor
    for name in [name for name in renamed if ".q_proj." in name]:
        parts = [renamed.pop(name.replace(".q_proj.", f".{p}_proj.")) for p in "qkv"]
        renamed[name.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
    save_file(renamed, folder / "model.safetensors")
    config = {
        "model_type": "intern_vit_6b",
        "auto_map": {"AutoModel": "modeling_intern_vit.InternVisionModel"},
        **{n: MODELS["vit"][n] for n in ("hidden_size", "num_hidden_layers", "image_size")},
        **{n: MODELS["vit"][n] for n in ("num_attention_heads", "intermediate_size")},
        **{"patch_size": PATCH, "qkv_bias": True, "qk_normalization": True},
    }
    (folder / "config.json").write_text(json.dumps(config))
    found = encode(encoder(str(folder)), {"image": images})["features"]
    close(found, truth(model, images).hidden_states[-2][:, 1:])


def test_identity_names_weights_and_library(tmp_path: Path) -> None:
    step = encoder(write(model_of(config_of("vit")), tmp_path))
    found = step.identity()
    assert found["transformers"] == transformers.__version__
    assert set(found["sha256"]) == {"model.safetensors", "config.json"}  # type: ignore[call-overload]
    random = encoder({"random_seed": 1, "size": "vit_base_16_224"}).identity()
    assert random["random_weights"] is True


def break_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))


def break_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))


def break_missing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if ".1." not in name},
        folder / "model.safetensors",
    )


def write_config(folder: Path, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))


MISTAKES = {
    "fewer layers": (break_layers, "unexpected: layers.2"),
    "another width": (break_width, "of another shape: "),
    "a layer is missing": (break_missing, "missing: layers.1"),
    "no preparation": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        "has no preprocessor_config.json",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "neither model.safetensors nor pytorch_model.bin",
    ),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "remote code": (
        lambda folder: write_config(folder, architectures=["RADIOModel"], auto_map={"a": "b"}),
        "a RADIOModel: its code is part of the repository.*nvidia/C-RADIOv4",
    ),
    "unknown": (
        lambda folder: write_config(folder, model_type="new"),
        "model_type 'new', which transformers .* does not have",
    ),
    "a text model": (
        lambda folder: write_config(folder, model_type="bert"),
        "no vision model of model_type 'bert'",
    ),
    "windows": (
        lambda folder: write_config(folder, model_type="swin", depths=[2], num_heads=[3]),
        "SwinModel is not a list of layers",
    ),
    "not normalised by 255": (
        lambda folder: (folder / "preprocessor_config.json").write_text(
            json.dumps({**PROCESSOR, "rescale_factor": 1})
        ),
        "rescale_factor 1 ",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_checkpoints_are_refused(mistake: str, tmp_path: Path) -> None:
    change, message = MISTAKES[mistake]
    weights = write(model_of(config_of("vit")), tmp_path)
    change(tmp_path)
    with pytest.raises(SetupError, match=message):
        encode(encoder(weights), {"image": pixels(1)})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("model.safetensors", "is a file"),
        ("nowhere", "neither a folder nor a hub id"),
    ],
)
def test_weights_that_are_no_model_are_refused(weights: str, message: str) -> None:
    step = encoder(weights)
    step.bind({"image": spec_of(pixels(1))})
    with pytest.raises(SetupError, match=message):
        step.outputs  # noqa: B018


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [-6]}, r"layers -6, but the model has 4 layers"),
        ({"attention_layers": [4]}, r"attention_layers 4, but the model has 4"),
        ({"key_layer": -5}, r"key_layer -5, but"),
    ],
)
def test_layers_that_are_not_there_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    step = encoder(write(model_of(config_of("vit")), tmp_path), SIGNALS, **options)
    step.bind({"image": spec_of(pixels(1))})
    with pytest.raises(ContractError, match=message):
        step.outputs  # noqa: B018


def test_what_is_missing_is_said_with_the_option_that_helps(tmp_path: Path) -> None:
    weights = write(model_of(config_of("siglip_vision_model")), tmp_path)
    step = encoder(weights)
    assert "cls_attention: received" in step.lacks["cls_attention"]
    assert "cls_attention" not in step.offers
    assert not {"cls", "cls_logits"} & set(step.offers)
    assert "cls_attention" in encoder(weights, cls_attention="received").offers


def test_features_that_do_not_fit_their_type_are_refused_by_row(tmp_path: Path) -> None:
    model = model_of(config_of("vit"))
    with torch.no_grad():
        model.embeddings.patch_embeddings.projection.weight[0] *= 1e6
    images = pixels(3)
    images[1] = np.array([102, 128, 153])  # 255 times the mean, or nearly: it fits
    step = encoder(write(model, tmp_path), store_dtype="float16", layers=[0])
    with pytest.raises(RowErrors) as found:
        encode(step, {"image": images})
    assert 0 in found.value.errors
    assert "NaN or infinity in float16" in str(found.value.errors[0])
    assert 1 not in found.value.errors
    assert len(found.value.good["features"]) == 3 - len(found.value.errors)


def test_preprocessing_follows_the_checkpoint(tmp_path: Path) -> None:
    step = encoder(write(model_of(config_of("vit")), tmp_path))
    assert step.preprocessing == (
        {"name": "resize", "size": 32, "mode": "shorter", "interpolation": "bicubic"},
        {"name": "center_crop", "size": SIDE},
    )
    squash = {"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2}
    means = {name: PROCESSOR[name] for name in ("image_mean", "image_std")}
    step = encoder(write(model_of(config_of("vit")), tmp_path, {**squash, **means}))
    assert [dict(each) for each in step.preprocessing] == [
        {"name": "resize", "size": SIDE, "mode": "squash", "interpolation": "bilinear"},
        {"name": "center_crop", "size": SIDE},
    ]
