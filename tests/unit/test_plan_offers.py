"""Fields that operators add only when a later one reads them."""

import pytest

from operators.base import FieldSpec
from operators.model_files import DirectFiles
from pipeline.errors import SpecError
from pipeline.plan import Chain, build_chain
from pipeline.spec import parse_job

JOB = """
name: reduce
source: {{type: parquet, urls: in/*.parquet, fields: [features, keys, cls_attention]}}
operators:
{operators}
shards: {{fields: {fields}}}
output: out
"""
SOURCE = {
    "features": FieldSpec("float32", (36, 8)),
    "keys": FieldSpec("float32", (36, 2, 4)),
    "cls_attention": FieldSpec("float32", (1, 2, 36)),
}


def chain(*operators: str, fields: str = "[features]") -> Chain:
    listed = "\n".join(f"  - {{device: cpu, {operator}}}" for operator in operators)
    job = parse_job(JOB.format(operators=listed, fields=fields), "job.yaml")
    return build_chain(job, SOURCE, DirectFiles())


def outputs(found: Chain, step: int) -> set[str]:
    return set(found.steps[step].writes.values())


def test_nobody_is_asked_for_what_nobody_reads() -> None:
    found = chain("name: tome, keep: 20", "name: tome, keep: 12, metric: features")
    assert outputs(found, 0) == {"features", "token_map", "sizes"}


def test_the_last_that_can_give_a_field_is_asked() -> None:
    found = chain("name: divprune, keep: 30", "name: tome, keep: 20", "name: tome, keep: 12")
    assert "keys" in outputs(found, 0)
    assert "keys" in outputs(found, 1)
    assert "keys" not in outputs(found, 2)
    assert found.steps[1].fields["keys"] == FieldSpec("float32", (20, 2, 4))
    assert "keys" in found.steps[0].reads


def test_what_is_written_is_asked_for_too() -> None:
    found = chain("name: divprune, keep: 30", fields="[features, cls_attention]")
    assert found.output["cls_attention"] == FieldSpec("float32", (1, 2, 30))


def test_a_renamed_offer_is_found_by_its_new_name() -> None:
    found = chain(
        "name: divprune, keep: 30, outputs: {keys: kept_keys}",
        "name: tome, keep: 20, inputs: {keys: kept_keys}",
    )
    assert "kept_keys" in outputs(found, 0)


def test_a_field_that_nobody_offers_is_refused() -> None:
    with pytest.raises(SpecError, match=r"operators\[0\] \(tome\): reads 'other'"):
        chain("name: tome, keep: 20, inputs: {keys: other}")


def test_what_a_reducer_can_add_is_added_where_it_is_written() -> None:
    fields = ("reconstruction_index", "reconstruction_weights")
    expedit = "name: expedit, clusters: [3, 3], neighbours: 4"
    assert not set(fields) & outputs(chain(expedit), 0)
    found = chain(expedit, "name: tome, keep: 5", fields=f"[features, {', '.join(fields)}]")
    assert found.output["reconstruction_weights"] == FieldSpec("float32", (36, 4))
    assert {"keys", *fields} <= outputs(found, 0)


def test_a_reducer_that_draws_reads_the_key() -> None:
    assert "key" in chain("name: random_tokens, keep: 9").steps[0].reads
