"""The ledger: records come back as they went in, once, or are refused."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import AlreadyCommittedError, IntegrityError, TokenmillError
from pipeline.ledger import Ledger
from pipeline.protocols import (
    GoldenSample,
    PartitionResult,
    QuarantineFile,
    RowRange,
    Shard,
    StageCounts,
)
from pipeline.storage import Storage

RESULT = PartitionResult(
    partition=3,
    num_input=5,
    num_written=2,
    filtered={"length_filter: too_short": 2},
    quarantined={"decode_image: SampleError": 1},
    shards=(
        Shard("shards/0000003-000.arrow", 7, "ab" * 32, 2, {"t": 9}, (RowRange("é.tar", 0, 2),)),
    ),
    quarantine=QuarantineFile("quarantine/0000003.jsonl", 9, "cd" * 32, 1),
    golden=GoldenSample(3, 0, "k\u2028ey", {"t": {"num": 4, "sha256": "ef", "head": [1, 2]}}),
    stages={"cpu": StageCounts(samples=5, busy_s=0.5, steps={"decode_image": 0.25})},
    wall_s=1.5,
    worker="worker-1",
)
EMPTY = replace(RESULT, partition=0, shards=(), quarantine=None, golden=None, stages={})


def ledger(folder: Path, fingerprint: str = "f" * 64) -> Ledger:
    return Ledger(Storage(), str(folder), fingerprint)


def record(folder: Path) -> Path:
    return folder / "_ledger" / "0000003.json"


@pytest.mark.parametrize("result", [RESULT, EMPTY])
def test_records_come_back_as_they_went_in(tmp_path: Path, result: PartitionResult) -> None:
    ledger(tmp_path).commit(result)
    assert list(ledger(tmp_path).records()) == [result]


def test_records_are_sorted_by_partition(tmp_path: Path) -> None:
    for index in (11, 2, 300):
        ledger(tmp_path).commit(replace(RESULT, partition=index))
    assert [found.partition for found in ledger(tmp_path).records()] == [2, 11, 300]


def test_no_folder_is_no_record(tmp_path: Path) -> None:
    assert list(ledger(tmp_path / "nowhere").records()) == []


def test_the_second_commit_loses_and_changes_nothing(tmp_path: Path) -> None:
    ledger(tmp_path).commit(RESULT)
    before = record(tmp_path).read_bytes()
    with pytest.raises(AlreadyCommittedError, match="partition 3 is done"):
        ledger(tmp_path).commit(replace(RESULT, worker="worker-2"))
    assert record(tmp_path).read_bytes() == before


def test_of_many_racers_one_wins(tmp_path: Path) -> None:
    outcomes: list[str] = []
    gate = threading.Barrier(8)

    def race(name: str) -> None:
        gate.wait()
        try:
            ledger(tmp_path).commit(replace(RESULT, worker=name))
        except AlreadyCommittedError:
            return
        outcomes.append(name)

    threads = [threading.Thread(target=race, args=(f"worker-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert [found.worker for found in ledger(tmp_path).records()] == outcomes
    assert [path.name for path in (tmp_path / "_ledger").iterdir()] == ["0000003.json"]


def test_a_killed_commits_temporary_file_is_no_record(tmp_path: Path) -> None:
    ledger(tmp_path).commit(RESULT)
    (tmp_path / "_ledger" / ".0000004.json.x1y2z3.tmp").write_bytes(b'{"version"')
    assert len(list(ledger(tmp_path).records())) == 1


def test_another_version_is_refused(tmp_path: Path) -> None:
    ledger(tmp_path).commit(RESULT)
    found = json.loads(record(tmp_path).read_bytes())
    record(tmp_path).write_text(json.dumps({**found, "version": 2}))
    with pytest.raises(IntegrityError, match=r"0000003\.json: record version 2, this .* reads 1"):
        list(ledger(tmp_path).records())


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    ledger(tmp_path).commit(RESULT)
    with pytest.raises(IntegrityError, match=r"fingerprint f{12}, the run's is a{12}.*--fresh"):
        list(ledger(tmp_path, "a" * 64).records())


def changed(**fields: object) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **fields}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: bytes(len(data)),  # what some file systems leave after a power cut
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"null",
        lambda data: b"[]",
        lambda data: b'"text"',
        lambda data: b"\xff" + data,
        changed(shards=3),
        changed(shards=[{"path": "a"}]),
        changed(stages=None),
        changed(extra=1),
        lambda data: data.replace(b'"num_input"', b'"num_imput"'),
    ],
)
def test_damage_is_refused_and_names_the_record(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    ledger(tmp_path).commit(RESULT)
    record(tmp_path).write_bytes(damage(record(tmp_path).read_bytes()))
    with pytest.raises(IntegrityError, match=r"0000003\.json: not a commit record .*remove this"):
        list(ledger(tmp_path).records())


@settings(max_examples=100, deadline=None)
@given(data=st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_no_json_value_gets_through_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: object
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    record(folder).parent.mkdir()
    record(folder).write_text(json.dumps(data))
    with pytest.raises(TokenmillError):
        list(ledger(folder).records())
