"""The rules of handing out partitions, one by one, without a cluster and without waiting."""

from collections.abc import Callable

import pytest

from pipeline.engines.schedule import (
    LEAST_SILENCE_S,
    MOST_EXCUSES,
    MOST_POISON,
    SILENT_AT_FIRST_S,
    Schedule,
    Work,
)
from pipeline.errors import IntegrityError, PoisonPartitionError, TransientError
from pipeline.protocols import Partition, PartitionResult, Shard, SourceFile, SourceRange

ERROR = TransientError("s3://bucket/a.tar: no answer")


def partition(index: int, num_bytes: int = 100) -> Partition:
    name = f"{index}.tar"
    return Partition(index, (SourceRange(SourceFile(name, name, num_bytes), num_bytes),))


def result(
    index: int, worker: str = "w", sha256: str = "ab", wall_s: float = 1.0
) -> PartitionResult:
    shard = Shard(f"shards/{index:07d}-000.arrow", 1, sha256, 1, {}, ())
    return PartitionResult(index, 1, 1, {}, {}, (shard,), None, None, {}, wall_s, worker)


def schedule(sizes: list[int], workers: int, **settings: float) -> Schedule:
    partitions = [partition(i, size) for i, size in enumerate(sizes)]
    made = Schedule(partitions, int(settings.pop("max_attempts", 3)), **settings)  # type: ignore[arg-type]
    for number in range(workers):
        made.add_worker(f"w{number}", 0.0)
    return made


def given(made: Schedule, now: float = 0.0) -> list[tuple[str, Work]]:
    return list(made.assign(now))


def indices(pairs: list[tuple[str, Work]]) -> list[int]:
    return [work.partition.index for _, work in pairs]


def test_the_largest_go_first_and_every_worker_gets_one_before_any_gets_two() -> None:
    made = schedule([1, 5, 3, 4, 2, 6, 7, 8], workers=3)
    pairs = given(made)
    assert indices(pairs) == [7, 6, 5, 1, 3]
    assert [name for name, _ in pairs] == ["w0", "w1", "w2", "w0", "w1"]
    assert made.num_open == 3  # the last ones wait for whoever is free first
    assert given(made) == []


def test_nobody_ready_gets_nothing() -> None:
    assert given(schedule([1, 2], workers=0)) == []


def test_every_partition_is_handed_out_once_and_counted_down() -> None:
    made = schedule([10] * 50, workers=4)
    seen: list[int] = []
    now = 0.0
    running: list[tuple[str, Work]] = []
    while made.left:
        running += given(made, now)
        now += 1.0
        name, work = running.pop(0)
        seen.append(work.partition.index)
        assert made.succeeded(name, work, result(work.partition.index), now) is not None
    assert sorted(seen) == list(range(50))
    assert made.counts.failed == made.counts.second == 0


def test_a_storage_error_waits_and_comes_again() -> None:
    made = schedule([1], workers=1)
    ((name, work),) = given(made)
    made.failed(name, work, ERROR, now=10.0)
    assert given(made, 10.0) == []
    assert indices(given(made, 12.0)) == [0]
    assert (made.counts.failed, made.counts.retried) == (1, 1)


def test_the_last_storage_error_ends_the_run() -> None:
    made = schedule([1], workers=1, max_attempts=2)
    ((name, work),) = given(made)
    made.failed(name, work, ERROR, now=0.0)
    ((name, work),) = given(made, 60.0)
    with pytest.raises(TransientError, match="2 attempts failed"):
        made.failed(name, work, ERROR, now=60.0)


def test_what_a_dead_worker_had_comes_back_alone() -> None:
    made = schedule([9, 8, 7, 6, 5], workers=1)
    pairs = given(made)
    assert indices(pairs) == [0, 1]
    made.remove_worker("w0", "died")
    assert given(made) == []
    made.add_worker("w1", 1.0)
    ((name, work),) = given(made, 1.0)
    assert (name, work.partition.index) == ("w1", 0)
    assert given(made, 1.0) == []  # nothing beside a suspect
    made.succeeded("w1", work, result(0), 2.0)
    assert indices(given(made, 2.0)) == [1]


def die_alone(made: Schedule, number: int) -> Work:
    """Start a worker, give it the suspect, and let it die."""
    name = f"x{number}"
    made.add_worker(name, 0.0)
    ((who, work),) = given(made)
    assert who == name
    made.remove_worker(name, "ActorDiedError")
    return work


def test_the_row_that_kills_workers_is_found_and_masked() -> None:
    made = schedule([9], workers=0)
    assert die_alone(made, 0).kind == "whole"
    assert die_alone(made, 1).kind == "whole"
    number, poison, deaths = 2, 11, 2
    made.add_worker("x2", 0.0)
    while True:
        ((name, work),) = given(made)
        if work.kind == "count":
            assert made.succeeded(name, work, 21, 0.0) is None
        elif work.kind == "probe" and poison in work.rows:
            deaths += 1
            number += 1
            made.remove_worker(name, "ActorDiedError")
            made.add_worker(f"x{number}", 0.0)
        elif work.kind == "probe":
            assert made.succeeded(name, work, None, 0.0) is None
        else:
            break
    assert work.partition.masked == (poison,)
    assert deaths <= 2 + 6
    assert made.succeeded(name, work, result(0), 0.0) is not None
    assert made.left == 0


def play(made: Schedule, dies: Callable[[Work], bool], num_rows: int = 16) -> None:
    """Play workers, one after another, until the run ends."""
    number = 0
    while made.left:
        number += 1
        made.add_worker(f"y{number}", 0.0)
        alive = True
        while alive and made.left:
            ((name, work),) = given(made)
            if work.kind == "count":
                made.succeeded(name, work, num_rows, 0.0)
            elif dies(work):
                made.remove_worker(name, "ActorDiedError")
                alive = False
            else:
                answer = result(0) if work.kind == "whole" else None
                made.succeeded(name, work, answer, 0.0)


def poisonous(made: Schedule, poison: set[int]) -> None:
    """Play workers that die of the given rows."""

    def dies(work: Work) -> bool:
        rows = set(work.rows) if work.kind == "probe" else poison
        return bool(rows & poison - set(work.partition.masked))

    play(made, dies)


def test_several_poisonous_rows_are_found_one_after_another() -> None:
    made = schedule([9], workers=0)
    poisonous(made, {0, 7, 15})
    assert made.left == 0


def test_too_many_poisonous_rows_end_the_run() -> None:
    made = schedule([9], workers=0)
    with pytest.raises(PoisonPartitionError, match=rf"0 \(0\.tar\): {MOST_POISON} of its samples"):
        poisonous(made, set(range(MOST_POISON + 1)))


def test_a_partition_that_no_row_explains_ends_the_run() -> None:
    made = schedule([9], workers=0, max_attempts=3)
    with pytest.raises(PoisonPartitionError, match="it survives every one of its rows alone"):
        play(made, lambda work: work.kind == "whole")


def test_one_attempt_means_no_search() -> None:
    made = schedule([9], workers=1, max_attempts=1)
    given(made)
    with pytest.raises(PoisonPartitionError, match="1 attempts failed, the last: died"):
        made.remove_worker("w0", "died")


def test_a_lost_node_blames_nobody_until_it_happens_too_often() -> None:
    made = schedule([9], workers=0, max_attempts=1)
    for number in range(MOST_EXCUSES):
        made.add_worker(f"n{number}", 0.0)
        assert len(given(made)) == 1
        made.remove_worker(f"n{number}", "its node is gone", blame=False)
    made.add_worker("last", 0.0)
    given(made)
    with pytest.raises(PoisonPartitionError):
        made.remove_worker("last", "its node is gone", blame=False)


def test_an_idle_worker_tries_a_straggler_again_and_the_first_result_counts() -> None:
    made = schedule([10, 10, 10], workers=3)
    pairs = given(made)
    slow = pairs[2]
    for name, work in pairs[:2]:
        made.succeeded(name, work, result(work.partition.index), 4.0)
    assert given(made, 4.9) == []  # more than twice the second that others took, but not 5 s
    ((name, work),) = given(made, 30.0)
    assert work.partition.index == slow[1].partition.index
    assert name != slow[0]
    assert given(made, 60.0) == []  # two attempts are enough
    assert made.succeeded(name, work, result(2, name), 61.0) is not None
    assert made.left == 0
    assert made.succeeded(*slow, result(2, slow[0]), 62.0) is None
    assert made.counts.second == 1


def straggling() -> tuple[Schedule, tuple[str, Work], tuple[str, Work]]:
    made = schedule([10, 10], workers=2)
    (fast, slow) = given(made)
    made.succeeded(*fast, result(fast[1].partition.index), 1.0)
    (second,) = given(made, 30.0)
    return made, slow, second


def test_attempts_that_wrote_different_bytes_end_the_run() -> None:
    made, slow, second = straggling()
    made.succeeded(*second, result(1, "a", "00"), 31.0)
    with pytest.raises(IntegrityError, match="partition 1: a and b wrote different bytes"):
        made.succeeded(*slow, result(1, "b", "ff"), 32.0)


@pytest.mark.parametrize("first", [0, 1])
def test_one_of_two_attempts_may_fail(first: int) -> None:
    made, slow, second = straggling()
    lost, stays = (slow, second) if first == 0 else (second, slow)
    made.remove_worker(lost[0], "died")
    assert given(made, 31.0) == []  # the other one is still at work
    assert made.succeeded(*stays, result(1), 32.0) is not None
    assert made.left == 0


def test_a_late_failure_of_a_finished_partition_is_nobodys() -> None:
    made, slow, second = straggling()
    made.succeeded(*second, result(1), 31.0)
    made.failed(*slow, ERROR, 32.0)
    assert given(made, 99.0) == []
    assert made.counts.failed == 0


def test_a_worker_without_progress_hangs() -> None:
    made = schedule([10, 10], workers=2, deadline_s=30.0)
    given(made)
    made.progressed("w1", 25.0)
    assert made.hanging(30.0) == []
    assert made.hanging(31.0) == [("w0", 31.0)]
    assert [name for name, _ in made.hanging(60.0)] == ["w0", "w1"]


def test_idle_workers_do_not_hang() -> None:
    made = schedule([10], workers=2, deadline_s=30.0)
    ((name, work),) = given(made)
    made.succeeded(name, work, result(0), 1.0)
    assert made.hanging(1000.0) == []


def test_deadlines_follow_what_was_measured() -> None:
    made = schedule([1000, 1000, 100], workers=2)
    first, _ = given(made)
    assert made.hanging(SILENT_AT_FIRST_S) == []
    assert len(made.hanging(SILENT_AT_FIRST_S + 1)) == 2
    made.succeeded(*first, result(first[1].partition.index, wall_s=100.0), 100.0)
    given(made, 100.0)
    allowed_s = 5 * 100.0
    assert made.hanging(allowed_s) == []
    assert [name for name, _ in made.hanging(allowed_s + 1)] == ["w1"]
    quick = schedule([1000, 1000, 100], workers=2)
    first, _ = given(quick)
    quick.succeeded(*first, result(first[1].partition.index, wall_s=0.1), 0.1)
    assert quick.hanging(LEAST_SILENCE_S) == []
    assert [name for name, _ in quick.hanging(LEAST_SILENCE_S + 1)] == ["w1"]


def test_without_a_search_a_partition_that_ends_its_workers_is_given_up() -> None:
    made = schedule([1], workers=3, search_rows=False)
    for attempt in range(2):
        assert [work.kind for _, work in given(made)] == ["whole"]
        made.remove_worker(f"w{attempt}", "killed")
    assert [work.kind for _, work in given(made)] == ["whole"]
    with pytest.raises(PoisonPartitionError, match="3 attempts failed, the last: killed"):
        made.remove_worker("w2", "killed")
