"""Windows: fields of fixed length, what is opened when, and one test per way of failing."""

import hashlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from operators.base import FieldSpec, Ragged
from pipeline.errors import (
    ContractError,
    FingerprintMismatchError,
    IntegrityError,
    SetupError,
)
from pipeline.loader import Packed, TokenDataset, Windows, shard_maps, token_stream
from pipeline.loader.shard_maps import ShardMaps
from pipeline.manifest import INDEX, MANIFEST
from tests.loader_data import rows, write_data_set
from tests.token_data import Corpus

CORPUS = Corpus([5, 0, 17, 1, 1, 30, 2, 0, 0, 9], partitions=4, batch_bytes=20)
NUM_TOKENS = 65


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    return CORPUS.write(tmp_path_factory.mktemp("data"))


def windows(url: str, view: Windows, **options: Any) -> TokenDataset:
    settings: dict[str, Any] = {"batch_size": 3, "view": view, "shuffle": False}
    return TokenDataset(url, **settings | options)


def joined(data: TokenDataset, name: str) -> list[Any]:
    return [row for batch in data for row in batch[name].tolist()]


def test_columns_have_the_types_that_are_promised(data_set: str) -> None:
    view = Windows("ids", 8, dtype="int32", boundaries=True, others=["learn"])
    batch = next(iter(windows(data_set, view)))
    found = {name: (c.dtype, tuple(c.shape)) for name, c in batch.items() if name != "max_seqlen"}
    num_bounds = len(batch["cu_seqlens"])
    assert found == {
        "ids": (torch.int32, (3, 8)),
        "loss_mask": (torch.bool, (3, 8)),
        "learn": (torch.uint8, (3, 8)),
        "position_ids": (torch.int64, (3, 8)),
        "document_ids": (torch.int32, (3, 8)),
        "cu_seqlens": (torch.int32, (num_bounds,)),
    }
    assert type(batch["max_seqlen"]) is int


def test_other_fields_are_cut_alongside(data_set: str) -> None:
    data = windows(data_set, Windows("ids", 8, others=["learn"]))
    flat = np.concatenate(joined(data, "learn"))
    assert flat[:NUM_TOKENS].tolist() == CORPUS.learn.tolist()
    assert not flat[NUM_TOKENS:].any()


@pytest.mark.parametrize(("length", "extra", "num"), [(8, 0, 8), (13, 0, 5), (8, 1, 8), (66, 0, 0)])
def test_drop_leaves_out_the_short_window(data_set: str, length: int, extra: int, num: int) -> None:
    data = windows(data_set, Windows("ids", length, extra=extra, last="drop"))
    found = joined(data, "ids")
    assert data.num_positions == len(found) == num
    want = [list(range(i * length, (i + 1) * length + extra)) for i in range(num)]
    assert found == want


@pytest.mark.parametrize("boundaries", [False, True])
def test_samples_of_fixed_length(tmp_path: Path, boundaries: bool) -> None:
    columns = rows(11)
    data = windows(write_data_set(tmp_path, columns), Windows("image", 8, boundaries=boundaries))
    flat = np.concatenate(joined(data, "image"))
    assert flat[:66].tolist() == columns["image"].flatten().tolist()
    if boundaries:
        first, second = joined(data, "position_ids")[:2]
        assert first == [0, 1, 2, 3, 4, 5, 0, 1]
        assert second == [0, 1, 2, 3, 0, 1, 2, 3]
        assert joined(data, "document_ids")[-1] == [0, 0, -1, -1, -1, -1, -1, -1]


def test_no_shard_is_opened_before_it_is_read(
    data_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set of 100,000 shards opens in the time that its index takes."""
    opened: list[int] = []
    really = ShardMaps.open

    def counting(self: ShardMaps, number: int) -> Any:
        opened.append(number)
        return really(self, number)

    monkeypatch.setattr(ShardMaps, "open", counting)
    data = windows(data_set, Windows("ids", 5, boundaries=True), batch_size=1)
    assert len(data) == 13
    assert opened == []
    next(iter(data))
    assert opened == [0]


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("boundaries", [False, True])
def test_few_shards_and_batches_are_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, boundaries: bool
) -> None:
    """A window may need more of them at once than are kept."""
    monkeypatch.setattr(shard_maps, "OPEN_SHARDS", 2)
    monkeypatch.setattr(token_stream, "DECODED_BATCHES", 1)
    corpus = Corpus(
        [1] * 40, partitions=4, batch_bytes=1, shard_per_batch=True, compression=compression
    )
    view = Windows("ids", 30, boundaries=boundaries, loss_mask="learn")
    data = windows(corpus.write(tmp_path), view, shuffle=True)
    stream = data.view._stream  # type: ignore[attr-defined]
    order = data._order.rows(np.arange(2)).tolist()
    for _ in range(2):
        found = dict(zip(order, joined(data, "ids"), strict=True))
        assert found[0] + found[1] == list(range(40)) + [0] * 20
        assert len(stream._open) <= 2
        assert len(stream._stretches) <= 2
        assert len(stream.table.starts) == len(stream._stretches)


def test_workers_yield_the_same_batches(data_set: str) -> None:
    view = Windows("ids", 4, boundaries=True, loss_mask="learn")
    data = windows(data_set, view, shuffle=True)
    want = list(data)  # maps are open now: the copies must open their own
    loaded = list(DataLoader(pickle.loads(pickle.dumps(data)), batch_size=None, num_workers=2))
    assert len(want) == len(loaded) == len(data)
    for one, other in zip(want, loaded, strict=True):
        assert one.keys() == other.keys()
        assert all(
            torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one
        )


def test_units_are_the_shards_in_which_windows_begin(data_set: str) -> None:
    view = windows(data_set, Windows("ids", 8)).view
    # Shards end at tokens 22, 54, 56 and 65.
    assert view.stops.tolist() == [3, 7, 9]  # none begins in the third shard
    assert view.num_items == 9
    assert view.shards(np.array([2])).tolist() == [0, 1]
    assert view.shards(np.array([0, 8])).tolist() == [0, 3]
    assert view.read(np.empty(0, np.int64), 0)["ids"].shape == (0, 8)


def test_a_state_of_other_windows_is_refused(data_set: str) -> None:
    state = windows(data_set, Windows("ids", 8)).state_dict()
    windows(data_set, Windows("ids", 8, boundaries=True, dtype="uint16")).load_state_dict(state)
    for view in (Windows("ids", 4), Windows("ids", 8, extra=1), Windows("ids", 8, last="drop")):
        with pytest.raises(FingerprintMismatchError, match=r"length|extra|last"):
            windows(data_set, view).load_state_dict(state)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (Windows("idz", 8), r"there is no field 'idz'"),
        (Windows("learn", 8), r"'learn' is uint8\[\*\], expected one id per position"),
        (Windows("ids", 0), r"length=0, extra=0, expected length from 1"),
        (Windows("ids", 4, extra=5), r"length=4, extra=5, expected length from 1"),
        (Windows("ids", 4, last="keep"), r"last='keep', expected 'pad' or 'drop'"),  # type: ignore[arg-type]
        (Windows("ids", 4, dtype="int16"), r"largest id of 'ids' is 59999, int16 holds -32768"),
        (Windows("ids", 4, dtype="int46"), r"dtype='int46', expected an integer type"),
        (Windows("ids", 4, dtype="float32"), r"dtype='float32', expected an integer type"),
        (Windows("ids", 4, pad=-1, dtype="uint16"), r"pad is -1, uint16 holds 0 to 65535"),
        (Windows("ids", 4, others=["learn", "learn"]), r"would be called learn"),
        (Windows("ids", 4, others=["ids"]), r"'ids' is uint16\[\*\] < 60,000, expected another"),
        (Windows("ids", 4, others=["nothing"]), r"there is no field 'nothing'"),
    ],
)
def test_a_view_that_cannot_be(data_set: str, view: Windows, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        windows(data_set, view)


def test_several_ids_per_position_are_no_stream(tmp_path: Path) -> None:
    url = write_data_set(tmp_path, rows(4))
    with pytest.raises(ContractError, match=r"'codes' is uint8\[4, 2\].*expected one id"):
        windows(url, Windows("codes", 4))


def test_a_mask_of_another_length_is_found(tmp_path: Path) -> None:
    fields = {"ids": FieldSpec("uint16", (None,), 100), "learn": FieldSpec("uint8", (None,))}
    columns = {
        "key": pa.array(["a", "b"], pa.large_string()),
        "ids": Ragged(np.arange(5, dtype=np.uint16), np.array([0, 3, 5])),
        "learn": Ragged(np.ones(5, np.uint8), np.array([0, 2, 5])),
    }
    url = write_data_set(tmp_path, columns, fields, partitions=1)
    data = windows(url, Windows("ids", 4, loss_mask="learn"))
    with pytest.raises(IntegrityError, match=r"0000000-000.arrow: 'learn' has not as many values"):
        list(data)


def test_a_wrong_count_in_the_index_is_found(tmp_path: Path) -> None:
    url = Path(CORPUS.write(tmp_path))
    index = pa.ipc.open_file(url / INDEX).read_all()
    place = index.schema.get_field_index("tokens.ids")
    counts = [n + 1 for n in index["tokens.ids"].to_pylist()]
    changed = index.set_column(place, "tokens.ids", pa.array(counts, pa.int64()))
    with pa.ipc.new_file(str(url / INDEX), changed.schema) as writer:
        writer.write_table(changed)
    manifest = json.loads((url / MANIFEST).read_bytes())
    manifest["index_sha256"] = hashlib.sha256((url / INDEX).read_bytes()).hexdigest()
    (url / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(
        IntegrityError, match=r"0000000-000.arrow: 22 ids in 'ids', the index .* 23"
    ):
        list(windows(str(url), Windows("ids", 4)))


@pytest.mark.parametrize("view", [Windows("ids", 50, boundaries=True), Packed("ids", 50)])
@pytest.mark.parametrize("wrong", [[0, 5, 2, 22], [0, 500, 5, 22], [0, -7, 5, 22]])
def test_offsets_that_do_not_rise_are_found(
    tmp_path: Path, view: Windows | Packed, wrong: list[int]
) -> None:
    """Compiled functions rely on them."""
    url = Path(Corpus([5, 0, 17], partitions=1).write(tmp_path / "data"))
    shard = url / "shards/0000000-000.arrow"
    before, after = (np.array(n, np.int32).tobytes() for n in ([0, 5, 5, 22], wrong))
    assert before in shard.read_bytes()
    shard.write_bytes(shard.read_bytes().replace(before, after))
    with pytest.raises(
        IntegrityError, match=r"0000000-000.arrow: the offsets of 'ids' do not rise"
    ):
        list(TokenDataset(url, batch_size=1, view=view, cache_dir=tmp_path))


def test_only_boundaries_need_numba(data_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pipeline.loader.kernels", "pipeline.loader.compiled"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert np.concatenate(joined(windows(data_set, Windows("ids", 5)), "ids")).tolist() == list(
        range(NUM_TOKENS)
    )
    with pytest.raises(SetupError, match="numba cannot be imported") as error:
        windows(data_set, Windows("ids", 5, boundaries=True))
    assert error.value.hint == "pip install 'tokenmill[packing]'"
