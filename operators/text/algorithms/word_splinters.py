"""Rewrite words as a root and the letters taken out of it, by a map learned from word counts.

A *reduction* "p:c" takes letter c out at position p. Positions of the second half count from the
end (negative), so that prefixes and suffixes have the same names in words of any length.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

BEAM_DEPTH, BEAM_WIDTH = 3, 3
ROOT_LENGTH = 3

Reductions = Mapping[int, Mapping[str, float]]
"""Length of a word -> reductions of it with their share, the most frequent first."""


@dataclass(frozen=True, slots=True)
class Language:
    """Which characters are letters.

    Attributes:
        letters: All of them, in the order of the map.
        diacritics: Characters that the authors' code drops.
        final_letters: Letters that have another form at the end of a word -> that form, and back.
    """

    letters: str
    diacritics: str = ""
    final_letters: str = ""

    def swap_final(self, word: str) -> str:
        """Return the word with its last letter in its other form; twice gives the word again.

        Final forms become the ordinary ones. The few words that end in an ordinary form get the
        final one, so that they stay apart.
        """
        at = self.final_letters.find(word[-1]) if word else -1
        return word if at < 0 else word[:-1] + self.final_letters[at ^ 1]

    def words(self, counts: Mapping[str, int], min_count: int) -> dict[str, int]:
        """Return the words to learn from, with their final letters swapped, and their counts."""
        letters = set(self.letters)
        return {
            self.swap_final(word): count
            for word, count in counts.items()
            if count >= min_count and len(word) > 1 and letters.issuperset(word)
        }


def _characters(first: int, last: int) -> str:
    return "".join(map(chr, range(first, last + 1)))


LANGUAGES: Mapping[str, Language] = {
    "he": Language(_characters(0x5D0, 0x5EA), _characters(0x590, 0x5CF), "ךכםמןנףפץצ"),
    "ar": Language(_characters(0x621, 0x64A), _characters(0x64B, 0x65F)),
    "ms": Language(_characters(0x61, 0x7A) + _characters(0x41, 0x5A)),
}


def learn_reductions(counts: Mapping[str, int], letters: Collection[str] | None) -> Reductions:
    """Learn which letters are taken out of words of each length.

    Args:
        counts: Words of at least two letters -> how often they occur.
        letters: Those that may be taken out; None for all.
    """
    most = max(counts.values(), default=1)
    scores = {word: count / most for word, count in counts.items()}
    by_length: dict[int, list[str]] = {}
    for word in counts:
        by_length.setdefault(len(word), []).append(word)
    lengths = range(ROOT_LENGTH + 1, max(by_length, default=0) + 1)

    possible: dict[int, Mapping[str, float]] = {}
    for length in lengths:
        found: Counter[str] = Counter()
        for word in by_length.get(length, ()):
            for position in positions(length):
                shorter = taken_out(word, position)
                if shorter in counts and (letters is None or word[position] in letters):
                    found[f"{position}:{word[position]}"] += 1
        possible[length] = _shares(found)

    best: dict[int, Mapping[str, float]] = {}
    for length in lengths:
        chosen: Counter[str] = Counter()
        for word in by_length.get(length, ()):
            candidates = []
            for key, position, letter in parsed(possible[length]):
                if word[position] == letter and taken_out(word, position) in counts:
                    shorter = taken_out(word, position)
                    candidates.append((possible[length][key] * scores[shorter], key))
                    if len(candidates) == BEAM_WIDTH:
                        break
            if candidates:
                product, key = max(candidates, key=lambda candidate: candidate[0])
                chosen[key] += 1
                scores[word] *= product
        if chosen:
            best[length] = _shares(chosen)
    return best


class WordSplinterer:
    """Take words apart and put them together.

    Args:
        reductions: What ``learn_reductions`` returned.
    """

    def __init__(self, reductions: Reductions) -> None:
        self._steps = {
            length: [
                (key, position, letter, shares[key]) for key, position, letter in parsed(shares)
            ]
            for length, shares in reductions.items()
        }

    def take_apart(self, word: str) -> list[str]:
        """Return the letters that stay, in order, then the reductions, innermost first."""
        taken: list[str] = []
        while len(word) > ROOT_LENGTH:
            step = self._best_step(word)
            if step is None:
                break
            key, position = step
            taken.append(key)
            word = taken_out(word, position)
        return [*word, *reversed(taken)]

    def _best_step(self, word: str) -> tuple[str, int] | None:
        """Return the first reduction of the most probable three."""
        paths: list[tuple[float, str, tuple[str, int] | None]] = [(1.0, word, None)]
        for _ in range(min(BEAM_DEPTH, len(word) - ROOT_LENGTH)):
            longer: list[tuple[float, str, tuple[str, int] | None]] = []
            for score, rest, first in paths:
                taken = 0
                for key, position, letter, share in self._steps.get(len(rest), ()):
                    if rest[position] == letter:
                        step = first or (key, position)
                        longer.append((score * share, taken_out(rest, position), step))
                        taken += 1
                        if taken == BEAM_WIDTH:
                            break
            paths = longer
        return max(paths, key=lambda path: path[0])[2] if paths else None


def put_together(units: Sequence[str]) -> str:
    """Return the word that ``take_apart`` took apart."""
    num_letters = next((i for i, unit in enumerate(units) if ":" in unit), len(units))
    word = "".join(units[:num_letters])
    for unit in units[num_letters:]:
        position, letter = _parse(unit)
        at = position if position >= 0 else len(word) + 1 + position
        word = word[:at] + letter + word[at:]
    return word


def positions(length: int) -> range:
    """Return the positions of a word's letters: 0.. in its first half, -1.. in its second."""
    return range(-(length // 2), length // 2 + length % 2)


def taken_out(word: str, position: int) -> str:
    """Return the word without the letter at a position."""
    at = position % len(word)
    return word[:at] + word[at + 1 :]


def parsed(keys: Collection[str]) -> list[tuple[str, int, str]]:
    """Return each reduction with its position and its letter."""
    return [(key, *_parse(key)) for key in keys]


def _parse(key: str) -> tuple[int, str]:
    position, _, letter = key.partition(":")
    return int(position), letter


def _shares(counts: Mapping[str, int]) -> Mapping[str, float]:
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {key: count / total for key, count in ordered}
