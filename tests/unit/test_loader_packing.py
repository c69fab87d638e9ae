"""Packs: what is kept on disk, what a checkpoint refuses, and one test per way of failing."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numba.core import caching
from torch.utils.data import DataLoader

from pipeline.errors import ContractError, FingerprintMismatchError, SetupError
from pipeline.loader import Packed, TokenDataset, Windows, pack_index
from pipeline.loader.compiled import compiled
from pipeline.loader.packed import OpenPacked
from tests.loader_data import rows, write_data_set
from tests.token_data import Corpus

CORPUS = Corpus(
    [int(n) for n in np.random.default_rng(0).integers(0, 40, 60)], partitions=7, batch_bytes=90
)
NUM_TOKENS = sum(CORPUS.lengths)
VIEW = Packed("ids", 32, group_samples=10, loss_mask="learn")


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    return CORPUS.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def packs(url: str, cache_dir: Path, view: Packed = VIEW, **options: Any) -> TokenDataset:
    settings: dict[str, Any] = {"batch_size": 3, "view": view, "cache_dir": cache_dir}
    return TokenDataset(url, **settings | options)


def ids(data: TokenDataset) -> list[int]:
    """Return the ids that are no padding; each stands once in the data."""
    return [
        int(token) for batch in data for token in batch["ids"][batch["document_ids"] >= 0].tolist()
    ]


def index_file(cache_dir: Path) -> Path:
    (path,) = (cache_dir / "packs").glob("*.packs")
    return path


@pytest.mark.parametrize("world_sizes", [(2, 3), (4, 1)])
def test_an_epoch_of_packs_goes_on_with_another_world_size(
    data_set: str, cache: Path, world_sizes: tuple[int, int]
) -> None:
    before, after = world_sizes
    seen: list[int] = []
    states = []
    for rank in range(before):
        data = packs(data_set, cache, rank=rank, world_size=before, seed=5, batch_size=2)
        for _, batch in zip(range(3), data, strict=False):
            seen += batch["ids"][batch["document_ids"] >= 0].tolist()
        states.append(data.state_dict(3))
    assert all(state == states[0] for state in states)
    assert 0 < len(seen) < NUM_TOKENS
    for rank in range(after):
        data = packs(data_set, cache, rank=rank, world_size=after, seed=5)
        data.load_state_dict(states[0])
        seen += ids(data)
    assert sorted(seen) == list(range(NUM_TOKENS))


@pytest.mark.parametrize(
    "other",
    [
        Packed("ids", 32, group_samples=10, method="first_fit"),
        Packed("ids", 32, group_samples=10, method="concat"),
        Packed("ids", 32, group_samples=10, long="skip"),
        Packed("ids", 31, group_samples=10),
        Packed("ids", 32, group_samples=20),
    ],
)
def test_a_state_of_another_packing_is_refused(data_set: str, cache: Path, other: Packed) -> None:
    state = packs(data_set, cache).state_dict()
    same = Packed("ids", 32, group_samples=10, dtype="uint16", pad=3)
    packs(data_set, cache, same).load_state_dict(state)
    with pytest.raises(FingerprintMismatchError, match=r"view|method|long|length|group_samples"):
        packs(data_set, cache, other).load_state_dict(state)
    with pytest.raises(FingerprintMismatchError, match="packs_sha256"):
        packs(data_set, cache).load_state_dict({**state, "packs_sha256": "0" * 64})


def test_packs_are_computed_once(
    data_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    write = pack_index._write

    def counting(*arguments: Any) -> None:
        calls.append(1)
        write(*arguments)

    monkeypatch.setattr(pack_index, "_write", counting)
    with ThreadPoolExecutor(4) as pool:  # as ranks that start together
        opened = list(pool.map(lambda _: packs(data_set, tmp_path).view.identity(), range(4)))
    assert all(identity == opened[0] for identity in opened)
    packs(data_set, tmp_path, Packed("ids", 32, group_samples=10, pad=5))
    assert len(calls) == 1
    packs(data_set, tmp_path, Packed("ids", 16, group_samples=10))
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["emptied", "cut", "flipped"])
def test_a_damaged_file_is_computed_again(data_set: str, tmp_path: Path, damage: str) -> None:
    want = ids(packs(data_set, tmp_path, shuffle=False))
    path = index_file(tmp_path)
    good = path.read_bytes()
    flipped = bytes([good[0] ^ 1]) + good[1:]
    path.write_bytes({"emptied": b"", "cut": good[:-40], "flipped": flipped}[damage])
    assert ids(packs(data_set, tmp_path, shuffle=False)) == want
    assert path.read_bytes() == good


def test_packs_do_not_depend_on_parallelism(
    data_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for num_cpus in (1, 2, 9):
        monkeypatch.setattr(os, "cpu_count", lambda count=num_cpus: count)
        folder = tmp_path / str(num_cpus)
        packs(data_set, folder)
        found.append(index_file(folder).read_bytes())
    assert found[0] == found[1] == found[2]


def test_the_file_has_sixteen_bytes_per_piece_and_eight_per_pack(
    data_set: str, tmp_path: Path
) -> None:
    """Memory for a billion samples follows from it."""
    view = cast(OpenPacked, packs(data_set, tmp_path).view)
    num_pieces = sum(-(-n // 32) for n in CORPUS.lengths)
    size = index_file(tmp_path).stat().st_size
    assert size - 16 * num_pieces - 8 * (view.num_items + 1) < 400


@pytest.mark.parametrize(("method", "least"), [("first_fit", 0.99), ("best_fit", 0.999)])
def test_packs_of_texts_are_full(tmp_path: Path, method: Any, least: float) -> None:
    """Lengths like those of web pages: a median of 545 ids, and some of many thousands."""
    lengths = np.random.default_rng(0).lognormal(6.3, 1.1, 6_000).astype(int) + 1
    corpus = Corpus(lengths.tolist(), partitions=2)
    data = packs(corpus.write(tmp_path), tmp_path, Packed("ids", 2048, method=method))
    view = cast(OpenPacked, data.view)
    assert view.num_tokens == lengths.sum()
    assert view.fill_rate == lengths.sum() / (view.num_items * 2048)
    assert view.fill_rate > least


def test_units_are_groups_of_shards(data_set: str, cache: Path) -> None:
    """Seven shards of eight or nine samples, in groups of ten samples or more."""
    view = packs(data_set, cache).view
    assert len(view.stops) == 4
    assert view.stops[-1] == view.num_items
    starts = [0, *view.stops[:-1].tolist()]
    touched = [
        view.shards(np.arange(a, b)).tolist() for a, b in zip(starts, view.stops, strict=True)
    ]
    assert touched == [[0, 1], [2, 3], [4, 5], [6]]
    assert view.shards(np.empty(0, np.int64)).tolist() == []
    assert view.read(np.empty(0, np.int64), 0)["ids"].shape == (0, 32)


def test_workers_yield_the_same_batches(data_set: str, cache: Path) -> None:
    data = packs(data_set, cache)
    want = list(data)
    loaded = list(DataLoader(pickle.loads(pickle.dumps(data)), batch_size=None, num_workers=2))
    assert len(want) == len(loaded) == len(data)
    for one, other in zip(want, loaded, strict=True):
        assert one.keys() == other.keys()
        assert all(
            torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one
        )


def test_concat_is_windows_with_boundaries(data_set: str, cache: Path) -> None:
    found = list(packs(data_set, cache, Packed("ids", 32, method="concat", loss_mask="learn")))
    view = Windows("ids", 32, boundaries=True, loss_mask="learn")
    want = list(TokenDataset(data_set, batch_size=3, view=view))
    for one, other in zip(found, want, strict=True):
        assert one.keys() == other.keys()
        assert all(
            torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one
        )


def test_samples_of_fixed_length_are_packed(tmp_path: Path) -> None:
    columns = rows(11)
    data = packs(write_data_set(tmp_path, columns), tmp_path, Packed("image", 13), shuffle=False)
    found = torch.cat([batch["image"] for batch in data])
    want = columns["image"].reshape(-1)
    assert found[:5, :12].flatten().tolist() == want[:60].tolist()
    assert found[5, :6].tolist() == want[60:].tolist()


def test_a_data_set_without_tokens_has_no_packs(tmp_path: Path) -> None:
    data = packs(Corpus([0, 0, 0]).write(tmp_path), tmp_path)
    assert (data.num_positions, list(data)) == (0, [])
    assert data.view.stops.tolist() == []


def test_a_folder_that_cannot_be_written(data_set: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="while packs are computed") as error:
        packs(data_set, tmp_path / "file")
    assert error.value.hint == "make room, or choose another cache_dir"


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (Packed("ids", 8, method="worst_fit"), r"method='worst_fit', expected one of concat"),  # type: ignore[arg-type]
        (Packed("ids", 8, long="drop"), r"long='drop', expected 'cut' or 'skip'"),  # type: ignore[arg-type]
        (Packed("ids", 0), r"length=0, group_samples=65536, expected 1 or more"),
        (Packed("ids", 8, group_samples=0), r"length=8, group_samples=0, expected 1 or more"),
        (Packed("ids", 8, method="concat", long="skip"), r"long='skip' with method='concat'"),
        (Packed("ids", 8, dtype="uint8"), r"largest id of 'ids' is 59999, uint8 holds 0 to 255"),
        (Packed("text", 8), r"there is no field 'text'"),
    ],
)
def test_a_view_that_cannot_be(data_set: str, tmp_path: Path, view: Packed, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        packs(data_set, tmp_path, view)
    assert not list(tmp_path.iterdir())


def test_without_a_folder_for_machine_code_it_is_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert compiled(lambda value: value + 1)(2) == 3
