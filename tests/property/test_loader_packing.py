"""Packing is what the textbook says, for any lengths."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loader import Packed, TokenDataset, varlen
from pipeline.loader.packed import OpenPacked
from pipeline.loader.packing import Method, cut, pack
from tests.token_data import CORPORA, Corpus

CAPACITY = 20
PAD = 9
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=40)


def packed(lengths: Sequence[int], method: Method, capacity: int = CAPACITY) -> list[list[int]]:
    """Return the pieces of each pack."""
    stops, order = pack(np.array(lengths, np.int64), capacity, method)
    return [order[a:b].tolist() for a, b in pairwise(stops)]


def textbook(lengths: Sequence[int], order: Sequence[int], *, best: bool) -> list[list[int]]:
    """Put pieces one after the other into the first pack with room, or the fullest."""
    packs: list[list[int]] = []
    for piece in order:
        room = [CAPACITY - sum(lengths[i] for i in found) for found in packs]
        fits = [n for n in range(len(packs)) if room[n] >= lengths[piece]]
        if not fits:
            packs.append([piece])
        else:
            packs[min(fits, key=room.__getitem__) if best else fits[0]].append(piece)
    return packs


def fewest(lengths: Sequence[int]) -> int:
    """Return the least number of packs, by trying everything."""
    best = len(lengths)

    def place(number: int, rooms: list[int]) -> None:
        nonlocal best
        if len(rooms) >= best:
            return
        if number == len(lengths):
            best = len(rooms)
            return
        for n in range(len(rooms)):
            if rooms[n] >= lengths[number]:
                place(number + 1, [r - lengths[number] * (i == n) for i, r in enumerate(rooms)])
        place(number + 1, [*rooms, CAPACITY - lengths[number]])

    place(0, [])
    return best


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS)
def test_first_fit_is_first_fit(lengths: list[int]) -> None:
    assert packed(lengths, "first_fit") == textbook(lengths, range(len(lengths)), best=False)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS)
def test_best_fit_fills_packs_as_best_fit_decreasing_does(lengths: list[int]) -> None:
    """Which of equally full packs is taken is free, how full they become is not."""
    falling = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    want = textbook(lengths, falling, best=True)
    found = packed(lengths, "best_fit")
    assert sorted(i for pieces in found for i in pieces) == list(range(len(lengths)))
    assert all(pieces == sorted(pieces) for pieces in found)
    assert [pieces[0] for pieces in found] == sorted(pieces[0] for pieces in found)
    fills = [sorted(sum(lengths[i] for i in pieces) for pieces in packs) for packs in (found, want)]
    assert fills[0] == fills[1]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, CAPACITY), max_size=8))
def test_packs_are_few(lengths: list[int]) -> None:
    """Proved bounds: 17/10 of the fewest for first fit, 3/2 for best fit decreasing."""
    least = fewest(lengths)
    assert len(packed(lengths, "first_fit")) <= 17 * least // 10
    assert len(packed(lengths, "best_fit")) <= 3 * least // 2


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 50), max_size=20),
    capacity=st.integers(1, 30),
    skip_long=st.booleans(),
)
def test_cut_pieces_are_the_samples(lengths: list[int], capacity: int, skip_long: bool) -> None:
    starts, counts = cut(np.array(lengths, np.int64), capacity, skip_long=skip_long)
    want, done = [], 0
    for length in lengths:
        if not (skip_long and length > capacity):
            want += [(done + at, min(capacity, length - at)) for at in range(0, length, capacity)]
        done += length
    assert list(zip(starts.tolist(), counts.tolist(), strict=True)) == want


def test_a_pack_may_hold_more_than_there_are_tokens() -> None:
    assert packed([3, 1, 2], "first_fit", 10**6) == [[0, 1, 2]]
    assert packed([3, 1, 2], "best_fit", 10**6) == [[0, 1, 2]]
    assert packed([], "first_fit") == packed([], "best_fit") == []


@settings(max_examples=60, deadline=None)
@given(
    corpus=CORPORA,
    method=st.sampled_from(["first_fit", "best_fit"]),
    long=st.sampled_from(["cut", "skip"]),
    group_samples=st.sampled_from([1, 4, 1000]),
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
)
def test_packs_hold_every_piece_once(
    corpus: Corpus,
    method: Method,
    long: Literal["cut", "skip"],
    group_samples: int,
    batch_size: int,
    shuffle: bool,
) -> None:
    view = Packed(
        "ids",
        CAPACITY,
        method=method,
        pad=PAD,
        long=long,
        group_samples=group_samples,
        loss_mask="learn",
    )
    with corpus.written() as url:
        data = TokenDataset(
            url, batch_size=batch_size, view=view, shuffle=shuffle, cache_dir=f"{url}/cache"
        )
        opened = cast(OpenPacked, data.view)
        batches = list(data)
        everything = opened.read(np.arange(opened.num_items), 0)
    samples = [s for s in corpus.samples() if long == "cut" or len(s) <= CAPACITY]
    pieces = [s[i : i + CAPACITY] for s in samples for i in range(0, len(s), CAPACITY)]
    found = [piece for row in range(opened.num_items) for piece in pieces_of(everything, row)]
    assert sorted(found) == sorted([int(corpus.ids[i]) for i in piece] for piece in pieces)
    for batch in batches:
        for row in range(len(batch["ids"])):
            assert_row_is_consistent(corpus, batch, row)
        bounds = np.flatnonzero(batch["position_ids"].flatten() == 0).tolist()
        assert batch["cu_seqlens"].tolist() == [*bounds, batch["ids"].numel()]
        assert batch["max_seqlen"] == max(np.diff(batch["cu_seqlens"]))
        assert varlen(batch["position_ids"][:1])[0][-1] == CAPACITY
    assert sum(len(batch["ids"]) for batch in batches) == opened.num_items
    tokens = sum(map(len, pieces))
    assert opened.num_tokens == tokens
    assert opened.skipped_tokens == len(corpus.ids) - tokens
    assert opened.skipped_samples == len(corpus.lengths) - len(samples)
    assert len(opened.stops) <= max(1, -(-len(corpus.lengths) // group_samples))


def pieces_of(batch: Mapping[str, Any], row: int) -> list[list[int]]:
    """Return the ids of each piece of a row."""
    documents = batch["document_ids"][row]
    return [batch["ids"][row][documents == n].tolist() for n in range(int(documents.max()) + 1)]


def assert_row_is_consistent(corpus: Corpus, batch: Mapping[str, Any], row: int) -> None:
    documents = batch["document_ids"][row].tolist()
    there = [document >= 0 for document in documents]
    ids = batch["ids"][row].tolist()
    assert there == sorted(there, reverse=True)
    assert documents[: sum(there)] == sorted(documents[: sum(there)])
    assert all(token == PAD for token, is_there in zip(ids, there, strict=True) if not is_there)
    starts = {document: documents.index(document) for document in documents}
    assert batch["position_ids"][row].tolist() == [
        place - starts[document] for place, document in enumerate(documents)
    ]
    assert batch["loss_mask"][row].tolist() == [  # an id tells its place: there are few of them
        is_there and bool(corpus.learn[token]) for token, is_there in zip(ids, there, strict=True)
    ]
