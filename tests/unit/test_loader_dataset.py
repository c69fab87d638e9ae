"""TokenDataset: what it yields, where it resumes, and one test per way of failing."""

import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from operators.base import FieldSpec
from pipeline.errors import (
    ContractError,
    FingerprintMismatchError,
    IntegrityError,
    SetupError,
    TransientError,
)
from pipeline.loader import BlockShuffle, RaggedBatch, TokenDataset, shards
from pipeline.sinks import arrow
from pipeline.storage import NotFoundError
from tests.loader_data import rows, write_data_set

NUM = 23
ALL = ["key", "image", "text", "codes", "caption"]
SHARD = "shards/0000001-000.arrow"


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data_set(tmp_path_factory.mktemp("data"), rows(NUM))


def keys(batches: Any) -> list[list[int]]:
    return [[int(key) for key in batch["key"]] for batch in batches]


def assert_batch_holds_its_rows(batch: Any, want: dict[str, Any]) -> None:
    index = [int(key) for key in batch["key"]]
    assert batch["image"].dtype == torch.uint16
    assert np.array_equal(batch["image"].numpy(), want["image"][index])
    assert np.array_equal(batch["codes"].numpy(), want["codes"][index])
    assert batch["text"].values.dtype == torch.uint32
    for place, row in enumerate(index):
        assert np.array_equal(batch["text"][place].numpy(), want["text"][row])
    assert batch["caption"] == [want["caption"][row].as_py() for row in index]


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("shuffle", [True, False, BlockShuffle(2, 5)])
@pytest.mark.parametrize("batch_size", [1, 4, NUM])
def test_batches_hold_the_rows_of_their_keys(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
    shuffle: bool | BlockShuffle,
    batch_size: int,
) -> None:
    monkeypatch.setattr(arrow, "BATCH_BYTES", 200)  # several record batches a shard
    monkeypatch.setattr(shards, "OPEN_SHARDS", 2)
    monkeypatch.setattr(shards, "DECODED_BATCHES", 2)
    url = write_data_set(tmp_path, rows(NUM), compression=compression, shard_bytes=4_000)
    data = TokenDataset(url, batch_size=batch_size, fields=ALL, shuffle=shuffle, verify=True)
    batches = list(data)
    for batch in batches:
        assert list(batch) == ALL
        assert_batch_holds_its_rows(batch, rows(NUM))
    found = [key for batch in keys(batches) for key in batch]
    assert sorted(found) == list(range(NUM))
    assert (found == sorted(found)) == (not shuffle)


def test_fields_default_to_all_but_the_key(data_set: str) -> None:
    batch = next(iter(TokenDataset(data_set, batch_size=2)))
    assert set(batch) == {"image", "text", "codes", "caption"}
    assert isinstance(batch["text"], RaggedBatch)


@pytest.mark.parametrize(
    ("spec", "column"),
    [
        (FieldSpec("float16", (3,)), np.arange(12, dtype=np.float16).reshape(4, 3)),
        (FieldSpec("bool", (3,)), np.arange(12).reshape(4, 3) % 5 == 0),
        (FieldSpec("int64"), np.arange(4)),
        (FieldSpec("float32", (2, 1, 3)), np.arange(24, dtype=np.float32).reshape(4, 2, 1, 3)),
    ],
)
def test_numeric_types_come_back(tmp_path: Path, spec: FieldSpec, column: np.ndarray) -> None:
    columns = {"key": rows(4)["key"], "x": column}
    url = write_data_set(tmp_path, columns, {"x": spec}, partitions=2)
    [batch] = TokenDataset(url, batch_size=4, shuffle=False)
    assert torch.equal(batch["x"], torch.from_numpy(column))


def test_no_rows_give_no_batches(tmp_path: Path) -> None:
    url = write_data_set(tmp_path, rows(0))
    assert list(TokenDataset(url, batch_size=2)) == []


def test_batches_can_be_written_to(data_set: str) -> None:
    [batch] = TokenDataset(data_set, batch_size=NUM, fields=["image"])
    batch["image"].fill_(7)
    [again] = TokenDataset(data_set, batch_size=NUM, fields=["image"])
    assert not torch.equal(batch["image"], again["image"])


def test_fields_take_the_dtypes_that_are_asked_for(data_set: str) -> None:
    dtypes = {"image": torch.int64, "text": torch.int64}
    stored = TokenDataset(data_set, batch_size=4)
    for batch, want in zip(
        TokenDataset(data_set, batch_size=4, dtypes=dtypes), stored, strict=True
    ):
        assert batch["image"].dtype == batch["text"].values.dtype == torch.int64
        assert batch["codes"].dtype == torch.uint8
        assert batch["image"].tolist() == want["image"].tolist()
        assert batch["text"].values.tolist() == want["text"].values.tolist()


def test_features_become_bfloat16(tmp_path: Path) -> None:
    """What was computed in bfloat16 is held by float32 and comes back as it was."""
    features = torch.randn(4, 3).to(torch.bfloat16)
    columns = {"key": rows(4)["key"], "x": features.float().numpy()}
    url = write_data_set(tmp_path, columns, {"x": FieldSpec("float32", (3,))})
    dtypes = {"x": torch.bfloat16}
    [batch] = TokenDataset(url, batch_size=4, shuffle=False, dtypes=dtypes)
    assert batch["x"].dtype == torch.bfloat16
    assert torch.equal(batch["x"], features)


@pytest.mark.parametrize(
    ("name", "dtype", "match"),
    [
        ("text", torch.int32, "torch.int32 does not hold all values .* stored as torch.uint32"),
        ("image", torch.float16, "torch.float16 does not hold all values of field 'image'"),
        ("caption", torch.int64, "field 'caption' holds no numbers"),
        ("key", torch.int64, "field 'key' is not read; fields of a batch: image, "),
    ],
)
def test_dtypes_that_lose_values_are_refused(
    data_set: str, name: str, dtype: torch.dtype, match: str
) -> None:
    fields = ["image", "text", "caption"]
    data = TokenDataset(data_set, batch_size=4, fields=fields, dtypes={name: dtype})
    with pytest.raises(ContractError, match=match):
        next(iter(data))


def test_samples_that_are_repeated_hold_their_rows(data_set: str) -> None:
    """More places than samples: a batch has a row several times, in any order."""
    data = TokenDataset(data_set, batch_size=3 * NUM, fields=ALL, uneven="pad")
    [batch] = data
    assert_batch_holds_its_rows(batch, rows(NUM))
    assert keys([batch])[0] == keys(TokenDataset(data_set, batch_size=NUM, fields=ALL))[0] * 3
    assert batch["padding"].tolist() == [False] * NUM + [True] * 2 * NUM


def test_field_called_padding_is_refused_when_there_is_padding(tmp_path: Path) -> None:
    columns = {"key": rows(4)["key"], "padding": np.arange(4)}
    url = write_data_set(tmp_path, columns, {"padding": FieldSpec("int64")})
    with pytest.raises(ContractError, match="a field 'padding' of its own"):
        next(iter(TokenDataset(url, batch_size=4, uneven="pad")))
    assert len(list(TokenDataset(url, batch_size=4))) == 1


# Epochs and ranks


def test_epochs_differ_and_come_back(data_set: str) -> None:
    data = TokenDataset(data_set, batch_size=5, fields=["key"])
    first, same = keys(data), keys(data)
    data.set_epoch(1)
    second = keys(data)
    data.set_epoch(0)
    assert first == same == keys(data) != second


def test_rank_comes_from_the_environment(data_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = keys(TokenDataset(data_set, batch_size=4, fields=["key"]))
    given = TokenDataset(data_set, batch_size=4, fields=["key"], rank=1, world_size=2)
    assert found == keys(given)
    assert len(found) == 3


def test_rank_comes_from_torch_distributed(data_set: str, tmp_path: Path) -> None:
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        assert len(TokenDataset(data_set, batch_size=NUM)) == 1
    finally:
        torch.distributed.destroy_process_group()


# DataLoader workers


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(data_set: str, num_workers: int) -> None:
    data = TokenDataset(data_set, batch_size=2, fields=ALL)
    alone = list(data)
    loader = DataLoader(
        data, batch_size=None, num_workers=num_workers, multiprocessing_context="spawn"
    )
    together = list(loader)
    assert len(loader) == len(together)
    assert keys(together) == keys(alone)
    for batch in together:
        assert_batch_holds_its_rows(batch, rows(NUM))


def test_persistent_workers_hear_of_epochs_and_states(data_set: str) -> None:
    data = TokenDataset(data_set, batch_size=4, fields=["key"])
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    first = keys(loader)
    data.set_epoch(5)
    fifth = keys(loader)
    want = TokenDataset(data_set, batch_size=4, fields=["key"], epoch=5)
    assert fifth == keys(want) != first
    with pytest.raises(ContractError, match="batches come from DataLoader workers"):
        data.state_dict()
    state = data.state_dict(num_batches=2)
    assert (state["epoch"], state["position"]) == (5, 8)
    data.load_state_dict(state)
    assert keys(loader) == fifth[2:]


class WorkerInfo:
    def __init__(self, worker: int, num_workers: int) -> None:
        self.id, self.num_workers = worker, num_workers


def test_a_worker_resumes_from_its_own_state(
    data_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What loaders that ask each worker for its state rely on."""
    want = keys(TokenDataset(data_set, batch_size=2, fields=["key"], epoch=4))
    for worker in range(3):
        monkeypatch.setattr(
            "pipeline.loader.batches.get_worker_info", lambda w=worker: WorkerInfo(w, 3)
        )
        data = TokenDataset(data_set, batch_size=2, fields=["key"], epoch=4)
        batches = iter(data)
        found = keys([next(batches), next(batches)])
        again = TokenDataset(data_set, batch_size=2, fields=["key"])
        again.load_state_dict(data.state_dict())
        assert again.state_dict() == data.state_dict()
        assert found + keys(again) == want[worker::3]


def test_a_pickled_copy_reads_the_same(data_set: str) -> None:
    data = TokenDataset(data_set, batch_size=4, fields=["key"])
    want = keys(data)  # with maps open
    assert keys(pickle.loads(pickle.dumps(data))) == want


# State


def test_state_resumes_at_the_next_batch(data_set: str) -> None:
    data = TokenDataset(data_set, batch_size=4, fields=["key"], epoch=1)
    want = keys(data)
    batches = iter(data)
    next(batches), next(batches)
    state = json.loads(json.dumps(data.state_dict()))
    again = TokenDataset(data_set, batch_size=4, fields=["key"])
    again.load_state_dict(state)
    again.set_epoch(1)  # the training loop's own call must not undo it
    assert keys(again) == want[2:]
    assert again.state_dict()["position"] == NUM
    again.set_epoch(2)
    assert again.state_dict()["position"] == 0


@pytest.mark.parametrize("shuffle", [True, False, BlockShuffle(2, 5)])
def test_resume_needs_no_shard_but_that_of_the_next_sample(
    tmp_path: Path, shuffle: bool | BlockShuffle
) -> None:
    url = write_data_set(tmp_path, rows(NUM), partitions=NUM)  # a shard a sample, in order
    whole = keys(TokenDataset(url, batch_size=1, fields=["key"], shuffle=shuffle))
    [row] = whole[NUM // 2]
    for path in (tmp_path / "shards").iterdir():
        if path.name != f"{row:07d}-000.arrow":
            path.unlink()
    data = TokenDataset(url, batch_size=1, fields=["key"], shuffle=shuffle)
    data.load_state_dict({**data.state_dict(), "position": NUM // 2})
    assert keys([next(iter(data))]) == [[row]]


def test_state_of_a_finished_epoch_yields_nothing_more(data_set: str) -> None:
    data = TokenDataset(data_set, batch_size=4, fields=["key"])
    list(data)
    data.load_state_dict(data.state_dict())
    assert keys(data) == []


def test_state_of_another_data_set_is_refused(data_set: str, tmp_path: Path) -> None:
    state = TokenDataset(data_set, batch_size=4).state_dict()
    other = write_data_set(tmp_path, rows(NUM), fingerprint="cd" * 32)
    with pytest.raises(FingerprintMismatchError, match=r"fingerprint 'abab.* -> 'cdcd"):
        TokenDataset(other, batch_size=4).load_state_dict(state)


def test_state_of_other_rows_of_the_same_recipe_is_refused(data_set: str, tmp_path: Path) -> None:
    state = TokenDataset(data_set, batch_size=4).state_dict()
    other = write_data_set(tmp_path, rows(NUM, seed=1))
    with pytest.raises(FingerprintMismatchError, match="index_sha256"):
        TokenDataset(other, batch_size=4).load_state_dict(state)


def test_state_of_another_seed_or_order_is_refused(data_set: str) -> None:
    state = TokenDataset(data_set, batch_size=4, seed=1).state_dict()
    other = TokenDataset(data_set, batch_size=4, seed=2, shuffle=False)
    with pytest.raises(FingerprintMismatchError, match="seed 1 -> 2, shuffle True -> False"):
        other.load_state_dict(state)


def test_state_of_other_blocks_is_refused(data_set: str) -> None:
    state = TokenDataset(data_set, batch_size=4, shuffle=BlockShuffle(4, 8)).state_dict()
    other = TokenDataset(data_set, batch_size=4, shuffle=BlockShuffle(4, 9))
    state = json.loads(json.dumps(state))
    with pytest.raises(FingerprintMismatchError, match=r"'block_items': 8} -> .*'block_items': 9}"):
        other.load_state_dict(state)


def test_state_of_another_version_is_refused(data_set: str) -> None:
    data = TokenDataset(data_set, batch_size=4)
    with pytest.raises(IntegrityError, match="version 3, this program reads 2"):
        data.load_state_dict({**data.state_dict(), "version": 3})


# Arguments


def test_random_weights_are_refused_unless_allowed(tmp_path: Path) -> None:
    url = write_data_set(tmp_path, rows(NUM), random_weights=True)
    with pytest.raises(SetupError, match=r"random weights.*allow_random_weights=True"):
        TokenDataset(url, batch_size=4)
    assert len(TokenDataset(url, batch_size=4, allow_random_weights=True)) == 6


def test_unknown_field_names_those_there_are(data_set: str) -> None:
    with pytest.raises(
        ContractError, match=r"no field 'tokens'; .* caption, codes, image, text, key"
    ):
        TokenDataset(data_set, batch_size=4, fields=["image", "tokens"])


def test_no_field_is_refused(data_set: str) -> None:
    with pytest.raises(ContractError, match="no field is asked for"):
        TokenDataset(data_set, batch_size=4, fields=[])


def test_batch_size_zero_is_refused(data_set: str) -> None:
    with pytest.raises(ContractError, match="batch_size=0, expected 1 or more"):
        TokenDataset(data_set, batch_size=0)


def test_unknown_uneven_end_is_refused(data_set: str) -> None:
    with pytest.raises(ContractError, match="uneven='wrap', expected one of short, pad, drop"):
        TokenDataset(data_set, batch_size=4, uneven="wrap")  # type: ignore[arg-type]


def test_unknown_shuffle_is_refused(data_set: str) -> None:
    with pytest.raises(ContractError, match="shuffle='block', expected True, False or a Block"):
        TokenDataset(data_set, batch_size=4, shuffle="block")  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", ["streams", "block_items"])
def test_impossible_blocks_are_refused(argument: str) -> None:
    with pytest.raises(ContractError, match=f"BlockShuffle: {argument}=0, expected 1 or more"):
        BlockShuffle(**{argument: 0})


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, None), (None, 2)])
def test_impossible_rank_is_refused(
    data_set: str, rank: int | None, world_size: int | None
) -> None:
    with pytest.raises(ContractError, match=f"rank={rank} of world_size={world_size}"):
        TokenDataset(data_set, batch_size=4, rank=rank, world_size=world_size)


# Shards that are not what the index says


@pytest.fixture
def own(tmp_path: Path) -> str:
    return write_data_set(tmp_path / "own", rows(NUM))


def read_all(url: str, **options: Any) -> None:
    for _ in TokenDataset(url, batch_size=4, **options):
        pass


def test_missing_shard_is_named(own: str) -> None:
    (Path(own) / SHARD).unlink()
    with pytest.raises(NotFoundError, match=rf"{SHARD}: no such shard.* one of 3"):
        read_all(own)


def test_shortened_shard_shows_both_sizes(own: str) -> None:
    path = Path(own) / SHARD
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        IntegrityError, match=f"{SHARD}: {size - 1:,} bytes, the index says {size:,}"
    ):
        read_all(own)


def test_changed_byte_is_found_by_verify(own: str) -> None:
    path = Path(own) / SHARD
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=rf"{SHARD}: sha256 [0-9a-f]{{12}}, the index says"):
        read_all(own, verify=True)


def test_zeroed_shard_is_not_a_shard(own: str) -> None:
    path = Path(own) / SHARD
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(IntegrityError, match=rf"{SHARD}: not a shard .*verify=True"):
        read_all(own)


def test_shard_of_another_run_is_refused(own: str, tmp_path: Path) -> None:
    other = write_data_set(tmp_path / "other", rows(NUM), fingerprint="cd" * 32)
    (Path(own) / SHARD).write_bytes((Path(other) / SHARD).read_bytes())
    with pytest.raises(IntegrityError, match="fingerprint cdcdcdcdcdcd, the manifest says abab"):
        read_all(own)


# Remote data sets


@pytest.fixture
def remote(own: str) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.put(own, "/bucket/set", recursive=True)
    yield "memory://bucket/set"
    memory.rm("/bucket", recursive=True)


def test_remote_shards_are_copied_once(own: str, remote: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    data = TokenDataset(remote, batch_size=4, fields=["key"], cache_dir=cache)
    assert keys(data) == keys(TokenDataset(own, batch_size=4, fields=["key"]))
    assert len(list(cache.glob("*.arrow"))) == 3
    fsspec.filesystem("memory").rm("/bucket/set/shards", recursive=True)
    assert keys(pickle.loads(pickle.dumps(data))) == keys(data)


def test_changed_remote_shard_leaves_no_copy(remote: str, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in memory.find("/bucket/set/shards"):
        memory.pipe(path, memory.cat(path)[:-1] + b"?")
    with pytest.raises(IntegrityError, match=r"memory://bucket/set/shards/.*: sha256"):
        read_all(remote, cache_dir=tmp_path / "cache")
    for thread in threading.enumerate():  # an iteration that ends does not wait for them
        if thread.name == "prefetch":
            thread.join(10)
    assert list((tmp_path / "cache").glob("*.*")) == []


def test_store_that_stops_answering_is_worth_another_attempt(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.WAITS_S", (0.0,))
    data = TokenDataset(remote, batch_size=4, cache_dir=tmp_path / "cache", prefetch_shards=0)
    opened = type(fsspec.filesystem("memory").store["/bucket/set/manifest.json"])

    def read(self: Any, size: int = -1) -> bytes:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(opened, "read", read, raising=False)
    with pytest.raises(TransientError, match="ConnectionResetError: reset by peer"):
        next(iter(data))
    assert list((tmp_path / "cache").glob("*.*")) == []
