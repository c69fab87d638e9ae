"""Prefixes, scales and streams of samples: against the stored rows, and one test per refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from operators.base import FieldSpec, Ragged
from pipeline.errors import ContractError
from pipeline.loader import BlockShuffle, RaggedBatch, SampledPrefix, Samples, TokenDataset
from pipeline.sinks import arrow
from tests.loader_data import write_data_set

NUM = 29
GOLDEN_LENGTHS = [1, 1, 1, 1, 16, 1, 16, 1, 1, 1, 1, 1]
FIELDS = {
    "flat": FieldSpec("uint16", (16,), 1_000),
    "grid": FieldSpec("uint16", (4,), 1_000),
    "ragged": FieldSpec("uint16", (None,), 1_000),
    "views": FieldSpec("uint16", (2, 8, 3), 1_000),
    "levels": FieldSpec("uint8", (14, 3), 256),
    "ragged_levels": FieldSpec("uint8", (None, 3), 256),
    "features": FieldSpec("float32", (6, 5)),
    "caption": FieldSpec("string"),
}
RVQ = {"streams": ["coarse", "middle", "fine"], "codebook_sizes": [256] * 3}
PLAIN = {"streams": ["id"], "codebook_sizes": [1_000]}
LAYOUTS: dict[str, dict[str, Any]] = {
    "flat": {"positions": 16, **PLAIN, "nested": True},
    "grid": {"positions": 4, **PLAIN, "nested": False, "grid": [2, 2]},
    "ragged": {"positions": 9, **PLAIN, "nested": True},
    "views": {
        "positions": 8,
        "streams": ["a", "b", "c"],
        "codebook_sizes": [1_000] * 3,
        "nested": True,
        "views": 2,
    },
    "levels": {"positions": 14, **RVQ, "nested": False, "scales": [1, 2, 3]},
    "ragged_levels": {"positions": 9, **RVQ, "nested": True},
    "features": {"positions": 6, "streams": ["id"], "codebook_sizes": [], "nested": True},
}
OPERATORS = [
    {"outputs": {name: {}}, "metadata": {"layout": layout}} for name, layout in LAYOUTS.items()
]


def stored() -> dict[str, Any]:
    random = np.random.default_rng(7)
    offsets = np.concatenate(([0], np.cumsum(random.integers(0, 10, NUM))))
    columns: dict[str, Any] = {
        "key": pa.array([str(i) for i in range(NUM)], pa.large_string()),
        "caption": pa.array(["x"] * NUM, pa.large_string()),
    }
    for name, spec in FIELDS.items():
        if not spec.is_numeric:
            continue
        rest = tuple(n or 0 for n in spec.shape[1:])
        shape = (int(offsets[-1]), *rest) if spec.is_ragged else (NUM, spec.shape[0] or 0, *rest)
        values = random.integers(0, spec.vocab_size or 99, shape).astype(spec.dtype)
        columns[name] = Ragged(values, offsets) if spec.is_ragged else values
    return columns


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow, "BATCH_BYTES", 2_000)  # several record batches a shard
        folder = tmp_path_factory.mktemp("data")
        return write_data_set(folder, stored(), FIELDS, operators=OPERATORS)


def read(url: str, fields: list[str], **view: Any) -> dict[int, dict[str, torch.Tensor]]:
    """Return the fields of every sample, by its row."""
    found = {}
    data = TokenDataset(url, batch_size=5, view=Samples(["key", *fields], **view))
    for batch in data:
        for place, key in enumerate(batch["key"]):
            found[int(key)] = {name: batch[name][place] for name in fields}
    assert sorted(found) == list(range(NUM))
    return found


@pytest.mark.parametrize("name", ["flat", "ragged", "ragged_levels", "features"])
@pytest.mark.parametrize("length", [1, 4])
def test_fixed_prefix_is_the_beginning_of_each_row(data_set: str, name: str, length: int) -> None:
    for row, sample in read(data_set, [name], prefix={name: length}).items():
        assert np.array_equal(sample[name].numpy(), stored()[name][row][:length])


def test_prefix_of_views_is_a_prefix_of_each(data_set: str) -> None:
    found = read(data_set, ["views"], prefix={"views": 3}, streams={"views": ["c", "a"]})
    for row, sample in found.items():
        assert np.array_equal(sample["views"].numpy(), stored()["views"][row][:, :3, [2, 0]])


@pytest.mark.parametrize("name", ["flat", "ragged", "ragged_levels", "features"])
def test_sampled_prefix_makes_rows_of_the_lengths_drawn(data_set: str, name: str) -> None:
    prefix = SampledPrefix((1, 2, 4), seed=5)
    lengths = prefix.draw(name, 0, np.arange(NUM))
    for row, sample in read(data_set, [name], prefix={name: prefix}).items():
        assert np.array_equal(sample[name].numpy(), stored()[name][row][: lengths[row]])


def test_sampled_lengths_depend_on_seed_epoch_field_and_sample_alone(data_set: str) -> None:
    def lengths(epoch: int, seed: int = 0, **options: Any) -> dict[str, int]:
        view = Samples(["key", "flat"], prefix={"flat": SampledPrefix((1, 2, 4, 8), seed=seed)})
        data = TokenDataset(data_set, view=view, epoch=epoch, **options)
        found: dict[str, int] = {}
        for batch in data:
            assert isinstance(batch["flat"], RaggedBatch)
            found |= dict(zip(batch["key"], batch["flat"].lengths.tolist(), strict=True))
        return found

    want = lengths(0, batch_size=NUM)
    assert want == lengths(0, batch_size=3, seed=0, shuffle=BlockShuffle(3, 2))
    rank = lengths(0, batch_size=2, rank=1, world_size=3)
    assert rank == {key: want[key] for key in rank}
    assert want != lengths(1, batch_size=NUM)
    assert want != lengths(0, batch_size=NUM, seed=1)
    draw = SampledPrefix((1, 2, 4, 8)).draw
    assert not np.array_equal(draw("a", 0, np.arange(NUM)), draw("b", 0, np.arange(NUM)))


def test_sampled_lengths_are_frozen() -> None:
    """Runs that resume, and runs that are compared, rely on these lengths: they never change."""
    drawn = SampledPrefix((1, 4, 16), (2, 0, 1), seed=3).draw("image", 9, np.arange(12))
    assert drawn.tolist() == GOLDEN_LENGTHS


def test_lengths_are_drawn_in_proportion_to_their_weights() -> None:
    num = 20_000
    drawn = SampledPrefix((1, 2, 3, 4), (1, 0.5, 0, 2.5)).draw("image", 0, np.arange(num))
    counts = np.bincount(drawn, minlength=5)[1:]
    assert counts[2] == 0
    assert np.abs(counts / num - np.array([1, 0.5, 0, 2.5]) / 4).max() < 0.02


def test_scales_are_the_positions_of_the_coarsest_grids(data_set: str) -> None:
    for row, sample in read(data_set, ["levels"], scales={"levels": 2}).items():
        assert np.array_equal(sample["levels"].numpy(), stored()["levels"][row][:5])


@pytest.mark.parametrize("name", ["levels", "ragged_levels"])
@pytest.mark.parametrize(("streams", "numbers"), [(["coarse"], [0]), (["fine", "middle"], [2, 1])])
def test_streams_are_chosen_by_name(
    data_set: str, name: str, streams: list[str], numbers: list[int]
) -> None:
    for row, sample in read(data_set, [name], streams={name: streams}).items():
        assert np.array_equal(sample[name].numpy(), stored()[name][row][:, numbers])


def test_prefixes_may_change_on_resume(data_set: str) -> None:
    state = TokenDataset(data_set, batch_size=4).state_dict(2)
    data = TokenDataset(data_set, batch_size=4, view=Samples(["flat"], prefix={"flat": 2}))
    data.load_state_dict(state)
    assert next(iter(data))["flat"].shape == (4, 2)


@pytest.mark.parametrize(
    ("view", "match"),
    [
        ({"prefix": {"grid": 2}}, "field 'grid' has a token layout that is not nested"),
        ({"prefix": {"caption": 2}}, "field 'caption' has no token layout"),
        ({"prefix": {"flat": 17}}, r"\[17\] positions of field 'flat', expected 1 to 16"),
        ({"prefix": {"flat": 0}}, r"\[0\] positions of field 'flat', expected 1 to 16"),
        ({"prefix": {"flat": SampledPrefix((4, 32))}}, r"\[4, 32\] positions of field 'flat'"),
        ({"prefix": {"views": SampledPrefix((4,))}}, "'views' has several views"),
        ({"prefix": {"image": 2}}, "field 'image' is not read; fields that are read: caption, "),
        ({"prefix": {"key": 2}}, "field 'key' is not read"),
        ({"scales": {"flat": 1}}, "scales: 1 of field 'flat', which has 0"),
        ({"scales": {"levels": 4}}, "scales: 4 of field 'levels', which has 3"),
        ({"streams": {"levels": ["rough"]}}, r"\['rough'\] .*has coarse, middle, fine"),
        ({"streams": {"levels": []}}, r"streams: \[\] of field 'levels'"),
        ({"streams": {"flat": ["id"]}}, "'flat', which has id; name some of several"),
    ],
)
def test_what_a_field_does_not_have_is_refused(
    data_set: str, view: dict[str, Any], match: str
) -> None:
    with pytest.raises(ContractError, match=match):
        TokenDataset(data_set, batch_size=4, view=Samples(**view))


def test_prefix_and_scales_of_one_field_are_refused(data_set: str) -> None:
    view = Samples(prefix={"levels": 1}, scales={"levels": 1})
    with pytest.raises(ContractError, match="'levels' has both a prefix and scales"):
        TokenDataset(data_set, batch_size=4, view=view)


def test_layout_of_another_shape_describes_nothing(tmp_path: Path) -> None:
    layout = {**LAYOUTS["flat"], "positions": 15}
    operators = [{"outputs": {"flat": {}}, "metadata": {"layout": layout}}]
    url = write_data_set(tmp_path, stored(), FIELDS, operators=operators)
    with pytest.raises(ContractError, match="field 'flat' has no token layout"):
        TokenDataset(url, batch_size=4, view=Samples(prefix={"flat": 2}))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (((),), r"lengths=\(\), expected one or more"),
        (((0, 2),), r"lengths=\(0, 2\), expected one or more, each from 1"),
        (((1, 2), (1,)), r"weights=\(1,\), expected one for each of 2 lengths"),
        (((1, 2), (1, -1)), "none below 0"),
        (((1, 2), (0, 0)), "not all 0"),
        (((1, 2), (1, float("nan"))), "weights="),
    ],
)
def test_impossible_draws_are_refused(arguments: Any, match: str) -> None:
    with pytest.raises(ContractError, match=match):
        SampledPrefix(*arguments)
