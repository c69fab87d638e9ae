"""MixedDataset: budgets, ends, workers, states, and one test per way of failing."""

import json
import multiprocessing
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from operators.base import FieldSpec
from pipeline.errors import ContractError, FingerprintMismatchError, IntegrityError, SetupError
from pipeline.loader import (
    BlockShuffle,
    MixedDataset,
    Packed,
    Samples,
    Source,
    TokenDataset,
    Windows,
)
from pipeline.loader.proportions import MAX_TOTAL_WEIGHT, Proportions, whole_weights
from pipeline.loader.view import View
from tests.loader_data import FIELDS, rows, write_data_set

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "pipeline.loader"])  # imported once for all

WEB, BOOKS = 20, 6  # samples
KEY = Samples(["key"])


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data_set(tmp_path_factory.mktemp("web"), rows(WEB))


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data_set(tmp_path_factory.mktemp("books"), rows(BOOKS, seed=1))


def mixture(*sources: Source, **options: Any) -> MixedDataset:
    return MixedDataset(list(sources), **{"batch_size": 4, **options})


def items(batches: Any) -> list[list[tuple[int, int]]]:
    return [
        list(zip(batch["source"].tolist(), map(int, batch["key"]), strict=True))
        for batch in batches
    ]


def flat(batches: Any) -> list[tuple[int, int]]:
    return [item for batch in items(batches) for item in batch]


# Shares and ends


def test_budgets_of_epochs_are_spent_to_the_item(web: str, books: str) -> None:
    data = mixture(Source(web, epochs=0.5, view=KEY), Source(books, epochs=3, view=KEY))
    found = flat(data)
    assert len(data) == 7
    assert data.num_positions == len(found) == 10 + 18
    own = [key for source, key in found if source == 1]
    for epoch in range(3):
        alone = TokenDataset(books, batch_size=BOOKS, fields=["key"], epoch=epoch)
        assert own[epoch * BOOKS : (epoch + 1) * BOOKS] == [
            int(k) for k in next(iter(alone))["key"]
        ]
    assert len({key for source, key in found if source == 0}) == 10


def test_budgets_of_tokens_count_the_ids_that_are_read(web: str, books: str) -> None:
    """``image`` holds 6 ids a sample, ``text`` a varying number, which the index adds up."""
    data = mixture(
        Source(web, tokens=60, view=Samples(["image"])),
        Source(books, epochs=1, view=Samples(["image"])),
    )
    assert data.num_positions == 10 + BOOKS
    text = len(rows(WEB)["text"].values)
    one = mixture(Source(web, tokens=text, view=Samples(["text", "caption"])))
    assert one.num_positions == WEB
    both = mixture(Source(web, tokens=text + 6 * WEB, view=Samples(["text", "image"])))
    assert both.num_positions == WEB


def test_num_tokens_is_the_length_of_a_mixture_with_weights(web: str, books: str) -> None:
    image = Samples(["image"])
    sources = [Source(web, weight=2, view=image), Source(books, weight=1, view=image)]
    assert mixture(*sources, num_tokens=60).num_positions == 10


def test_a_mixture_that_nothing_ends_has_no_length(web: str, books: str) -> None:
    data = mixture(Source(web, weight=0.75, view=KEY), Source(books, weight=0.25, view=KEY))
    with pytest.raises(TypeError, match="the mixture never ends"):
        len(data)
    found = [item for batch in islice(data, 60) for item in flat([batch])]
    assert [source for source, _ in found].count(1) == 60
    own = [key for source, key in found if source == 1]
    assert all(sorted(own[i : i + BOOKS]) == list(range(BOOKS)) for i in range(0, 60, BOOKS))


def test_max_epochs_end_the_mixture_before_the_next_epoch(web: str, books: str) -> None:
    data = mixture(Source(web, weight=1, view=KEY), Source(books, weight=1, view=KEY, max_epochs=2))
    found = flat(data)
    assert [source for source, _ in found].count(1) == 2 * BOOKS
    assert abs(len(found) - 4 * BOOKS) <= 1
    longer = Proportions([1, 1]).sources(np.arange(len(found) + 1))[0]
    assert longer[-1] == 1
    assert (
        mixture(
            *(Source(u, weight=1, max_epochs=2) for u in (web, books)), num_items=5
        ).num_positions
        == 5
    )


def test_without_shuffle_sources_come_in_stored_order(web: str, books: str) -> None:
    data = mixture(
        Source(web, epochs=1, view=KEY), Source(books, epochs=2, view=KEY), shuffle=False
    )
    found = flat(data)
    assert [key for source, key in found if source == 0] == list(range(WEB))
    assert [key for source, key in found if source == 1] == list(range(BOOKS)) * 2


def test_block_shuffle_deals_out_the_units_of_every_source(web: str, books: str) -> None:
    blocks = BlockShuffle(streams=2, block_items=4)
    data = mixture(
        Source(web, epochs=1, view=KEY), Source(books, epochs=2, view=KEY), shuffle=blocks
    )
    found = flat(data)
    for source, url, epochs in ((0, web, 1), (1, books, 2)):
        own = [key for one, key in found if one == source]
        alone: list[int] = []
        for epoch in range(epochs):
            one = TokenDataset(url, batch_size=4, fields=["key"], shuffle=blocks, epoch=epoch)
            alone += [int(key) for batch in one for key in batch["key"]]
        assert own == alone
    other = mixture(
        Source(web, epochs=1, view=KEY), Source(books, epochs=2, view=KEY), shuffle=True
    )
    with pytest.raises(FingerprintMismatchError, match=r"shuffle .*'streams': 2.* -> True"):
        other.load_state_dict(data.state_dict())


def test_padding_repeats_the_beginning_of_the_mixture(web: str, books: str) -> None:
    sources = [Source(web, epochs=1, view=KEY), Source(books, epochs=1, view=KEY)]
    data = [mixture(*sources, uneven="pad", rank=rank, world_size=2) for rank in range(2)]
    found = [list(one) for one in data]
    assert [len(one) for one in found] == [len(one) for one in data] == [4, 4]
    assert [batch["padding"].sum() for one in found for batch in one] == [0, 0, 0, 3] * 2
    # Position 26 + k holds what stands at position k; rank r has positions r, r + 2, ...
    for rank in range(2):
        assert items(found[rank])[-1][1:] == items(found[rank])[0][:3]


def test_a_rank_may_have_nothing(web: str) -> None:
    sources = [Source(web, weight=1, view=KEY)]
    data = [mixture(*sources, num_items=1, rank=rank, world_size=3) for rank in range(3)]
    assert [len(one) for one in data] == [len(list(one)) for one in data] == [1, 0, 0]


def test_a_source_of_weight_0_gives_nothing(web: str, books: str) -> None:
    data = mixture(Source(web, weight=1), Source(books, weight=0, max_epochs=1), num_items=30)
    assert {source for batch in data for source in batch["source"].tolist()} == {0}


def test_weights_are_taken_as_they_are_written() -> None:
    weights = [Fraction(str(w)) for w in (0.1, 0.2, 0.7)]
    assert whole_weights(weights) == [1, 2, 7]
    assert whole_weights([Fraction(0), Fraction(0)]) == [0, 0]


def test_many_light_sources_do_not_hold_back_the_heavy_one() -> None:
    """In the order of due times the heavy source would be 25 items behind after 150."""
    proportions = Proportions([100] + [1] * 100)
    found, _ = proportions.sources(np.arange(200))
    heavy = np.cumsum(found == 0)
    assert np.abs(heavy - np.arange(1, 201) / 2).max() <= 0.5
    assert max(proportions.bound(source) for source in range(101)) < Fraction(21, 10)


# Batches


def test_manifests_and_the_batch_of_one_source(web: str, books: str) -> None:
    data = mixture(Source(web, epochs=1), Source(books, epochs=1))
    assert [m.index_sha256 for m in data.manifests] == [
        TokenDataset(url, batch_size=1).manifest.index_sha256 for url in (web, books)
    ]
    alone = mixture(Source(books, epochs=1), batch_size=BOOKS)
    [batch], [same] = alone, TokenDataset(books, batch_size=BOOKS)
    assert torch.equal(batch["image"], same["image"])
    assert batch["source"].dtype == torch.int64


@pytest.mark.parametrize("view", [Windows("text", 16, boundaries=True), Packed("text", 24)])
def test_boundaries_are_those_of_the_whole_batch(
    web: str, books: str, tmp_path: Path, view: View
) -> None:
    """They are of all items together, so those of the sources cannot just be joined."""
    sources = [Source(web, epochs=1, view=view), Source(books, epochs=2, view=view)]
    data = mixture(*sources, cache_dir=tmp_path)
    want: dict[bytes, bytes] = {}  # ids of an item -> where its samples begin
    for url in (web, books):
        for one in TokenDataset(url, batch_size=1, view=view, cache_dir=tmp_path):
            want[one["text"].numpy().tobytes()] = one["cu_seqlens"].numpy().tobytes()
    num_items = 0
    for batch in data:
        ids, bounds = batch["text"].numpy(), batch["cu_seqlens"].numpy()
        length = ids.shape[1]
        num_items += len(ids)
        for i, row in enumerate(ids):
            own = bounds[(bounds >= i * length) & (bounds <= (i + 1) * length)] - i * length
            assert own.astype(bounds.dtype).tobytes() == want[row.tobytes()]
        assert batch["max_seqlen"] == np.diff(bounds).max()
    assert num_items == data.num_positions


# Workers


def test_workers_change_nothing_and_hear_of_new_weights(web: str, books: str) -> None:
    def sources(weight: int) -> list[Source]:
        return [Source(web, weight=weight, view=KEY), Source(books, weight=1, view=KEY)]

    alone = mixture(*sources(3), num_items=30)
    before = items(alone)
    data = mixture(*sources(3), num_items=30)
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=2,
        multiprocessing_context=FORKS,
        persistent_workers=True,
    )
    assert items(loader) == before
    with pytest.raises(ContractError, match="give num_batches"):
        data.state_dict()
    state = data.state_dict(num_batches=3)
    assert list(state["consumed"].values()) == [9, 3]
    # Proportions that begin anew reach workers that run already, with what sources have given.
    alone.load_state_dict(state, new_weights=True)
    data.load_state_dict(state, new_weights=True)
    rest = items(loader)
    assert rest == items(alone)
    assert sum(map(len, rest)) == 18


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_a_loader_that_restores_its_workers_goes_on(web: str, books: str, num_workers: int) -> None:
    """The state that each worker loads by itself says where the proportions began anew."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def of_weights(weight: int) -> MixedDataset:
        sources = [Source(web, weight=weight, view=KEY), Source(books, weight=1, view=KEY)]
        return mixture(*sources, num_items=40)

    def loader(data: MixedDataset) -> Any:
        context = FORKS if num_workers else None
        return StatefulDataLoader(
            data, batch_size=None, num_workers=num_workers, multiprocessing_context=context
        )

    old = of_weights(1)
    list(islice(old, 3))
    alone, data = of_weights(3), of_weights(3)
    for one in (alone, data):
        one.load_state_dict(old.state_dict(), new_weights=True)
    want = items(alone)
    first = loader(data)
    assert items(islice(first, 3)) == want[:3]
    again = loader(of_weights(3))
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert items(again) == want[3:]


# States


def test_state_is_small_json_and_resumes_after_new_weights(web: str, books: str) -> None:
    old = mixture(Source(web, weight=1, view=KEY), Source(books, weight=1, view=KEY), num_items=40)
    list(islice(old, 3))
    assert old.consumed == [6, 6]
    new = mixture(Source(web, weight=3, view=KEY), Source(books, weight=1, view=KEY), num_items=40)
    new.load_state_dict(json.loads(json.dumps(old.state_dict())), new_weights=True)
    assert len(new) == 7
    list(islice(new, 2))
    state = new.state_dict()
    assert new.consumed == [12, 8]
    assert len(json.dumps(state)) < 1_500
    again = mixture(
        Source(web, weight=3, view=KEY), Source(books, weight=1, view=KEY), num_items=40
    )
    again.load_state_dict(state)
    assert again.consumed == [12, 8]
    new.load_state_dict(state)
    assert items(again) == items(new)


def test_new_budgets_count_what_was_read(web: str, books: str) -> None:
    old = mixture(Source(web, epochs=1, view=KEY), Source(books, epochs=1, view=KEY))
    read = flat(islice(old, 3))
    data = mixture(Source(books, epochs=2, view=KEY), Source(web, epochs=1, view=KEY))
    data.load_state_dict(old.state_dict(), new_weights=True)
    rest = [(1 - source, key) for source, key in flat(data)]
    assert sorted(read + rest) == sorted(
        [(0, key) for key in range(WEB)] + [(1, key) for key in range(BOOKS)] * 2
    )
    less = mixture(Source(web, epochs=0.1, view=KEY), Source(books, epochs=1, view=KEY))
    with pytest.raises(ContractError, match=r"web.*: 9 items of it were read, its budget is 2"):
        less.load_state_dict(old.state_dict(), new_weights=True)


def test_a_source_can_be_added(web: str, books: str) -> None:
    old = mixture(Source(web, weight=1, view=KEY), num_items=40)
    list(islice(old, 2))
    data = mixture(Source(books, weight=1, view=KEY), Source(web, weight=1, view=KEY), num_items=40)
    data.load_state_dict(old.state_dict(), new_weights=True)
    assert data.consumed == [0, 8]
    assert data.num_positions == 32
    with pytest.raises(FingerprintMismatchError, match="num_sources 1 -> 2"):
        data.load_state_dict(old.state_dict())


def test_spent_budgets_leave_nothing(web: str) -> None:
    data = mixture(Source(web, epochs=1, view=KEY))
    list(data)
    state = data.state_dict()
    assert data.consumed == [WEB]
    data.load_state_dict(state, new_weights=True)
    assert list(data) == []
    assert data.consumed == [WEB]


Change = Callable[[str, str], MixedDataset]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda a, b: mixture(Source(a, weight=1), Source(b, weight=2)), r"shares .*weight of 2"),
        (lambda a, b: mixture(Source(b, weight=1), Source(a, weight=1)), "source 0 index_sha256"),
        (
            lambda a, b: mixture(Source(a, weight=1), Source(b, weight=1), seed=5),
            "seed 0 -> 5",
        ),
        (
            lambda a, b: mixture(Source(a, weight=1), Source(b, weight=1), shuffle=False),
            "shuffle True -> False",
        ),
        (lambda a, b: mixture(Source(a, weight=1)), "num_sources 2 -> 1"),
    ],
)
def test_state_of_another_mixture_is_refused(
    web: str, books: str, change: Change, match: str
) -> None:
    state = mixture(Source(web, weight=1), Source(books, weight=1)).state_dict()
    with pytest.raises(FingerprintMismatchError, match=match):
        change(web, books).load_state_dict(state)


def test_new_weights_do_not_excuse_other_data_or_order(web: str, books: str) -> None:
    state = mixture(Source(web, weight=1), Source(books, weight=1)).state_dict()
    with pytest.raises(FingerprintMismatchError, match="1 of its 2 sources are not in the mixture"):
        mixture(Source(web, weight=1)).load_state_dict(state, new_weights=True)
    other = mixture(Source(web, weight=1), Source(books, weight=1), seed=5)
    with pytest.raises(FingerprintMismatchError, match="seed 0 -> 5"):
        other.load_state_dict(state, new_weights=True)


def test_state_of_a_single_data_set_is_refused(web: str) -> None:
    state = TokenDataset(web, batch_size=1).state_dict()
    with pytest.raises(IntegrityError, match="not of a mixture"):
        mixture(Source(web, weight=1)).load_state_dict(state)


# Mistakes


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (Source("a"), "none of weight, tokens, epochs given, expected exactly one"),
        (Source("a", weight=1, tokens=5), "weight, tokens of weight, tokens, epochs given"),
        (Source("a", weight=-1), "weight=-1, expected 0 or more"),
        (Source("a", weight=float("nan")), "weight=nan"),
        (Source("a", epochs=1, max_epochs=2), "max_epochs=2 with epochs"),
        (Source("a", weight=1, max_epochs=0), "max_epochs=0 with weight"),
    ],
)
def test_wrong_source(source: Source, match: str) -> None:
    with pytest.raises(ContractError, match=match):
        mixture(source)


def test_wrong_mixtures(web: str, books: str) -> None:
    with pytest.raises(ContractError, match="shuffle='blocks', expected True, False or"):
        mixture(Source(web, weight=1), shuffle="blocks")
    with pytest.raises(ContractError, match="no source"):
        mixture()
    with pytest.raises(ContractError, match="weights and budgets together"):
        mixture(Source(web, weight=1), Source(books, epochs=1))
    with pytest.raises(ContractError, match="num_items=5, num_tokens=None, expected at most one"):
        mixture(Source(web, epochs=1), num_items=5)
    with pytest.raises(ContractError, match="num_items=0"):
        mixture(Source(web, weight=1), num_items=0)
    with pytest.raises(ContractError, match="same data in the same view as"):
        mixture(Source(web, weight=1), Source(web, weight=2))
    with pytest.raises(ContractError, match=r"set_epoch\(1\): a mixture has a single epoch"):
        mixture(Source(web, weight=1)).set_epoch(1)
    with pytest.raises(ContractError, match="yields no tokens that the index counts"):
        mixture(Source(web, tokens=5, view=KEY))
    with pytest.raises(ContractError, match=r"weights \[0\], expected"):
        mixture(Source(web, weight=0))
    with pytest.raises(ContractError, match="expected 0 or more each"):
        Proportions([MAX_TOTAL_WEIGHT, 1])


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (FieldSpec("uint16", (6,), 999), r"'image' is uint16\[6\] < 1,000 in .*, and .* < 999"),
        (FieldSpec("uint32", (6,), 1_000), r"'image' is uint16.*, and uint32"),
    ],
)
def test_fields_must_be_the_same(web: str, tmp_path: Path, spec: FieldSpec, match: str) -> None:
    columns = rows(5)
    columns["image"] = (columns["image"] % 999).astype(spec.dtype)
    other = write_data_set(tmp_path, columns, {**FIELDS, "image": spec})
    with pytest.raises(ContractError, match=match):
        mixture(Source(web, weight=1), Source(other, weight=1))
    fields = Samples(["text"])
    mixture(Source(web, weight=1, view=fields), Source(other, weight=1, view=fields))


def test_a_missing_field_is_named(web: str, books: str) -> None:
    with pytest.raises(ContractError, match=r"'text' is uint32\[\*\] < 70,000 in .*, and missing"):
        mixture(
            Source(web, weight=1, view=Samples(["image", "text"])),
            Source(books, weight=1, view=Samples(["image"])),
        )


def test_a_field_called_source_is_refused(tmp_path: Path) -> None:
    columns = {"key": rows(3)["key"], "source": np.arange(3)}
    url = write_data_set(tmp_path, columns, {"source": FieldSpec("int64")})
    with pytest.raises(ContractError, match="has a field 'source'"):
        mixture(Source(url, weight=1))


def test_empty_and_random_sources_are_refused(web: str, tmp_path: Path) -> None:
    empty = write_data_set(tmp_path / "empty", rows(0))
    with pytest.raises(ContractError, match="it has no items"):
        mixture(Source(web, weight=1), Source(empty, weight=1))
    random = write_data_set(tmp_path / "random", rows(3), random_weights=True)
    with pytest.raises(SetupError, match="made with random weights"):
        mixture(Source(random, weight=1))
    assert mixture(Source(random, epochs=1), allow_random_weights=True).num_positions == 3
