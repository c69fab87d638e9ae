"""The jobs with a vision encoder fit the checkpoints that they name, as published."""

import json
from pathlib import Path

import pytest
import transformers

from operators.base import FieldSpec
from operators.encoders.families import PUBLISHED, PublishedEncoder, preparation_of
from operators.encoders.vision_encoder import VisionEncoder
from operators.model_files import DirectFiles, FileIdentity, LocalFile, ModelFile
from pipeline.errors import SpecError
from pipeline.plan import Chain, build_chain
from pipeline.spec import load_job

JOBS = Path(__file__).parents[2] / "jobs"
NAMES = ("llava_siglip_divprune", "dinov2_tome")
FILTERS = {"bilinear": 2, "bicubic": 3}


class PublishedFiles(DirectFiles):
    """A hub that has the configurations of the published encoders, and no weights."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, file: ModelFile) -> LocalFile | None:
        (found,) = (each for each in PUBLISHED.values() if each.weights == file.location)
        contents = {
            "config.json": config_of(found),
            "preprocessor_config.json": processor_of(found),
        }
        if file.name not in contents:
            return None
        path = self._folder / file.name
        path.write_text(json.dumps(contents[file.name]))
        return LocalFile(path, "0" * 40)

    def identify(self, file: ModelFile) -> FileIdentity | None:
        raise AssertionError("a plan of these tests reads no weights")


def config_of(found: PublishedEncoder) -> dict[str, object]:
    whole = found.model_type.removesuffix("_vision_model")
    if whole == found.model_type:
        return {"model_type": whole, **found.sizes}
    return {"model_type": whole, "vision_config": dict(found.sizes)}


def processor_of(found: PublishedEncoder) -> dict[str, object]:
    resize, crop = found.preprocessing
    crops = resize["mode"] == "shorter"
    sides = {"height": resize["size"], "width": resize["size"]}
    return {
        "size": {"shortest_edge": resize["size"]} if crops else sides,
        "do_center_crop": crops,
        "crop_size": {"height": crop["size"], "width": crop["size"]},
        "resample": FILTERS[str(resize["interpolation"])],
        "image_mean": list(found.normalization.mean),
        "image_std": list(found.normalization.std),
    }


def chain_of(name: str, folder: Path, **changes: str) -> Chain:
    job = load_job(JOBS / f"{name}.yaml")
    source = {"image_bytes": "binary", "label": "int64", "caption": "string"}
    fields = {field: FieldSpec(dtype) for field, dtype in source.items()}
    return build_chain(job, fields, PublishedFiles(folder))


@pytest.mark.parametrize("name", NAMES)
def test_images_are_prepared_as_the_checkpoint_says(name: str, tmp_path: Path) -> None:
    chain = chain_of(name, tmp_path)
    (encoder,) = (each.step for each in chain.steps if isinstance(each.step, VisionEncoder))
    assert encoder.preprocessing
    assert chain.warnings == []


def test_fields_are_those_that_the_jobs_promise(tmp_path: Path) -> None:
    features = chain_of("llava_siglip_divprune", tmp_path).output["features"]
    assert features == FieldSpec("bfloat16", (64, 1152))
    chain = chain_of("dinov2_tome", tmp_path)
    assert chain.output["features"] == FieldSpec("float16", (64, 768))
    assert chain.output["token_map"].shape == (256,)
    (encoder,) = (each for each in chain.steps if isinstance(each.step, VisionEncoder))
    assert set(encoder.writes.values()) == {"features", "keys"}
    assert encoder.fields["keys"] == FieldSpec("float16", (256, 12, 64))


def test_images_prepared_otherwise_are_warned_of(tmp_path: Path) -> None:
    text = (JOBS / "dinov2_tome.yaml").read_text().replace("size: 256", "size: 224")
    path = tmp_path / "job.yaml"
    path.write_text(text)
    fields = {"image_bytes": FieldSpec("binary"), "label": FieldSpec("int64")}
    (warning,) = build_chain(load_job(path), fields, PublishedFiles(tmp_path)).warnings
    assert "its authors prepare them by resize(256, shorter, bicubic) > center_crop(224)" in warning


def test_a_signal_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    text = (JOBS / "llava_siglip_divprune.yaml").read_text()
    path = tmp_path / "job.yaml"
    path.write_text(text.replace("name: divprune", "name: topk"))
    fields = {"image_bytes": FieldSpec("binary"), "caption": FieldSpec("string")}
    with pytest.raises(SpecError, match="siglip_vision_model has no class token") as found:
        build_chain(load_job(path), fields, PublishedFiles(tmp_path))
    assert "cls_attention: received" in str(found.value)


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_are_configurations_of_their_families(size: str, tmp_path: Path) -> None:
    found = PUBLISHED[size]  # type: ignore[index]
    config = transformers.CONFIG_MAPPING[found.model_type](**found.sizes)
    for name, value in found.sizes.items():
        stored = getattr(config, name)
        assert stored == value or list(stored) == [value, value]
    prepared = preparation_of(processor_of(found), found.model_type, "test")
    assert prepared.preprocessing == found.preprocessing
    assert prepared.normalization == found.normalization
    assert prepared.side == found.side
