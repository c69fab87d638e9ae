"""Documents for tests of trainers."""

import random
from collections.abc import Iterator, Sequence

import pyarrow as pa

from operators.text.training import Documents

WORDS = """
the of and to in is it that was for on are with as his they be at one have this from or had by hot
but some what there we can out other were all your when up use word how said an each she which do
their time if will way about many then them would write like so these her long naïve Größe 語 12 345
-- ... http:// don't
""".split()  # noqa: SIM905 - as one reads it


def documents(texts: Sequence[str], at_once: int = 3) -> Documents:
    """Return texts as a trainer is given them, some at a time."""

    def each() -> Iterator[pa.Array]:
        for first in range(0, len(texts), at_once):
            yield pa.array(texts[first : first + at_once], pa.large_string())

    return each


def some_texts(number: int, seed: int = 0) -> list[str]:
    """Return lines of words, the first words the most frequent."""
    draw = random.Random(seed)
    weights = [1 / (i + 1) for i in range(len(WORDS))]
    return [
        "\n".join(
            " ".join(draw.choices(WORDS, weights, k=draw.randint(1, 12)))
            for _ in range(draw.randint(1, 4))
        )
        for _ in range(number)
    ]


def quiet(what: str, done: int, total: int) -> None:
    """Show nothing of a training's progress."""
