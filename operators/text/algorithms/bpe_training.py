"""Train byte-level BPE on counted pieces, and take such a training up again on other pieces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from operators.text.algorithms.pair_merging import PairMerger, words_of
from operators.text.training import Progress

PROGRESS_EVERY = 256


@dataclass(slots=True)
class Learnt:
    """A merge list and the tokens that it makes.

    Attributes:
        tokens: Id -> bytes, each once.
        merges: Pairs of tokens, in order.
        ids: Bytes -> id.
    """

    tokens: list[bytes]
    merges: list[tuple[bytes, bytes]] = field(default_factory=list)
    ids: dict[bytes, int] = field(default_factory=dict)


def learn_merges(
    pieces: Mapping[bytes, int],
    alphabet: Sequence[int],
    vocab_size: int,
    progress: Progress,
    *,
    min_count: int = 1,
    length_limit: int | None = None,
    inherited: Sequence[tuple[bytes, bytes]] = (),
    refuses: Callable[[bytes], bool] | None = None,
) -> Learnt:
    """Merge the most frequent pairs until there are ``vocab_size`` tokens.

    Args:
        pieces: Piece -> how often it stands in the corpus.
        alphabet: The bytes that are tokens from the first, in the order of their ids.
        vocab_size: Different tokens to end with; fewer when the pairs run out.
        progress: Told how many tokens there are.
        min_count: A pair that is rarer ends the training.
        length_limit: See ``PairMerger``.
        inherited: Merges to begin with, as far as their pairs are there.
        refuses: Says of a token whether it must not be made; inherited ones always are.
    """
    ids_of_bytes = np.zeros(256, np.int64)
    ids_of_bytes[list(alphabet)] = np.arange(len(alphabet))
    tokens = [bytes([byte]) for byte in alphabet]
    learnt = Learnt(tokens, ids={token: i for i, token in enumerate(tokens)})
    words, weights = words_of({p: n for p, n in pieces.items() if len(p) > 1}, ids_of_bytes)
    merger = PairMerger(words, weights, [1] * len(tokens), length_limit)
    if inherited:
        _inherit(merger, learnt, inherited, progress)
    while len(learnt.ids) < vocab_size:
        found = merger.pop()
        if found is None or 0 <= found.count < min_count:
            break
        token = learnt.tokens[found.left] + learnt.tokens[found.right]
        if refuses is not None and refuses(token):
            continue
        new = _add(learnt, found.left, found.right)
        merger.merge(found.left, found.right, new, found.entry)
        if len(learnt.merges) % PROGRESS_EVERY == 0:
            progress("merging", len(learnt.ids), vocab_size)
    progress("merging", vocab_size, vocab_size)
    return learnt


def _inherit(
    merger: PairMerger,
    learnt: Learnt,
    inherited: Sequence[tuple[bytes, bytes]],
    progress: Progress,
) -> None:
    merger.drain()
    for done, (left, right) in enumerate(inherited):
        first, second = learnt.ids.get(left), learnt.ids.get(right)
        if first is None or second is None:
            continue
        entry = merger.waiting_entry(first, second)
        if entry is None:
            continue
        new = _add(learnt, first, second)
        merger.merge(first, second, new, entry, queued=False)
        if done % PROGRESS_EVERY == 0:
            progress("inheriting merges", done, len(inherited))
    progress("inheriting merges", len(inherited), len(inherited))
    merger.queue_waiting()


def _add(learnt: Learnt, left: int, right: int) -> int:
    """Note a merge and return the id of its token: its old one when the spelling is there."""
    pair = learnt.tokens[left], learnt.tokens[right]
    learnt.merges.append(pair)
    token = pair[0] + pair[1]
    new = learnt.ids.get(token)
    if new is None:
        new = len(learnt.tokens)
        learnt.tokens.append(token)
        learnt.ids[token] = new
    return new
