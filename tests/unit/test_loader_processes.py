"""The loader among other processes: ranks of torch.distributed, killed workers, torchdata."""

import itertools
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.loader import BlockShuffle, TokenDataset
from tests.loader_data import rows, write_data_set

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "pipeline.loader", __name__])  # imported once for all

NUM, WORLD_SIZE = 47, 4
SHUFFLE = BlockShuffle(streams=4, block_items=3)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data_set(tmp_path_factory.mktemp("data"), rows(NUM))


def int_keys(batch: Any) -> list[int]:
    return [int(key) for key in batch["key"]]


def keys(batches: Any) -> list[list[int]]:
    return [int_keys(batch) for batch in batches]


def train(rank: int, url: str, folder: str, state: dict[str, Any] | None) -> None:
    """Take a step together for every batch, as a training loop does, and note what was read."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE
    )
    data = TokenDataset(url, batch_size=3, fields=["key"], shuffle=SHUFFLE, uneven="pad")
    if state is not None:
        data.load_state_dict(state)
    found = []
    for batch in data:
        torch.distributed.all_reduce(torch.ones(1))  # waits for a batch of every rank
        real = zip(batch["key"], batch["padding"].tolist(), strict=True)
        found += [int(key) for key, is_padding in real if not is_padding]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_four_ranks_of_torch_distributed_share_the_rest_of_an_epoch(
    data_set: str, tmp_path: Path
) -> None:
    """The state comes from one process with other batches."""
    before = TokenDataset(data_set, batch_size=5, fields=["key"], shuffle=SHUFFLE)
    seen = keys(itertools.islice(before, 2))
    arguments = (data_set, str(tmp_path), before.state_dict(2))
    processes = [FORKS.Process(target=train, args=(rank, *arguments)) for rank in range(WORLD_SIZE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WORLD_SIZE
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD_SIZE)]
    assert sorted(itertools.chain(*seen, *found)) == list(range(NUM))


def test_killed_worker_is_an_error_and_the_rest_comes_once(data_set: str) -> None:
    def data() -> TokenDataset:
        return TokenDataset(data_set, batch_size=2, fields=["key"], epoch=1)

    loop = data()
    loader = DataLoader(loop, batch_size=None, num_workers=2, multiprocessing_context=FORKS)
    there = set(multiprocessing.active_children())
    seen: list[list[int]] = []
    batches = iter(loader)
    seen += keys(itertools.islice(batches, 3))
    victim = next(child for child in multiprocessing.active_children() if child not in there)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"worker .*(killed by signal|exited unexpectedly)"):
        seen.extend(int_keys(batch) for batch in batches)  # what was read ahead still comes
    del batches
    again = data()
    again.load_state_dict(loop.state_dict(len(seen)))
    assert seen + keys(again) == keys(data())


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_stateful_data_loader_resumes_by_itself(data_set: str, num_workers: int) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader() -> Any:
        data = TokenDataset(data_set, batch_size=2, fields=["key"], epoch=3)
        context = FORKS if num_workers else None
        return StatefulDataLoader(
            data, batch_size=None, num_workers=num_workers, multiprocessing_context=context
        )

    want = keys(TokenDataset(data_set, batch_size=2, fields=["key"], epoch=3))
    first = loader()
    seen = keys(itertools.islice(first, 5))
    assert seen == want[:5]
    again = loader()
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert keys(again) == want[5:]
