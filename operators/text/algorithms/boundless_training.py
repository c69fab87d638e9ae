"""Train BoundlessBPE: words first, with tokens deleted again (PickyBPE), then across words."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np

from operators.base import Ragged
from operators.text.algorithms.boundless import BoundlessModel, Deletion, Merge, Operations
from operators.text.algorithms.counted_pairs import CountedPairs
from operators.text.algorithms.pair_merging import words_of
from operators.text.training import Progress

START = [*range(192), *range(194, 245)]
"""The bytes that are tokens from the first: all that can stand in UTF-8, and four that cannot."""

PROGRESS_EVERY = 64
Run = tuple[bytes, ...]


def train_words(
    words: Mapping[bytes, int],
    vocab_size: int,
    tau: float,
    settings: dict[str, Any],
    progress: Progress,
) -> BoundlessModel:
    """Merge the most frequent pairs inside words, and delete tokens that hardly stand alone.

    After each merge a side of it is deleted when at least ``tau`` of its occurrences went into the
    merge, and it is longer than a byte.

    Args:
        words: Word -> how often it stands in the corpus.
        vocab_size: Tokens to end with; fewer when the pairs run out.
        tau: From which share on; more than 1 deletes nothing.
        settings: For the model; with ``blowup`` a deleted token becomes its bytes, else the two
            tokens of its first merge.
        progress: Told how many tokens there are.
    """
    long_words = {word: count for word, count in words.items() if word}
    rows, weights = words_of(long_words, np.arange(256))
    pairs = CountedPairs(rows, weights, [bytes([byte]) for byte in range(256)])
    ids = {token: i for i, token in enumerate(pairs.tokens)}
    first_pair: dict[int, tuple[int, int]] = {}
    vocabulary = dict.fromkeys((bytes([byte]) for byte in START), 0)
    done = Operations(settings)
    index = 0
    while len(vocabulary) < vocab_size:
        best = pairs.best()
        if best is None:
            break
        left, right, count = best
        share = [count / pairs.count(left), count / pairs.count(right)]
        token = pairs.tokens[left] + pairs.tokens[right]
        new = ids.setdefault(token, len(pairs.tokens))
        first_pair.setdefault(new, (left, right))
        makes_word = pairs.merge(left, right, new)
        done.merges.append(Merge(index, pairs.tokens[left], pairs.tokens[right], count, makes_word))
        index += 1
        vocabulary.setdefault(token, 0)
        for side, part in zip((left, right), share, strict=True):
            text = pairs.tokens[side]
            if len(text) == 1 or part < tau:
                continue
            done.deletions.append(Deletion(index, text))
            index += 1
            pairs.split(side, list(text) if settings["blowup"] else first_pair[side])
            vocabulary.pop(text, None)
        if len(done.merges) % PROGRESS_EVERY == 0:
            progress("merging in words", len(vocabulary), vocab_size)
    progress("merging in words", vocab_size, vocab_size)
    counted = {token: pairs.count(ids[token]) for token in vocabulary}
    return BoundlessModel("word", counted, frozenset(), (), done, None)


def count_runs(
    documents: Iterable[Sequence[str]], is_eligible: Callable[[str], bool]
) -> Counter[Run]:
    """Return how often each run of two or more eligible words stands in the documents."""
    runs: Counter[Run] = Counter()
    for words in documents:
        for eligible, run in groupby(words, is_eligible):
            if eligible:
                found = tuple(word.encode() for word in run)
                if len(found) > 1:
                    runs[found] += 1
    return runs


def train_runs(
    model: BoundlessModel,
    runs: Mapping[Run, int],
    kind: Literal["boundless", "superbpe"],
    num_supers: int,
    settings: dict[str, Any],
    progress: Progress,
) -> BoundlessModel:
    """Merge the most frequent pairs of neighbouring words, in runs of words that are tokens.

    ``boundless`` starts the vocabulary anew: a merge across words goes before the next one inside
    words when it is more frequent, up to as many tokens as the model has. ``superbpe`` adds
    ``num_supers`` tokens to the model's.

    Args:
        model: What ``train_words`` made.
        runs: Run of words -> how often it stands in the corpus.
        kind: Which of the two.
        num_supers: Tokens to add.
        settings: For the merges across words.
        progress: Told how many tokens there are.
    """
    numbers: dict[bytes, int] = {}
    for run in runs:
        for word in run:
            numbers.setdefault(word, len(numbers))
    values = np.array([numbers[word] for run in runs for word in run], np.int32)
    lengths = np.fromiter(map(len, runs), np.int64, len(runs))
    rows = Ragged(values, np.concatenate(([0], np.cumsum(lengths))))
    weights = np.fromiter(runs.values(), np.int64, len(runs))
    pairs = CountedPairs(rows, weights, list(numbers))
    inside: list[Merge | Deletion] = [*model.words.merges, *model.words.deletions]
    waiting = sorted(inside, key=lambda each: each.index, reverse=True)
    used = Operations(model.words.settings)
    vocabulary = list(model.vocabulary) if kind == "superbpe" else [bytes([b]) for b in START]
    size = len(model.vocabulary) + (num_supers if kind == "superbpe" else 0)
    if kind == "superbpe":
        used, waiting = model.words, []
    tokens = dict.fromkeys(vocabulary)
    supers: set[bytes] = set()
    across = Operations(settings)
    while len(tokens) < size:
        while waiting and isinstance(head := waiting[-1], Deletion):
            waiting.pop()
            used.deletions.append(head)
            tokens.pop(head.token, None)
        best = pairs.best()
        merge = waiting[-1] if waiting else None
        if best is not None and (not isinstance(merge, Merge) or best[2] > merge.count):
            left, right, count = best
            token = pairs.tokens[left] + pairs.tokens[right]
            new = numbers.setdefault(token, len(pairs.tokens))
            makes_run = pairs.merge(left, right, new)
            parts = pairs.tokens[left], pairs.tokens[right]
            across.merges.append(Merge(len(across.merges), *parts, count, makes_run))
            tokens.setdefault(token)
            supers.add(token)
        elif isinstance(merge, Merge):
            used.merges.append(merge)
            waiting.pop()
            tokens.setdefault(merge.left + merge.right)
        else:
            break
        if len(across.merges) % PROGRESS_EVERY == 0:
            progress("merging across words", len(tokens), size)
    progress("merging across words", size, size)
    counted = {t: pairs.count(numbers[t]) if t in numbers else 0 for t in tokens}
    return BoundlessModel(kind, counted, frozenset(supers), (), used, across)


def split_at_rare(runs: Mapping[Run, int], min_count: int, longest: int) -> Counter[Run]:
    """Return runs cut, from left to right, into the longest parts that are frequent anywhere.

    Args:
        runs: Run of words -> how often it stands in the corpus.
        min_count: What is frequent.
        longest: Words in a part.
    """
    frequent = _frequent_parts(runs, min_count, longest)
    parts: Counter[Run] = Counter()
    for run, count in runs.items():
        at = 0
        while at < len(run):
            stop = at + 1
            while stop < len(run) and run[at : stop + 1] in frequent:
                stop += 1
            parts[run[at:stop]] += count
            at = stop
    return parts


def _frequent_parts(runs: Mapping[Run, int], min_count: int, longest: int) -> set[Run]:
    """Return all parts of two words or more that stand at least ``min_count`` times in the runs."""
    frequent: set[Run] = set()
    for length in range(2, longest + 1):
        counts: Counter[Run] = Counter()
        for run, count in runs.items():
            for at in range(len(run) - length + 1):
                # A part is only as frequent as its own parts.
                if length == 2 or (
                    run[at : at + length - 1] in frequent and run[at + 1 : at + length] in frequent
                ):
                    counts[run[at : at + length]] += count
        found = {part for part, count in counts.items() if count >= min_count}
        if not found:
            break
        frequent |= found
    return frequent
