"""The tables of docs/reducers.md that follow from the code: signals, and all methods.

``python -m tests.reducer_table`` writes them; a test holds the page against them.
"""

import importlib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np

from operators import registry
from operators.reducers.base import SIGNALS, Reducer
from tests.reducer_cases import CASES, batch_for, reducer

PAGE = Path(__file__).parents[1] / "docs" / "reducers.md"
GOLDEN = Path(__file__).parent / "golden" / "reducers"
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")
_CHECKED = re.compile(r".*[Cc]hecked: (.*?)\.?$")


def page(text: str) -> str:
    """Return the page with its tables as they should be."""
    for name, table in (("signals", signals()), ("methods", methods())):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        assert closed, f"{PAGE.name} has no place for {name}"
        text = f"{before}{begin}\n{table}\n\n{end}{after}"
    return text


def signals() -> str:
    """Return the table of signals."""
    rows = [(f"`{name}`", about.replace("|", "or")) for name, (_, about) in SIGNALS.items()]
    return _table(("field", "what it is, of one image or crop"), rows)


def methods() -> str:
    """Return the table of methods, sorted by name."""
    head = ("operator", "method", "paper", "reads", "rows", "how many", "choices", "checked")
    found = sorted(registry.all_classes().items())
    return _table(head, [_method(name, cls) for name, cls in found if issubclass(cls, Reducer)])


def _method(name: str, cls: Any) -> tuple[str, ...]:
    about = inspect.getdoc(importlib.import_module(cls.__module__)) or ""
    title = about.splitlines()[0].rstrip(".")
    op = _built(name)
    reads = [f"`{signal}`" for signal in op.signals]
    reads += [f"`{field}`" for field in op.further_inputs]
    if cls.needs_grid:
        reads.append("the grid")
    if len(op.inputs["features"].shape) == 3:
        reads.append("several crops or frames")
    arxiv = _ARXIV.fullmatch(cls.paper)
    paper = f"[{arxiv[1]}](https://arxiv.org/abs/{arxiv[1]})" if arxiv else cls.paper
    count = "by image" if cls.is_adaptive else "fixed"
    return (
        f"`{name}`",
        title,
        paper,
        ", ".join(reads) or "features alone",
        "copies" if _copies(op) else "averages",
        count,
        ", ".join(_choices(cls)) or "-",
        _checked(name, cls),
    )


def _built(name: str) -> Any:
    """Return the reducer of the method's first case, which has the default choices mostly."""
    case = next(case for case in CASES if case.name == name)
    layers, crops = case.num_layers, case.crops
    return reducer(name, case.num_tokens, num_layers=layers, crops=crops, **case.options)


def _copies(op: Any) -> bool:
    """Say whether every row of a result is one of the tokens that were given."""
    batch = batch_for(op, 2)
    out = op(batch)
    for image in range(2):
        given = np.asarray(batch["features"][image])
        rows = np.asarray(out["features"][image])
        tokens = {token.tobytes() for token in given.reshape(-1, given.shape[-1])}
        if any(row.tobytes() not in tokens for row in rows.reshape(-1, rows.shape[-1])):
            return False
    return True


def _choices(cls: Any) -> list[str]:
    """Return the options of a method that choose among ways to do it."""
    found = []
    for name, field in cls.Config.model_fields.items():
        if get_origin(field.annotation) is Literal and name not in ("name", "device", "order"):
            ways = ", ".join(map(str, get_args(field.annotation)))
            found.append(f"`{name}` ({ways})")
    return found


def _checked(name: str, cls: Any) -> str:
    """Return what a method was checked against, as its description says, and how many files."""
    paragraphs = (inspect.getdoc(cls) or "").split("\n\n")
    texts = [_CHECKED.search(" ".join(paragraph.split())) for paragraph in paragraphs]
    found = next((text[1] for text in texts if text), None)
    assert found is not None, (
        f"{name}: its docstring does not end in what was checked (Checked: ...)"
    )
    files = len(list((GOLDEN / name).glob("*.safetensors")))
    return f"{found} ({files} recorded)" if files else found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
