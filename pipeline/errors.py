"""Errors of the engine, with the exit code that each one ends a run with."""

from operators.errors import (
    ContractError,
    DecisionError,
    RowErrors,
    SampleError,
    SetupError,
    TokenmillError,
)

__all__ = [
    "AlreadyCommittedError",
    "BudgetExceededError",
    "ContractError",
    "DecisionError",
    "FingerprintMismatchError",
    "IntegrityError",
    "LeaseError",
    "PoisonPartitionError",
    "PoisonSampleError",
    "RowErrors",
    "SampleError",
    "SetupError",
    "SpecError",
    "TokenmillError",
    "TransientError",
]


class SpecError(TokenmillError):
    """The job is wrong: file, line, field, what is allowed. Nothing was touched."""

    exit_code = 2


class PoisonSampleError(SampleError):
    """The process that works on this sample dies; it is quarantined without being touched."""


class BudgetExceededError(TokenmillError):
    """More samples were quarantined than ``max_bad_samples`` allows."""

    exit_code = 4


class IntegrityError(TokenmillError):
    """Stored bytes differ from what the ledger or the manifest says."""

    exit_code = 5


class FingerprintMismatchError(TokenmillError):
    """The output folder belongs to another recipe, or a loader state to another data set."""

    exit_code = 5


class TransientError(TokenmillError):
    """Storage or a worker was lost for now; worth another attempt."""

    exit_code = 6


class PoisonPartitionError(TokenmillError):
    """A partition killed its worker at every attempt, and no row of it does so by itself."""

    exit_code = 7


class LeaseError(TokenmillError):
    """Another run is at work on the output folder, or took it over from this one."""

    exit_code = 8


class AlreadyCommittedError(TokenmillError):
    """There is an object of that name already; another writer was first."""

    exit_code = 5
