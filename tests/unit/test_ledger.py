"""The ledger: records come back as they went in, once, or are refused."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import IntegrityError, TokenmillError
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


def results(*partitions: int, worker: str = "worker-1") -> list[PartitionResult]:
    return [replace(RESULT, partition=index, worker=worker) for index in partitions]


def loaded(folder: Path) -> Ledger:
    found = ledger(folder)
    found.load(lambda record: None)
    return found


def committed(folder: Path) -> list[int]:
    return sorted(record.partition for record in ledger(folder).records())


def segment(folder: Path, number: int = 1) -> Path:
    return folder / "_ledger" / f"{number:07d}.jsonl"


@pytest.mark.parametrize("result", [RESULT, EMPTY])
def test_records_come_back_as_they_went_in(tmp_path: Path, result: PartitionResult) -> None:
    ledger(tmp_path).commit([result])
    assert list(ledger(tmp_path).records()) == [result]
    found: list[PartitionResult] = []
    ledger(tmp_path).load(found.append)
    assert found == [result]


def test_no_folder_is_no_record(tmp_path: Path) -> None:
    assert committed(tmp_path / "nowhere") == []
    assert loaded(tmp_path / "nowhere").committed == set()


def test_a_segment_holds_many_records_one_a_line(tmp_path: Path) -> None:
    """Frozen: what other programs may read, and what the next version must refuse or read."""
    one = ledger(tmp_path)
    one.commit(results(4, 7, 4))
    one.commit(results(4))  # nothing new, no segment
    one.commit(results(7, 5))
    one.withdraw([7, 5, 7])
    texts = [segment(tmp_path, number).read_text() for number in (1, 2, 3)]
    assert not segment(tmp_path, 4).exists()
    lines = [text.split("\n") for text in texts]
    head = {"version": 2, "fingerprint": "f" * 64}
    assert [json.loads(part[0]) for part in lines] == [{**head, "lines": n} for n in (2, 1, 1)]
    assert [json.loads(line)["partition"] for line in lines[0][1:3]] == [4, 7]
    assert lines[2][1:] == ['{"withdrawn":[5, 7]}', ""]
    record = json.loads(lines[1][1])
    assert {**record, "partition": 3} == {
        "partition": 3,
        "num_input": 5,
        "num_written": 2,
        "filtered": {"length_filter: too_short": 2},
        "quarantined": {"decode_image: SampleError": 1},
        "shards": [
            {
                "path": "shards/0000003-000.arrow",
                "num_bytes": 7,
                "sha256": "ab" * 32,
                "num_samples": 2,
                "tokens": {"t": 9},
                "sources": [{"name": "é.tar", "first": 0, "stop": 2}],
            }
        ],
        "quarantine": {
            "path": "quarantine/0000003.jsonl",
            "num_bytes": 9,
            "sha256": "cd" * 32,
            "num_samples": 1,
        },
        "golden": {
            "partition": 3,
            "row": 0,
            "key": "k\u2028ey",
            "fields": {"t": {"num": 4, "sha256": "ef", "head": [1, 2]}},
        },
        "stages": {"cpu": {"samples": 5, "busy_s": 0.5, "steps": {"decode_image": 0.25}}},
        "wall_s": 1.5,
        "worker": "worker-1",
    }


def test_the_second_commit_loses_and_changes_nothing(tmp_path: Path) -> None:
    first, second = loaded(tmp_path), loaded(tmp_path)
    first.commit(results(3, 4, worker="first"))
    before = segment(tmp_path).read_bytes()
    second.commit(results(4, 5, worker="second"))
    assert segment(tmp_path).read_bytes() == before
    workers = {record.partition: record.worker for record in ledger(tmp_path).records()}
    assert workers == {3: "first", 4: "first", 5: "second"}
    assert second.committed == {3, 4, 5}
    first.commit(results(5, worker="first"))
    assert first.committed == {3, 4, 5}
    assert not segment(tmp_path, 3).exists()


def test_a_writer_that_has_read_nothing_reads_what_is_in_its_way(tmp_path: Path) -> None:
    for index in range(3):
        loaded(tmp_path).commit(results(index))
    ledger(tmp_path).commit(results(0, 1, 2, 3))
    assert committed(tmp_path) == [0, 1, 2, 3]


def test_of_many_racers_one_wins(tmp_path: Path) -> None:
    gate = threading.Barrier(8)

    def race(name: str) -> None:
        gate.wait()
        ledger(tmp_path).commit(results(3, 4, worker=name))

    threads = [threading.Thread(target=race, args=(f"worker-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({record.worker for record in ledger(tmp_path).records()}) == 1
    assert committed(tmp_path) == [3, 4]
    assert [path.name for path in (tmp_path / "_ledger").iterdir()] == ["0000001.jsonl"]


def test_what_is_withdrawn_counts_no_more_until_it_is_committed_again(tmp_path: Path) -> None:
    one = ledger(tmp_path)
    one.commit(results(1, 2))
    one.commit(results(3))
    one.withdraw([2, 3])
    assert committed(tmp_path) == [1]
    assert one.committed == loaded(tmp_path).committed == {1}
    one.commit(results(3, worker="again"))
    one.withdraw([1])
    assert committed(tmp_path) == [3]
    assert [record.worker for record in ledger(tmp_path).records()] == ["again"]
    one.commit(results(1, 2))
    assert committed(tmp_path) == [1, 2, 3]


def test_a_writer_hears_of_anothers_withdrawal(tmp_path: Path) -> None:
    ledger(tmp_path).commit(results(1, 2))
    one = loaded(tmp_path)
    ledger(tmp_path).withdraw([2])
    one.commit(results(3))
    assert one.committed == {1, 3}


def test_a_killed_commits_temporary_file_is_no_segment(tmp_path: Path) -> None:
    ledger(tmp_path).commit([RESULT])
    (tmp_path / "_ledger" / ".0000002.jsonl.x1y2z3.tmp").write_bytes(b'{"version"')
    assert committed(tmp_path) == [3]


# -- what is refused ----------------------------------------------------------------------------


def test_another_version_is_refused(tmp_path: Path) -> None:
    ledger(tmp_path).commit([RESULT])
    segment(tmp_path).write_bytes(segment(tmp_path).read_bytes().replace(b": 2,", b": 3,", 1))
    with pytest.raises(IntegrityError, match=r"0000001\.jsonl: ledger version 3, this .* reads 2"):
        committed(tmp_path)


def test_records_of_version_1_are_refused(tmp_path: Path) -> None:
    (tmp_path / "_ledger").mkdir()
    (tmp_path / "_ledger" / "0000003.json").write_text('{"version": 1}')
    with pytest.raises(IntegrityError, match=r"0000003\.json: a record of ledger version 1, this"):
        loaded(tmp_path)


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    ledger(tmp_path).commit([RESULT])
    with pytest.raises(IntegrityError, match=r"fingerprint f{12}, the run's is a{12}.*--fresh"):
        list(ledger(tmp_path, "a" * 64).records())


def test_a_partition_that_is_committed_twice_is_refused(tmp_path: Path) -> None:
    ledger(tmp_path).commit([RESULT])
    segment(tmp_path, 2).write_bytes(segment(tmp_path).read_bytes())
    with pytest.raises(IntegrityError, match=r"0000001\.jsonl: commits partition 3, which a later"):
        committed(tmp_path)


def line(change: Callable[[bytes], bytes], place: int = 1) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        lines = data.split(b"\n")
        lines[place] = change(lines[place])
        return b"\n".join(lines)

    return changed


def fields(place: int = 1, **changes: object) -> Callable[[bytes], bytes]:
    return line(lambda found: json.dumps({**json.loads(found), **changes}).encode(), place)


DAMAGE: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: b"", "line 1: not the head of a segment"),
    # What some file systems leave after a power cut:
    (lambda data: bytes(len(data)), "line 1: not the head of a segment"),
    (lambda data: data[:9], "line 1: not the head of a segment"),
    (lambda data: b"\xff" + data, "line 1: not the head of a segment"),
    (line(lambda found: b"null", 0), "line 1: not the head of a segment"),
    (line(lambda found: b"[2]", 0), "line 1: not the head of a segment"),
    (line(lambda found: b'{"version": 2}', 0), "line 1: not the head of a segment"),
    (fields(0, lines=3), "line 1: 3 lines should follow, there are 2"),
    (lambda data: data + b"{}\n", "line 1: 2 lines should follow, there are 3"),
    (lambda data: data[:-1], "line 3: the line is cut"),
    (lambda data: data[:-9], "line 3: the line is cut"),
    (lambda data: data[: len(data) // 2], "line 2: the line is cut"),
    (lambda data: data[: data.index(b"\n") + 1], "line 1: 2 lines should follow, there are 0"),
    (line(lambda found: b""), "line 2: not a commit record"),
    (line(lambda found: b"{}"), r"line 2: not a commit record \(partition: Field required"),
    (line(lambda found: b"null"), "line 2: not a commit record"),
    (line(lambda found: b"[]"), "line 2: not a commit record"),
    (line(lambda found: b'"text"'), "line 2: not a commit record"),
    (line(lambda found: b'{"withdrawn":3}'), "line 2: not a commit record"),
    (line(lambda found: b'{"withdrawn":["3"]}'), "line 2: not a commit record"),
    (fields(shards=3), r"line 2: not a commit record \(shards: Input should be a valid array"),
    (fields(shards=[{"path": "a"}]), r"line 2: not a commit record \(shards\.0\.num_bytes: Field"),
    (fields(num_input="5"), r"line 2: not a commit record \(num_input: Input should be a valid"),
    (fields(stages=None), "line 2: not a commit record"),
    (fields(extra=1), "line 2: not a commit record"),
    (line(lambda found: found.replace(b'"num_input"', b'"num_imput"')), "line 2: not a commit"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGE)
def test_damage_is_refused_where_it_is_and_mended(
    tmp_path: Path, damage: Callable[[bytes], bytes], says: str
) -> None:
    ledger(tmp_path).commit(results(1))
    ledger(tmp_path).commit(results(2, 3))
    ledger(tmp_path).commit(results(4))
    one, other = segment(tmp_path, 1).read_bytes(), segment(tmp_path, 3).read_bytes()
    segment(tmp_path, 2).write_bytes(damage(segment(tmp_path, 2).read_bytes()))
    with pytest.raises(IntegrityError, match=rf"0000002\.jsonl, {says}") as caught:
        committed(tmp_path)
    assert f"`pipeline verify {tmp_path} --repair`" in str(caught.value)
    with pytest.raises(IntegrityError):
        loaded(tmp_path)
    told: list[IntegrityError] = []
    readable = sorted(r.partition for r in ledger(tmp_path).records(told.append))
    assert {1, 4} <= set(readable) <= {1, 2, 3, 4}

    assert sorted(ledger(tmp_path).mend()) == sorted(error.message for error in told)
    assert committed(tmp_path) == readable
    assert (segment(tmp_path, 1).read_bytes(), segment(tmp_path, 3).read_bytes()) == (one, other)
    assert ledger(tmp_path).mend() == []
    loaded(tmp_path).commit(results(1, 2, 3, 4))
    assert committed(tmp_path) == [1, 2, 3, 4]


def test_a_segment_that_is_gone_is_refused_and_mended(tmp_path: Path) -> None:
    for index in range(3):
        loaded(tmp_path).commit(results(index))
    segment(tmp_path, 2).unlink()
    with pytest.raises(IntegrityError, match=r"0000002\.jsonl: no such object, though there are"):
        loaded(tmp_path)
    assert len(ledger(tmp_path).mend()) == 1
    assert committed(tmp_path) == [0, 2]
    assert ledger(tmp_path).mend() == []


def test_withdrawals_are_kept_when_a_segment_is_mended(tmp_path: Path) -> None:
    one = ledger(tmp_path)
    one.commit(results(1, 2))
    one.withdraw([2])
    segment(tmp_path, 2).write_bytes(segment(tmp_path, 2).read_bytes() + b"half")
    assert len(ledger(tmp_path).mend()) == 1
    assert committed(tmp_path) == [1]


@settings(max_examples=100, deadline=None)
@given(data=st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_no_json_value_gets_through_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: object
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    segment(folder).parent.mkdir()
    segment(folder).write_text(json.dumps(data))
    with pytest.raises(TokenmillError):
        committed(folder)
    segment(folder).unlink()
    ledger(folder).commit([RESULT])
    head = segment(folder).read_text().split("\n")[0]
    segment(folder).write_text(f"{head}\n{json.dumps(data)}\n")
    with pytest.raises(TokenmillError):
        committed(folder)
