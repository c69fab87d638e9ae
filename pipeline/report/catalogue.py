"""What operators there are, as tables; of tokenizers also the models that are published."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from operators.base import Filter, Step
from pipeline.report.tables import big_number


def operator_tables(classes: Mapping[str, type[Step]]) -> Iterator[Table]:
    """Yield a table for every kind of operator: those whose modules lie in one package.

    Args:
        classes: Name -> class.
    """
    kinds: dict[str, dict[str, type[Step]]] = {}
    for name in sorted(classes):
        kinds.setdefault(_kind(classes[name]), {})[name] = classes[name]
    width = max(map(len, [*classes, *kinds]), default=0)
    for kind in sorted(kinds):
        yield _kind_table(kind, kinds[kind], width)


def published_table(cls: type[Step]) -> Table | None:
    """Return the published models of a tokenizer; None for other operators."""
    if not _published(cls):
        return None
    table = _table("published", "model", "codebook", "tokens", "side")
    for model in _published(cls):
        codebook = "features" if model.codebook is None else big_number(model.codebook)
        numbers = (codebook, f"{model.tokens:,}", f"{model.side:,}")
        table.add_row(Text(model.weights), Text(model.size), *numbers)
    return table


def _kind_table(kind: str, classes: Mapping[str, type[Step]], width: int) -> Table:
    has_tokenizers = any(map(_published, classes.values()))
    numbers = ("codebook", "tokens") if has_tokenizers else ()
    table = _table(kind, "runs on", *numbers, "what it does")
    table.columns[0].min_width = width
    for name, cls in classes.items():
        stage = f"{cls.stage}, filter" if issubclass(cls, Filter) else cls.stage
        models = _published(cls)
        sizes = [model.codebook for model in models if model.codebook is not None]
        ranges = (_range(sizes), _range([model.tokens for model in models]))
        what = (inspect.getdoc(cls) or "").split("\n")[0].replace("``", "`")
        table.add_row(name, stage, *(ranges if has_tokenizers else ()), Text(what))
    return table


def _kind(cls: type[Step]) -> str:
    """Return ``image tokenizers`` for what is in ``operators.image_tokenizers``."""
    package, *rest = cls.__module__.split(".")
    return rest[0].replace("_", " ") if package == "operators" and len(rest) > 1 else package


def _published(cls: type[Step]) -> Sequence[Any]:
    """Return the models that a tokenizer's class lists: weights, size, tokens, codebook, side."""
    return getattr(cls, "published", ())


def _range(numbers: Sequence[int]) -> str:
    return (
        "-".join(big_number(each) for each in sorted({min(numbers), max(numbers)}))
        if numbers
        else ""
    )


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for heading in headings:
        is_number = heading in ("codebook", "tokens", "side")
        table.add_column(
            heading,
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",  # hub ids are there to be copied
        )
    return table
