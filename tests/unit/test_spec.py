"""Job files: what becomes of a good one, of the environment, and of the values of a wrong one."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SpecError
from pipeline.spec import (
    JobSpec,
    expand_env,
    job_from_recipe,
    job_schema,
    load_job,
    load_train_job,
    parse_job,
    schema_json,
    train_schema,
)

JOBS = Path(__file__).parents[2] / "jobs"
JOB_FILES = sorted(JOBS.glob("*.yaml"))
JOB = """\
name: texts
source:
  type: parquet
  urls: [a.parquet, b.parquet]
  fields: [text]
operators:
  - name: byte_text
  - name: length_filter
    max_length: 10
shards:
  fields: [tokens]
output: out/
"""


def parse(text: str = JOB, **fields: Any) -> JobSpec:
    return parse_job(text, "job.yaml", fields)


@pytest.mark.parametrize("path", JOB_FILES, ids=lambda path: path.stem)
def test_our_jobs_are_valid_and_name_their_schema(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FINEWEB", "IMAGENET", "OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    job = load_job(path)
    assert job.name == path.stem
    assert path.read_text().startswith("# yaml-language-server: $schema=job.schema.json\n")
    assert job.source_urls()
    assert job.output_uri() == f"out/{path.stem}"


def test_environment_of_our_imagenet_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGENET", raising=False)
    job = load_job(JOBS / "imagenet_flextok.yaml")
    assert job.source_urls()[0].startswith("hf://datasets/timm/imagenet-1k-wds/")
    monkeypatch.setenv("IMAGENET", "s3://mine")
    monkeypatch.setenv("OUTPUT", "s3://tokens")
    assert job.source_urls() == ["s3://mine/imagenet1k-train-{0000..1023}.tar"]
    assert job.output_uri() == "s3://tokens/imagenet_flextok"
    assert "s3://mine" not in json.dumps(job.recipe())


def test_schema_is_up_to_date() -> None:
    """Editors check jobs against the file; `pipeline schema` writes it anew."""
    assert (JOBS / "job.schema.json").read_text(encoding="utf-8") == schema_json()


def test_schema_asks_for_what_a_job_needs() -> None:
    schema = job_schema()
    assert schema["required"] == ["name", "source", "operators", "shards", "output"]
    source = schema["properties"]["source"]
    assert set(source["discriminator"]["mapping"]) == {
        "image_folder",
        "jsonl",
        "parquet",
        "webdataset",
    }
    for reference in source["discriminator"]["mapping"].values():
        assert "type" in schema["$defs"][reference.rsplit("/", 1)[1]]["required"]
    for choice in schema["properties"]["operators"]["items"]["oneOf"]:
        assert "name" in schema["$defs"][choice["$ref"].rsplit("/", 1)[1]]["required"]


def test_output_and_run_settings_are_not_in_the_recipe() -> None:
    a = parse()
    b = parse(JOB + "run: {workers: 3, max_bad_samples: 7}\nstorage: {s3: {anon: true}}\n")
    assert a.recipe() == b.recipe()
    assert a.recipe() != parse(limit=5).recipe()
    assert a.recipe() != parse(JOB + "batch_size: 8\n").recipe()


def test_recipe_gives_the_job_back() -> None:
    job = parse(JOB.replace("a.parquet", "\U0001f600.parquet"), limit=5)
    again = job_from_recipe(json.loads(json.dumps(job.recipe())))
    assert again.recipe() == job.recipe()


def test_recipe_with_an_operator_that_is_gone() -> None:
    recipe = parse().recipe()
    recipe["operators"][0]["name"] = "bite_text"
    with pytest.raises(SpecError, match=r"^recipe: operators\[0\]\.name: no operator is named"):
        job_from_recipe(recipe)


def test_place_of_a_part_survives_the_way_to_a_worker() -> None:
    job = pickle.loads(pickle.dumps(parse()))
    assert job.place("operators", 1, "max_length") == "job.yaml:9: operators[1].max_length"
    assert job.place("operators", 1, "min_length") == "job.yaml:8: operators[1].min_length"
    assert job.place("run", "workers") == "job.yaml:1: run.workers"
    assert job_from_recipe(job.recipe()).place("operators", 1) == "recipe: operators[1]"


def test_anchors_and_merges() -> None:
    text = JOB.replace("  - name: byte_text\n", "  - &bytes {name: byte_text}\n  - <<: *bytes\n")
    job = parse(text)
    assert [config.name for config in job.operators] == ["byte_text", "byte_text", "length_filter"]


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("${A}/x", "1/x"),
        ("${A:-2}${B:-2}", "12"),
        ("${B:-s3://bucket/a-b}", "s3://bucket/a-b"),
        ("${B:-}", ""),
        ("${EMPTY:-full}", "full"),
        ("$A {a,b} ${1}", "$A {a,b} ${1}"),
    ],
)
def test_environment(text: str, becomes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "1")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("B", raising=False)
    assert expand_env(text, "output") == becomes


def test_unset_variable_of_the_storage_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH", raising=False)
    job = parse(JOB + "storage:\n  s3:\n    client_kwargs: {endpoint_url: '${NO_SUCH}'}\n")
    match = r"^job\.yaml:15: storage\.s3\.client_kwargs\.endpoint_url: environment variable NO_SUCH"
    with pytest.raises(SpecError, match=match) as caught:
        job.storage_options()
    assert caught.value.hint == "set it, or write ${NO_SUCH:-default}"


def test_storage_options_are_replaced_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    job = parse(JOB + "storage: {s3: {secret: '${SECRET}', anon: false}}\n")
    assert job.storage_options() == {"s3": {"secret": "hunter2", "anon": False}}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            "run: {workers: many}",
            "run.workers: expected 'auto' or a whole number or a mapping, found",
        ),
        ("run: {max_bad_samples: 1.5}", "expected less than 1.0 or a whole number, found 1.5"),
        (
            "run: {keep_bad_bytes: maybe}",
            "run.keep_bad_bytes: expected true or false, found 'maybe'",
        ),
        ("run: {cpu_threads: 1.5}", "run.cpu_threads: expected a whole number, found 1.5"),
        ("run: fast", "run: expected a mapping, found 'fast'"),
        ("run: {threads: 1}", "run.threads: unknown field; did you mean 'cpu_threads'?"),
        (
            "run: {qqq: 1}",
            "run.qqq: unknown field; allowed: accelerator_type, chunk_size, cpu_threads, ",
        ),
        ("limit: 0", "limit: expected 1 or more, found 0"),
        ("batch_size:", "batch_size: expected a whole number, found nothing"),
        ("storage: {s3: [a]}", "storage.s3: expected a mapping, found a list"),
        ("storage: {s3: sesame}", "storage.s3: expected a mapping, found another value"),
        ("1: 2", "keys should be strings"),
        ("[1]: 2", "expected text as a key, found a list or mapping"),
        ("storage: &a {s3: *a}", "nested without end"),
        ("batch_size: !!python/name:x.y 1", "not YAML: could not determine a constructor"),
        ("storage: {s3: '\x00'}", "not YAML: unacceptable character #x0000"),
    ],
)
def test_wrong_values(more: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(f"{JOB}{more}\n")
    assert says in caught.value.message
    assert caught.value.message.startswith("job.yaml:")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "https://me:sesame@host/a.parquet",
        "https://host/a.parquet?X-Amz-Date=1&X-Amz-Signature=sesame",
        "https://host/a.parquet?api_key=sesame",
        "https://host/a.parquet?sig=sesame&se=2",
    ],
)
def test_a_secret_written_into_a_url_is_refused(url: str) -> None:
    text = JOB.replace("b.parquet", f"'{url}'")
    with pytest.raises(
        SpecError, match=r"job.yaml:4: source.urls\[1\]: a password or sig"
    ) as found:
        parse(text)
    assert "sesame" not in str(found.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:${PASSWORD}@host/a.parquet",
        "https://me@host/a.parquet",
        "https://host/a.parquet?X-Amz-Signature=${SIGNATURE}&download=true",
        "https://host/a.parquet?monkey=1",
        "s3://bucket/a?b.parquet",
    ],
)
def test_a_secret_of_the_environment_and_other_queries_are_not(url: str) -> None:
    assert parse(JOB.replace("b.parquet", f"'{url}'")).recipe()["source"]["urls"][1] == url


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("3", "operators[0].weights: expected text or a mapping, found 3"),
        ("{random_seed: 0, size: huge}", "operators[0].weights.size: expected 'd12_d12'"),
        (
            "{random_seed: a, size: d12_d12}",
            "weights.random_seed: expected a whole number, found 'a'",
        ),
    ],
)
def test_wrong_member_of_a_union_is_told_in_its_own_terms(weights: str, says: str) -> None:
    text = JOB.replace("  - name: byte_text\n", f"  - name: flextok\n    weights: {weights}\n")
    with pytest.raises(SpecError) as caught:
        parse(text)
    assert "job.yaml:8: operators[0].weights" in caught.value.message
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_operator_without_a_name() -> None:
    with pytest.raises(SpecError, match=r"job\.yaml:7: operators\[0\]: expected a mapping with"):
        parse(JOB.replace("- name: byte_text", "- byte_text"))


def test_reserved_field_of_a_source() -> None:
    with pytest.raises(SpecError, match=r"job\.yaml:5: source\.fields\.?.*'key' is reserved"):
        parse(JOB.replace("[text]", "{key: id}"))


def test_long_values_are_cut() -> None:
    with pytest.raises(SpecError) as caught:
        parse(f"{JOB}limit: {'x' * 500}\n")
    assert len(caught.value.message) < 200


TRAIN_JOBS = sorted((JOBS / "tokenizers").glob("*.yaml"))


@pytest.mark.parametrize("path", TRAIN_JOBS, ids=lambda path: path.stem)
def test_our_training_jobs_are_valid_and_name_their_schema(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FINEWEB", "OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    job = load_train_job(path)
    assert job.name == path.stem
    assert path.read_text().startswith("# yaml-language-server: $schema=train.schema.json\n")
    assert job.source_urls()
    assert job.output_uri() == f"out/tokenizers/{path.stem}"


def test_schema_of_training_jobs_is_up_to_date() -> None:
    """Editors check them against the file; `pipeline schema --training` writes it anew."""
    path = JOBS / "tokenizers" / "train.schema.json"
    assert path.read_text(encoding="utf-8") == schema_json(train_schema())


def test_schema_of_training_jobs_knows_the_trainers() -> None:
    schema = train_schema()
    assert schema["required"] == ["name", "source", "trainer", "output"]
    choices = [choice["$ref"] for choice in schema["properties"]["trainer"]["oneOf"]]
    assert "#/$defs/SuperBPEConfig" in choices
    for choice in choices:
        assert "name" in schema["$defs"][choice.rsplit("/", 1)[1]]["required"]
    assert "BaseModel" not in schema["$defs"]
