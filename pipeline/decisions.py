"""What a run found out and decided once: one setting of its recipe has another value from then on.

An operator finds that a setting cannot hold for this corpus (``DecisionError``). The run writes the
decision down, and everything is made anew with the other value. Resumes and other drivers read it
here, so that all of them make the same bytes, those of a job with that value.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from pydantic import JsonValue, TypeAdapter, ValidationError

from pipeline.errors import IntegrityError
from pipeline.storage import Storage, join

FOLDER = "_decisions"
DECISION_VERSION = 1


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of a run.

    Attributes:
        number: From 1.
        step: Position of the operator in the recipe.
        name: Its name.
        field: Its setting.
        value: The value from now on.
        warning: Why, in words that do not depend on who found it where.
        found: What was found first, and where.
        discards: The fingerprint before; what is committed under it does not count.
        fingerprint: The fingerprint from now on.
        version: Of this structure.
    """

    number: int
    step: int
    name: str
    field: str
    value: JsonValue
    warning: str
    found: str
    discards: str
    fingerprint: str
    version: int = DECISION_VERSION


_DECISION = TypeAdapter(Decision)


def read_decisions(storage: Storage, output: str) -> list[Decision]:
    """Return the decisions of a run, in order.

    Raises:
        IntegrityError: one cannot be read, or is of another version.
    """
    found: list[Decision] = []
    for entry in storage.walk(join(output, FOLDER)):
        name = entry.uri.rsplit("/", 1)[-1]
        if not name.endswith(".json") or name.startswith("."):
            continue
        try:
            decision = _DECISION.validate_json(storage.read(entry.uri))
        except ValidationError as error:
            raise IntegrityError(
                f"{entry.uri}: not a decision ({error.errors()[0]['msg']})",
                hint="put it back from a copy, or start anew with --fresh",
            ) from None
        if decision.version != DECISION_VERSION:
            raise IntegrityError(
                f"{entry.uri}: version {decision.version}, this program reads {DECISION_VERSION}",
                hint="use the program version that wrote it",
            )
        found.append(decision)
    return sorted(found, key=lambda decision: decision.number)


def write_decision(storage: Storage, output: str, decision: Decision) -> None:
    """Write a decision down; it holds from then on.

    Raises:
        AlreadyCommittedError: another driver wrote the decision of that number.
    """
    text = json.dumps(asdict(decision), indent=1, sort_keys=True, ensure_ascii=False)
    storage.create_exclusive(join(output, FOLDER, f"{decision.number:07d}.json"), text.encode())


def warnings_of(decisions: Iterable[Decision]) -> list[str]:
    """Return the warnings in an order that does not depend on which was decided first."""
    ordered = sorted(decisions, key=lambda decision: (decision.step, decision.field))
    return [decision.warning for decision in ordered]
