"""Learn a lexicon of chunks from unspaced text: the reader of Less-is-Better.

The lexicon is an ordered list, the most useful chunks first. Reading is greedy (the longest chunk
that fits); chunks that stand side by side may become a new one; a chunk that helps to read is
moved towards the front, one without which reading is as good towards the back; and what stays at
the end without being used is forgotten.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from operators.text.algorithms.compiled import compiled


@dataclass(frozen=True, slots=True)
class Habits:
    """How the reader learns.

    Attributes:
        life: Articles that a chunk on probation survives without being used.
        max_len: Characters of the longest chunk.
        memory_in: Probability that two neighbours are taken note of.
        memory_out: Share of the lexicon's end that goes on probation after each article.
        update_rate: Share of its rank by which a chunk is moved.
        mini_gap: Characters of the longest unknown string that may become a chunk.
    """

    life: int = 10
    max_len: int = 12
    memory_in: float = 0.25
    memory_out: float = 0.0001
    update_rate: float = 0.2
    mini_gap: int = 2


@dataclass(slots=True)
class _Trial:
    """A chunk on trial: was reading from its start any better than with a shorter one?

    Attributes:
        reach: How far the reading with the shorter chunk has come.
        with_it: What was read from its start on; "" for an unknown character.
        without_it: The other reading, without its unknown characters.
        num_unknown: Unknown characters of the other reading.
    """

    reach: int
    with_it: list[str]
    without_it: list[str]
    num_unknown: int = 0


@dataclass(slots=True)
class Reader:
    """A lexicon that grows and shrinks by reading.

    Attributes:
        habits: How it learns.
        draw: Gives random numbers in [0, 1).
        lexicon: Chunks, the most useful first.
        on_probation: Chunk -> articles it has left.
    """

    habits: Habits
    draw: Callable[[], float]
    lexicon: list[str] = field(default_factory=list)
    on_probation: dict[str, int] = field(default_factory=dict)
    _ranks: dict[str, int] = field(default_factory=dict)

    def begin(self, characters: Iterable[str]) -> None:
        """Start with single characters, all of them on probation."""
        self.lexicon = list(characters)
        self.on_probation = dict.fromkeys(self.lexicon, self.habits.life)
        self._ranks = {chunk: rank for rank, chunk in enumerate(self.lexicon)}

    def read(self, sentences: Sequence[str]) -> None:
        """Read one article and learn from it."""
        rewards: list[tuple[str, int]] = []
        seen_once: set[str] = set()
        for sentence in sentences:
            self._read_sentence(sentence, rewards, seen_once)
        self._forget()
        self._move(rewards)
        first = int((1 - self.habits.memory_out) * len(self.lexicon))
        for chunk in self.lexicon[first:]:
            self.on_probation.setdefault(chunk, self.habits.life)
        self._ranks = {chunk: rank for rank, chunk in enumerate(self.lexicon)}

    def longest_two(self, text: str, start: int) -> tuple[str, str]:
        """Return the second longest and the longest chunk at a position, "" where there is none."""
        longest = ""
        for end in range(min(len(text), start + self.habits.max_len), start, -1):
            chunk = text[start:end]
            if chunk in self._ranks:
                if longest:
                    return chunk, longest
                longest = chunk
        return "", longest

    def _read_sentence(
        self, text: str, rewards: list[tuple[str, int]], seen_once: set[str]
    ) -> None:
        trials: dict[str, _Trial] = {}
        last, last_known = "", True
        at = 0
        while at < len(text):
            for chunk in [chunk for chunk, trial in trials.items() if trial.reach <= at]:
                self._advance(trials[chunk], text, at)
                if trials[chunk].reach == at:
                    self._judge(chunk, trials.pop(chunk), rewards)
            shorter, chunk = self.longest_two(text, at)
            for trial in trials.values():
                trial.with_it.append(chunk)
            if not chunk:
                last = text[at] if last_known else last + text[at]
                last_known = False
                at += 1
                continue
            self._take_note(last, last_known, chunk, seen_once)
            if len(chunk) > 1 and shorter:
                trials[chunk] = _Trial(at + len(shorter), [chunk], [shorter])
            else:
                self.on_probation.pop(chunk, None)
            last, last_known = chunk, True
            at += len(chunk)

    def _advance(self, trial: _Trial, text: str, at: int) -> None:
        while trial.reach < at:
            _, chunk = self.longest_two(text, trial.reach)
            if chunk:
                trial.without_it.append(chunk)
                trial.reach += len(chunk)
            else:
                trial.num_unknown += 1
                trial.reach += 1

    def _judge(self, chunk: str, trial: _Trial, rewards: list[tuple[str, int]]) -> None:
        known = [read for read in trial.with_it if read]
        num_unknown = len(trial.with_it) - len(known)
        num_others = len(trial.without_it) + trial.num_unknown
        is_redundant = num_unknown == trial.num_unknown and (
            len(known) > num_others
            or (
                len(known) == num_others
                and sum(map(self._ranks.__getitem__, known))
                > sum(map(self._ranks.__getitem__, trial.without_it))
            )
        )
        if num_unknown > trial.num_unknown or is_redundant:
            rewards.append((chunk, 1))
            rewards.append((self.longest_two(chunk[:-1], 0)[1], -1))
        else:
            rewards.append((chunk, -1))
            self.on_probation.pop(chunk, None)

    def _take_note(self, last: str, last_known: bool, chunk: str, seen_once: set[str]) -> None:
        """Learn what stands before a chunk, joined with it if known, when it is seen twice.

        The authors' code compares 2, the length of a pair, where it means the last chunk's.
        """
        habits = self.habits
        if 2 + len(chunk) > habits.max_len or self.draw() >= habits.memory_in:
            return
        if not last_known:
            candidate = last if 1 <= len(last) <= habits.mini_gap else ""
        else:
            candidate = last + chunk if len(last) + len(chunk) <= habits.max_len else ""
        if not candidate or candidate in self._ranks:
            return
        if candidate in seen_once:
            self._ranks[candidate] = len(self.lexicon)
            self.lexicon.append(candidate)
        seen_once.add(candidate)

    def _forget(self) -> None:
        dead = {chunk for chunk, lives in self.on_probation.items() if lives <= 1}
        self.on_probation = {
            chunk: lives - 1 for chunk, lives in self.on_probation.items() if chunk not in dead
        }
        self.lexicon = [chunk for chunk in self.lexicon if chunk not in dead]

    def _move(self, rewards: Sequence[tuple[str, int]]) -> None:
        numbers = {chunk: number for number, chunk in enumerate(self.lexicon)}
        kept = [(numbers[chunk], step) for chunk, step in rewards if chunk in numbers]
        order = np.arange(len(self.lexicon))
        pairs = np.array(kept, np.int64).reshape(-1, 2)
        size = _moved(order, pairs[:, 0].copy(), pairs[:, 1].copy(), self.habits.update_rate)
        for number in order[size:].tolist():
            self.on_probation.pop(self.lexicon[number], None)
        self.lexicon = [self.lexicon[number] for number in order[:size].tolist()]


@compiled
def _moved(
    order: np.ndarray, numbers: np.ndarray, directions: np.ndarray, update_rate: float
) -> int:
    """Move chunks in ``order``, one after another, and return how many are still in it.

    Those that would move past its end stand behind.
    """
    size = len(order)
    for i in range(len(numbers)):
        rank = 0
        while rank < size and order[rank] != numbers[i]:
            rank += 1
        if rank in (0, size):
            continue
        target = rank + directions[i] * (int(rank * update_rate) + 1)
        if target >= size:
            size -= 1
            target = size
        while rank < target:
            order[rank] = order[rank + 1]
            rank += 1
        while rank > target:
            order[rank] = order[rank - 1]
            rank -= 1
        order[target] = numbers[i]
    return size
