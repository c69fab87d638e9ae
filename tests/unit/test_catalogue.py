"""Tables of operators, as they stand in a terminal."""

from typing import Any, ClassVar

import pytest
from rich.console import Console

from operators import registry
from operators.base import Filter, Operator, Step
from operators.image_tokenizers.base import Published
from pipeline.report.catalogue import operator_tables, published_table


class Grid(Operator[Any]):
    """Map images to ``ids``.

    More of it.
    """

    stage = "device"
    published: ClassVar[tuple[Published, ...]] = (
        Published("owner/a-model-of-a-name-that-needs-all-of-the-room", "small", 256, 16_384),
        Published("owner/large", "large", 1_024, 262_144, side=512),
    )


class Bits(Operator[Any]):
    """Map images to codes."""

    published: ClassVar[tuple[Published, ...]] = (
        Published("bits.ckpt", "codes", 128, 2**64, side=1_024),
        Published("vae.ckpt", "vae", 32, None),
    )


class Features(Operator[Any]):
    """Map images to features."""

    published: ClassVar[tuple[Published, ...]] = (Published("x", "x", 32, None),)


class Long(Filter[Any]):
    """Drop long rows."""


for _cls in (Grid, Bits, Features):
    _cls.__module__ = "operators.image_tokenizers.any"
Long.__module__ = "operators.sequence.any"


class Outside(Operator[Any]):
    """Do it elsewhere."""


Outside.__module__ = "somewhere.else"
CLASSES: dict[str, type[Step]] = {
    "outside": Outside,
    "grid": Grid,
    "long": Long,
    "bits": Bits,
    "features": Features,
}


def lines(table: Any, width: int = 100) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_table_for_each_kind() -> None:
    tables = [lines(table) for table in operator_tables(CLASSES)]
    assert tables == [
        [
            "image tokenizers  runs on        codebook     tokens  what it does",
            "bits              cpu                2^64     32-128  Map images to codes.",
            "features          cpu                             32  Map images to features.",
            "grid              device   16,384-262,144  256-1,024  Map images to `ids`.",
        ],
        [
            "sequence          runs on      what it does",
            "long              cpu, filter  Drop long rows.",
        ],
        [
            "somewhere         runs on  what it does",
            "outside           cpu      Do it elsewhere.",
        ],
    ]


def test_published_models() -> None:
    assert published_table(Long) is None
    bits, grid = published_table(Bits), published_table(Grid)
    assert lines(bits) == [
        "published  model  codebook  tokens   side",
        "bits.ckpt  codes      2^64     128  1,024",
        "vae.ckpt   vae    features      32    256",
    ]
    heading, *narrow = lines(grid, 60)
    names = "".join(line[: heading.index("model")].strip() for line in narrow)
    assert names == "owner/a-model-of-a-name-that-needs-all-of-the-roomowner/large"


@pytest.mark.parametrize("width", [80, 120])
def test_all_operators_fit_the_terminal(width: int) -> None:
    shown = [
        line for table in operator_tables(registry.all_classes()) for line in lines(table, width)
    ]
    assert max(map(len, shown)) <= width
    assert not any("…" in line for line in shown)
    assert {line.split()[0] for line in shown if line[:1].strip()} >= set(registry.names())
