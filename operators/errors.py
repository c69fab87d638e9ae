"""Errors that operators raise. Each says where, what was found, what was expected, what to do."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from operators.base import Batch


class TokenmillError(Exception):
    """Base of every error that this project raises on purpose.

    Attributes:
        exit_code: What the command line returns when this error ends a run.
        hint: What to do about it, one line, or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}; {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries; keyword-only arguments would be lost otherwise.
        return (_rebuild, (type(self), self.message, self.hint, self.__dict__))


class ContractError(TokenmillError):
    """An operator was configured or used against its contract. Ends the run (a wrong job)."""

    exit_code = 2


class DecisionError(ContractError):
    """A setting of an operator cannot hold for this corpus; with another value it can.

    A run takes the other value for all its partitions, once, with ``warning``, and begins anew. It
    ends everything else. Whether it is raised must be a pure function of the recipe and the input:
    then all runs of a job decide alike.

    Args:
        warning: Why, as a sentence that is the same wherever in the corpus it was found.
        found: What was found, and where.
        field: The setting, a field of the operator's config.
        value: Its other value, which must not lead to the same decision again.

    Attributes:
        step: Label of the operator; set by whoever called it.
    """

    def __init__(self, warning: str, *, found: str, field: str, value: str | int | bool) -> None:
        super().__init__(f"{warning}: {found}", hint=f"set {field}: {value}")
        self.warning, self.found = warning, found
        self.field, self.value = field, value
        self.step = ""


class SetupError(TokenmillError):
    """Something an operator needs is missing: an extra, a GPU, weights, credentials."""

    exit_code = 3


class SampleError(TokenmillError):
    """One sample is unusable. It goes to the quarantine and the run goes on."""


class RowErrors(Exception):  # noqa: N818 - a carrier of SampleErrors, not an error of its own
    """Some rows of a batch are unusable, the others are done.

    Raise it instead of failing the whole batch when the bad rows are known.

    Args:
        errors: Row position in the batch -> what is wrong with it.
        good: Outputs of all other rows, in order.
    """

    def __init__(self, errors: Mapping[int, SampleError], good: "Batch") -> None:
        super().__init__(f"{len(errors)} unusable rows")
        self.errors = dict(errors)
        self.good = good


def _rebuild(
    cls: type[TokenmillError], message: str, hint: str | None, state: dict[str, object]
) -> TokenmillError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    error.message, error.hint = message, hint
    return error
