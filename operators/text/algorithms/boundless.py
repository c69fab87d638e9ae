"""BoundlessBPE's model: the text file of the authors' programs, and how it takes words apart."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from operators.errors import SetupError
from operators.text.algorithms.byte_level import BYTES, spelling

Kind = Literal["word", "boundless", "superbpe"]
_HEAD = "BoundlessBPE v2 "
_ONE_PASS_HEAD = "word v1"
NEVER = 1 << 62
"""An index that no operation has."""


@dataclass(slots=True)
class Merge:
    """Two tokens become one.

    Attributes:
        index: Place among merges and deletions.
        left: Token.
        right: Token.
        count: How often it was done in training.
        makes_word: Some word became this one token.
    """

    index: int
    left: bytes
    right: bytes
    count: int
    makes_word: bool


@dataclass(slots=True)
class Deletion:
    """A token is taken apart again.

    Attributes:
        index: Place among merges and deletions.
        token: Token.
    """

    index: int
    token: bytes


@dataclass(slots=True)
class Operations:
    """What is done with words, or with runs of them, in the order of ``index``.

    Attributes:
        settings: How they were trained, and how text is cut; as in the file.
        merges: Of several that make one token the first is first.
        deletions: Any order.
    """

    settings: dict[str, Any]
    merges: list[Merge] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)


@dataclass
class BoundlessModel:
    """A whole tokenizer.

    Attributes:
        kind: ``word`` has no merges across words.
        vocabulary: Token -> count in training; the order is that of the ids.
        supers: Those tokens that span words.
        special_tokens: Their ids follow.
        words: What is done inside words.
        runs: What is done with runs of words; None for ``word``.
        is_one_pass: Words and runs of them have one order of operations (the authors' older
            program): words are joined before what comes later takes them apart, and nothing that
            comes earlier is done after it. Else all is done inside words first.
    """

    kind: Kind
    vocabulary: dict[bytes, int]
    supers: frozenset[bytes]
    special_tokens: tuple[str, ...]
    words: Operations
    runs: Operations | None
    is_one_pass: bool = False

    def __post_init__(self) -> None:
        self._merge_indices: dict[tuple[bytes, bytes], list[int]] = {}
        self._first_pair: dict[bytes, tuple[bytes, bytes]] = {}
        self._deletion_indices: dict[bytes, list[int]] = {}
        for merge in self.words.merges:
            pair = merge.left, merge.right
            self._merge_indices.setdefault(pair, []).append(merge.index)
            self._first_pair.setdefault(merge.left + merge.right, pair)
        for deletion in self.words.deletions:
            self._deletion_indices.setdefault(deletion.token, []).append(deletion.index)

    @cached_property
    def ids(self) -> Mapping[bytes, int]:
        """Token -> id."""
        return {token: i for i, token in enumerate(self.vocabulary)}

    @cached_property
    def reachable(self) -> frozenset[bytes]:
        """Tokens whose own bytes become this one token."""
        inside = (token for token in self.vocabulary if token not in self.supers)
        return frozenset(token for token in inside if self.operate(token) == [token])

    def tokens_of_word(self, word: bytes, *, lossless: bool = True) -> list[bytes]:
        """Return the tokens of a word.

        Args:
            word: Not empty.
            lossless: Take a token that is not in the vocabulary apart further.
        """
        if word in self.reachable:
            return [word]
        tokens = self.operate(word)
        if not lossless or all(token in self.ids for token in tokens):
            return tokens
        return [part for token in tokens for part in self._known_parts(token)]

    def operate(self, word: bytes) -> list[bytes]:
        """Merge and delete in a word's bytes, in the order in which training did."""
        *_, (_, tokens) = self._steps(word)
        return tokens

    def when_whole(self, word: bytes) -> tuple[int, int, int]:
        """Return when a word is one token, by the indices of operations.

        It is one token after the first of three operations until the second, and after the third;
        ``NEVER`` stands for what does not happen. No token is deleted twice in one pass.
        """
        bounds: list[int] = []
        for index, tokens in self._steps(word):
            if (len(tokens) == 1) != (len(bounds) % 2 == 1):
                bounds.append(index)
        since, until, again, *_ = [*bounds, NEVER, NEVER, NEVER]
        return since, until, again

    def _steps(self, word: bytes) -> Iterator[tuple[int, list[bytes]]]:
        """Yield the tokens of a word from its bytes on, each time after which operation."""
        tokens = [word[i : i + 1] for i in range(len(word))]
        done = -1
        while True:
            yield done, tokens
            merge, pair = _next(self._merge_indices, pairwise(tokens), done)
            deletion, token = _next(self._deletion_indices, tokens, done)
            if merge < deletion:
                tokens = merged(tokens, *pair)
            elif deletion < NEVER:
                parts = self.parts(token)
                tokens = [p for each in tokens for p in (parts if each == token else (each,))]
            else:
                return
            done = min(merge, deletion)

    def parts(self, token: bytes) -> Sequence[bytes]:
        """Return what a deletion puts in a token's place."""
        if self.words.settings["blowup"]:
            return [token[i : i + 1] for i in range(len(token))]
        return self._first_pair[token]

    def _known_parts(self, token: bytes) -> list[bytes]:
        if token in self.ids:
            return [token]
        return [known for part in self._first_pair[token] for known in self._known_parts(part)]

    def to_text(self) -> str:
        """Return the file."""
        lines = [f"{_HEAD}{self.kind}", "vocabulary", f"{len(self.vocabulary)}"]
        lines += [
            f"{i} {spelling(token)} {count} {int(token in self.supers)}"
            for i, (token, count) in enumerate(self.vocabulary.items())
        ]
        lines += ["special_tokens", f"{len(self.special_tokens)}"]
        first = len(self.vocabulary)
        lines += [f"{first + i} {name}" for i, name in enumerate(self.special_tokens)]
        for heading, operations in (("words", self.words), ("superwords", self.runs)):
            if operations is None:
                continue
            lines += [heading, json.dumps(operations.settings)]
            lines += ["merges", f"{len(operations.merges)}"]
            lines += [
                f"{m.index} {spelling(m.left)} {spelling(m.right)} {m.count} {int(m.makes_word)}"
                for m in operations.merges
            ]
            lines += ["deletions", f"{len(operations.deletions)}"]
            lines += [f"{d.index} {spelling(d.token)}" for d in operations.deletions]
        return "\n".join(lines) + "\n"


def model_of_text(text: str, where: str) -> BoundlessModel:
    """Return the model of a file, of either version.

    Args:
        text: The file.
        where: Its name, for messages.

    Raises:
        SetupError: it is another file.
    """
    lines = _Lines(text.split("\n"))
    try:
        head = lines.take()
        if head == _ONE_PASS_HEAD:
            return _one_pass_model(lines)
        kind = head.removeprefix(_HEAD)
        if kind not in ("word", "boundless", "superbpe") or kind == head:
            raise ValueError(f"it begins with {head[:60]!r}")
        rows = [line.split(" ") for line in lines.section("vocabulary")]
        vocabulary = {_token(row[1]): int(row[2]) for row in rows}
        supers = frozenset(_token(row[1]) for row in rows if row[3] == "1")
        special = tuple(line.split(" ", 1)[1] for line in lines.section("special_tokens"))
        words = _operations(lines, "words")
        runs = None if kind == "word" else _operations(lines, "superwords")
    except (ValueError, IndexError, KeyError) as error:
        raise SetupError(
            f"{where}:{lines.number}: not a model of BoundlessBPE ({error})",
            hint=f"expected a text file that begins with {_ONE_PASS_HEAD!r}, or with {_HEAD!r} and "
            "word, boundless or superbpe",
        ) from None
    if len(vocabulary) != len(rows):
        raise SetupError(f"{where}: tokens stand twice in the vocabulary")
    return BoundlessModel(kind, vocabulary, supers, special, words, runs)  # type: ignore[arg-type]


def merged(tokens: Sequence[bytes], left: bytes, right: bytes) -> list[bytes]:
    """Return tokens in which a pair is one token, from left to right."""
    out: list[bytes] = []
    at = 0
    while at < len(tokens):
        if tokens[at] == left and at + 1 < len(tokens) and tokens[at + 1] == right:
            out.append(left + right)
            at += 2
        else:
            out.append(tokens[at])
            at += 1
    return out


class _Lines:
    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self.number = 0

    def take(self) -> str:
        self.number += 1
        if self.number > len(self._lines):
            raise ValueError("the file ends too early")
        return self._lines[self.number - 1]

    def expect(self, heading: str) -> None:
        line = self.take()
        if line != heading:
            raise ValueError(f"expected {heading!r}, found {line[:60]!r}")

    def section(self, heading: str) -> list[str]:
        self.expect(heading)
        return [self.take() for _ in range(int(self.take()))]

    def rows(self, num_fields: int) -> list[list[str]]:
        """Return the lines that a line with their number announces, cut at spaces."""
        found = []
        for _ in range(int(self.take())):
            fields = self.take().split(" ", num_fields - 1)
            if len(fields) != num_fields:
                raise ValueError(f"expected {num_fields} fields, found {len(fields)}")
            found.append(fields)
        return found


def _operations(lines: _Lines, heading: str) -> Operations:
    lines.expect(heading)
    operations = Operations(json.loads(lines.take()))
    for line in lines.section("merges"):
        index, left, right, count, flag = line.split(" ")
        operations.merges.append(
            Merge(int(index), _token(left), _token(right), int(count), flag == "1")
        )
    for line in lines.section("deletions"):
        index, token = line.split(" ")
        operations.deletions.append(Deletion(int(index), _token(token)))
    return operations


def _one_pass_model(lines: _Lines) -> BoundlessModel:
    """Return the model of a file "word v1", whose first line is read.

    Of a pair that is merged more than once the last time counts, and so with deletions, as in the
    authors' program. Counts are not in the file.
    """
    pattern = json.loads(lines.take())
    tokens, names = lines.rows(2), lines.rows(2)
    vocabulary = {_token(token): 0 for _, token in tokens}
    special = tuple(name for _, name in names)
    if [int(i) for i, _ in (*tokens, *names)] != list(range(len(vocabulary) + len(special))):
        raise ValueError("its ids do not follow one another")
    merges = [(int(i), _token(left), _token(right)) for i, left, right in lines.rows(3)]
    deletions = [(int(i), _token(token)) for i, token in lines.rows(2)]
    supers = [(int(i), _token(left), _token(right)) for i, left, right in lines.rows(3)]
    if super_deletions := lines.rows(2):
        raise ValueError(
            f"it deletes {len(super_deletions)} tokens across words, which its authors' program "
            "cannot do either"
        )
    indices = sorted([row[0] for row in merges + supers] + [i for i, _ in deletions])
    if indices != list(range(len(indices))):
        wrong = next(i for i, index in enumerate(indices) if i != index)
        raise ValueError(
            f"operation {wrong} has the number {indices[wrong]}; they must follow one another"
        )
    settings = {"main_regex": pattern, "script_specific_scripts": None, "blowup": True}
    words, runs = Operations(settings), Operations(settings)
    for found, into in ((merges, words), (supers, runs)):
        last = {(left, right): index for index, left, right in found}
        into.merges = [Merge(i, left, right, 0, False) for (left, right), i in last.items()]
    words.deletions = [
        Deletion(i, token) for token, i in {token: i for i, token in deletions}.items()
    ]
    spanning = frozenset(merge.left + merge.right for merge in runs.merges)
    return BoundlessModel("boundless", vocabulary, spanning, special, words, runs, True)


def _token(text: str) -> bytes:
    return bytes(BYTES[ord(character)] for character in text)


def _next(indices: Mapping[Any, list[int]], found: Iterable[Any], done: int) -> tuple[int, Any]:
    """Return the lowest index above ``done`` of what is found, and what it is."""
    best, what = NEVER, None
    for each in found:
        of_it = indices.get(each)
        if of_it is None:
            continue
        place = bisect_right(of_it, done)
        if place < len(of_it) and of_it[place] < best:
            best, what = of_it[place], each
    return best, what
