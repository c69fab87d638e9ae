"""How often a partition may fail."""

import pytest

from pipeline.engines.attempts import FIRST_WAIT_S, LONGEST_WAIT_S, Attempts
from pipeline.errors import PoisonPartitionError, TransientError
from pipeline.protocols import Partition, SourceFile, SourceRange

ERROR = TransientError("s3://bucket/a.tar: no answer")


def partition(index: int = 7) -> Partition:
    names = [f"{i}.tar" for i in range(5)]
    return Partition(index, tuple(SourceRange(SourceFile(n, n, 1), 1) for n in names))


def test_waits_double_up_to_a_cap_and_vary() -> None:
    found = Attempts(max_attempts=20)
    waits = [found.after_error(partition(), ERROR) for _ in range(19)]
    for number, wait in enumerate(waits, 1):
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**number)
        assert longest / 2 <= wait <= longest
    others = [Attempts(2).after_error(partition(), ERROR) for _ in range(20)]
    assert len(set(others)) > 1


def test_the_last_error_is_told() -> None:
    found = Attempts(max_attempts=2)
    found.after_error(partition(), ERROR)
    with pytest.raises(TransientError, match=r"2 more\): 2 attempts failed, the last: s3://buck"):
        found.after_error(partition(), ERROR)


def test_the_last_death_names_partition_files_and_cause() -> None:
    found = Attempts(max_attempts=3)
    for _ in range(2):
        found.after_death(partition(), "ActorDiedError")
    message = r"partition 7 \(0\.tar, 1\.tar, 2\.tar and 2 more\): 3 attempts failed, the last: Act"
    with pytest.raises(PoisonPartitionError, match=message) as caught:
        found.after_death(partition(), "ActorDiedError")
    assert caught.value.exit_code == 7


def test_deaths_and_errors_are_counted_together_and_by_partition() -> None:
    found = Attempts(max_attempts=2)
    found.after_error(partition(1), ERROR)
    found.after_death(partition(2), "died")
    with pytest.raises(PoisonPartitionError):
        found.after_death(partition(1), "died")
    with pytest.raises(TransientError):
        found.after_error(partition(2), ERROR)


def test_a_death_makes_a_suspect_and_storage_does_not() -> None:
    found = Attempts(max_attempts=9)
    found.after_error(partition(), ERROR)
    assert not found.is_suspect(partition())
    found.after_death(partition(), "died")
    assert found.is_suspect(partition())
    assert not found.is_suspect(partition(8))


def test_forgiven_partitions_begin_anew_as_suspects() -> None:
    found = Attempts(max_attempts=3)
    for _ in range(2):
        found.after_death(partition(), "died")
    found.forgive(partition())
    assert found.is_suspect(partition())
    found.after_death(partition(), "died")
    with pytest.raises(PoisonPartitionError):
        found.after_death(partition(), "died")


def test_one_attempt_means_no_second() -> None:
    with pytest.raises(TransientError):
        Attempts(1).after_error(partition(), ERROR)
