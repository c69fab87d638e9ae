"""What the ids of a data set say of their codebook, read from its shards."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from operators.base import FieldSpec, Ragged
from operators.image_tokenizers.layout import TokenLayout
from pipeline.errors import IntegrityError
from pipeline.manifest import DataSet, open_data_set
from pipeline.report import codebook
from pipeline.report.codebook import CodebookReport, count_ids, keep_report, kept_report
from pipeline.report.tables import codebook_notes
from pipeline.storage import Entry, NotFoundError, Storage
from tests.loader_data import rows, write_data_set


def data_set(
    folder: Path,
    fields: Mapping[str, tuple[FieldSpec, Any]],
    layouts: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> DataSet:
    """Return a data set with columns of ids, and the layouts that operators gave them."""
    [num] = {len(column) for _, column in fields.values()}
    key = pa.array([str(i) for i in range(num)], pa.large_string())
    columns = {"key": key, **{name: column for name, (_, column) in fields.items()}}
    specs = {name: spec for name, (spec, _) in fields.items()}
    operators = [
        {"label": "made", "version": 1, "outputs": {name: ""}, "metadata": {"layout": dict(layout)}}
        for name, layout in (layouts or {}).items()
    ]
    return open_data_set(write_data_set(folder, columns, specs, operators=operators, **options))


def ids_of(counts: Mapping[int, int], shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    """Return ids that occur so often, shuffled."""
    ids = np.repeat(list(counts), list(counts.values())).astype(dtype)
    return np.random.default_rng(0).permutation(ids).reshape(shape)


def test_figures_of_a_known_histogram(tmp_path: Path) -> None:
    """Powers of two have an entropy in whole numbers: 1/2, 1/4, 1/8, 1/8 give 1.75 bits."""
    counts = {7: 8, 3: 4, 0: 2, 9: 2}
    spec = FieldSpec("uint16", (4,), 10)
    found = count_ids(data_set(tmp_path, {"tokens": (spec, ids_of(counts, (4, 4)))}))

    assert list(found.fields) == ["tokens"]
    [stream] = found.fields["tokens"].streams
    assert (stream.stream, stream.codebook_size, stream.scales) == ("id", 10, [])
    figures = stream.all
    assert (figures.ids, figures.used, figures.used_share) == (16, 4, 0.4)
    assert figures.entropy_bits == 1.75
    assert figures.perplexity == 2**1.75
    slope = np.polyfit(np.log([1, 2, 3, 4]), np.log([8, 4, 2, 2]), 1)[0]
    assert figures.zipf_slope == pytest.approx(slope)
    assert figures.kept_share == 1.0
    assert stream.top == [(7, 8), (3, 4), (0, 2), (9, 2)]
    assert stream.curve == [(1, 8), (2, 4), (3, 2), (4, 2)]


def test_equal_counts_fill_the_codebook(tmp_path: Path) -> None:
    ids = ids_of(dict.fromkeys(range(256), 3), (96, 8), "uint8")
    found = count_ids(data_set(tmp_path, {"tokens": (FieldSpec("uint8", (8,), 256), ids)}))
    [stream] = found.fields["tokens"].streams
    assert stream.all.used_share == 1.0
    assert stream.all.entropy_bits == pytest.approx(8.0)
    assert stream.all.perplexity == pytest.approx(256)
    assert stream.all.zipf_slope == pytest.approx(0.0)
    assert stream.top == [(i, 3) for i in range(20)]
    assert stream.curve[-1] == (256, 3)
    assert len(stream.curve) <= 50


def test_zipfs_law(tmp_path: Path) -> None:
    ids = np.repeat(np.arange(1_000, dtype=np.uint16), 100_000 // np.arange(1, 1_001))
    spec = FieldSpec("uint16", (), 1_000)
    found = count_ids(data_set(tmp_path, {"tokens": (spec, ids)}))
    slope = found.fields["tokens"].streams[0].all.zipf_slope
    assert slope == pytest.approx(-1.0, abs=0.01)


def test_every_field_of_ids_and_no_other(tmp_path: Path) -> None:
    columns = rows(50)
    found = count_ids(open_data_set(write_data_set(tmp_path, columns, shard_bytes=1)))
    assert list(found.fields) == ["image", "text", "codes"]
    for name, values in (
        ("image", columns["image"]),
        ("text", columns["text"].values),
        ("codes", columns["codes"]),
    ):
        [stream] = found.fields[name].streams
        ids, counts = np.unique(values, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:20]
        assert stream.all.ids == values.size
        assert stream.all.used == len(ids)
        assert stream.top == list(zip(ids[order].tolist(), counts[order].tolist(), strict=True))
        p = counts / counts.sum()
        assert stream.all.entropy_bits == pytest.approx(-(p * np.log2(p)).sum())


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_streams_have_codebooks_of_their_own(tmp_path: Path, compression: str) -> None:
    random = np.random.default_rng(0)
    sizes = (64, 4_096)
    ids = np.stack([random.integers(0, size, (30, 6)) for size in sizes], -1).astype(np.uint16)
    layout = TokenLayout(6, sizes, streams=("pre", "post"))
    data = data_set(
        tmp_path,
        {"tokens": (FieldSpec("uint16", (6, 2), 4_096), ids)},
        {"tokens": layout.as_json()},
        compression=compression,
    )
    streams = count_ids(data).fields["tokens"].streams
    assert [(s.stream, s.codebook_size) for s in streams] == [("pre", 64), ("post", 4_096)]
    for i, stream in enumerate(streams):
        used = len(np.unique(ids[..., i]))
        assert stream.all.ids == 180
        assert (stream.all.used, stream.all.used_share) == (used, used / sizes[i])


def test_views_and_streams(tmp_path: Path) -> None:
    ids = np.arange(2 * 3 * 4 * 2, dtype=np.uint8).reshape(2, 3, 4, 2)
    layout = {**TokenLayout(4, (48, 48), streams=("even", "odd")).as_json(), "views": 3}
    spec = FieldSpec("uint8", (3, 4, 2), 48)
    streams = count_ids(data_set(tmp_path, {"t": (spec, ids)}, {"t": layout})).fields["t"].streams
    assert [[each for each, _ in stream.top] for stream in streams] == [
        list(range(0, 40, 2)),
        list(range(1, 40, 2)),
    ]
    assert [stream.all.used for stream in streams] == [24, 24]


def test_ragged_streams(tmp_path: Path) -> None:
    values = np.array([[0, 5], [1, 5], [1, 6]], np.uint8)
    column = Ragged(values, np.array([0, 2, 2, 3]))
    layout = TokenLayout(2, (2, 8), streams=("a", "b"), ragged=True)
    spec = FieldSpec("uint8", (None, 2), 8)
    data = data_set(tmp_path, {"t": (spec, column)}, {"t": layout.as_json()})
    streams = count_ids(data).fields["t"].streams
    assert [stream.top for stream in streams] == [[(1, 2), (0, 1)], [(5, 2), (6, 1)]]


def scales_of(figures: Sequence[Any]) -> list[tuple[int, int]]:
    return [(each.ids, each.used) for each in figures]


def test_scales(tmp_path: Path) -> None:
    """Two rows of 1 + 4 + 9 positions; the id is the scale at first, then its own."""
    ids = np.tile(np.repeat([0, 1, 2], [1, 4, 9]), (2, 1)).astype(np.uint8)
    ids[1, 5:] = np.arange(3, 12)
    layout = TokenLayout(14, (16,), scales=(1, 2, 3))
    data = data_set(tmp_path, {"t": (FieldSpec("uint8", (14,), 16), ids)}, {"t": layout.as_json()})
    found = count_ids(data).fields["t"]
    assert found.scales == [1, 2, 3]
    [stream] = found.streams
    assert scales_of(stream.scales) == [(2, 1), (8, 1), (18, 10)]
    assert stream.scales[1].entropy_bits == 0.0
    assert stream.all.ids == 28


def test_scales_of_views_and_of_rows_that_end_early(tmp_path: Path) -> None:
    layout = TokenLayout(5, (9, 9), streams=("a", "b"), scales=(1, 2)).as_json()
    views = np.zeros((4, 3, 5, 2), np.uint8)
    views[:, :, 0, 1] = np.arange(4)[:, None]
    data = data_set(
        tmp_path / "views",
        {"t": (FieldSpec("uint8", (3, 5, 2), 9), views)},
        {"t": {**layout, "views": 3}},
    )
    a, b = count_ids(data).fields["t"].streams
    assert (scales_of(a.scales), scales_of(b.scales)) == (
        [(12, 1), (48, 1)],
        [(12, 4), (48, 1)],
    )

    early = Ragged(np.arange(18, dtype=np.uint8).reshape(9, 2) % 9, np.array([0, 5, 6, 6, 9]))
    data = data_set(
        tmp_path / "early",
        {"t": (FieldSpec("uint8", (None, 2), 9), early)},
        {"t": {**layout, "positions": 5}},
    )
    a, b = count_ids(data).fields["t"].streams
    assert [each.ids for each in a.scales] == [3, 6]
    assert [each.ids for each in b.scales] == [3, 6]


def test_a_layout_of_another_shape_describes_something_else(tmp_path: Path) -> None:
    layout = TokenLayout(5, (4, 4), streams=("a", "b")).as_json()
    spec = FieldSpec("uint8", (6,), 9)
    data = data_set(tmp_path, {"t": (spec, np.full((2, 6), 8, np.uint8))}, {"t": layout})
    [stream] = count_ids(data).fields["t"].streams
    assert (stream.stream, stream.codebook_size, stream.top) == ("id", 9, [(8, 12)])


def test_the_last_operator_describes_a_field(tmp_path: Path) -> None:
    ids = np.zeros((2, 4), np.uint8)
    data = data_set(
        tmp_path,
        {"t": (FieldSpec("uint8", (4,), 99), ids)},
        {"t": TokenLayout(4, (9,)).as_json()},
    )
    again = {"label": "shift", "outputs": {"t": ""}, "metadata": {}}
    data.manifest.operators.append(again)  # type: ignore[attr-defined]
    [stream] = count_ids(data).fields["t"].streams
    assert stream.codebook_size == 99


def test_codes_of_64_bits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ids = random.integers(0, 2**64, (40, 8), dtype=np.uint64)
    ids[:, 0] = 2**64 - 1
    layout = TokenLayout(8, (2**64,)).as_json()
    spec = FieldSpec("uint64", (8,), 2**64)
    data = data_set(tmp_path, {"t": (spec, ids)}, {"t": layout})
    [stream] = count_ids(data).fields["t"].streams
    assert stream.codebook_size == 2**64
    assert stream.all.used == 40 * 7 + 1
    assert stream.all.used_share == 281 / 2**64
    assert stream.top[0] == (2**64 - 1, 40)
    p = np.array([40] + [1] * 280) / 320
    assert stream.all.entropy_bits == pytest.approx(-(p * np.log2(p)).sum())


def test_too_many_different_codes_are_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.report.histogram.SparseCounter.__init__.__defaults__", (2_000,))
    random = np.random.default_rng(0)
    ids = random.choice(random.integers(0, 2**64, 30_000, dtype=np.uint64), (1_000, 100))
    spec = FieldSpec("uint64", (100,), 2**64)
    report = count_ids(data_set(tmp_path, {"t": (spec, ids)}))
    [stream] = report.fields["t"].streams
    _, counts = np.unique(ids, return_counts=True)
    p = counts / counts.sum()
    assert stream.all.ids == 100_000
    assert stream.all.kept_share == 1 / 16
    assert stream.all.used == pytest.approx(len(counts), rel=0.1)
    assert stream.all.entropy_bits == pytest.approx(-(p * np.log2(p)).sum(), abs=0.2)
    assert stream.curve[-1][0] == pytest.approx(len(counts), rel=0.1)
    assert list(codebook_notes(report))[-1].endswith("figures are estimates: t (1 id in 16)")


def test_no_rows_and_no_ids(tmp_path: Path) -> None:
    spec = FieldSpec("uint16", (4,), 100)
    data = data_set(tmp_path / "a", {"t": (spec, np.empty((0, 4), np.uint16))})
    report = count_ids(data)
    [stream] = report.fields["t"].streams
    assert (stream.all.ids, stream.all.used, stream.all.used_share) == (0, 0, 0.0)
    assert (stream.all.entropy_bits, stream.all.perplexity, stream.all.zipf_slope) == (None,) * 3
    assert (stream.top, stream.curve) == ([], [])
    assert list(codebook_notes(report)) == []

    empty = Ragged(np.empty(0, np.uint8), np.zeros(4, np.int64))
    data = data_set(tmp_path / "b", {"t": (FieldSpec("uint8", (None,), 9), empty)})
    assert count_ids(data).fields["t"].streams[0].all.ids == 0

    text = pa.array(["a"], pa.large_string())
    data = data_set(tmp_path / "c", {"caption": (FieldSpec("string"), text)})
    assert count_ids(data).fields == {}


def test_one_id_alone(tmp_path: Path) -> None:
    ids = np.full((3, 2), 5, np.uint8)
    found = count_ids(data_set(tmp_path, {"t": (FieldSpec("uint8", (2,), 9), ids)}))
    figures = found.fields["t"].streams[0].all
    assert (figures.entropy_bits, figures.perplexity, figures.zipf_slope) == (0.0, 1.0, None)


def test_notes_tell_what_to_make_of_it(tmp_path: Path) -> None:
    ids = np.zeros((3, 2), np.uint8)
    spec = FieldSpec("uint8", (2,), 9)
    data = data_set(tmp_path, {"t": (spec, ids)}, random_weights=True)
    report = count_ids(data)
    assert report.random_weights
    assert list(codebook_notes(report)) == [
        "random weights: these figures say nothing about a tokenizer",
        "fewer than 10 ids for each entry of the codebook, so that used and entropy would rise "
        "with more data: t",
    ]


def test_progress_ends_at_all_ids(tmp_path: Path) -> None:
    data = open_data_set(write_data_set(tmp_path, rows(60), partitions=5))
    seen: list[tuple[int, int]] = []
    count_ids(data, lambda done, of: seen.append((done, of)))
    total = sum(
        stream.all.ids for field in count_ids(data).fields.values() for stream in field.streams
    )
    assert len(seen) == 5
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_figures_are_kept_while_the_shards_are_the_same(tmp_path: Path) -> None:
    data = data_set(
        tmp_path,
        {"t": (FieldSpec("uint8", (5,), 9), np.arange(10, dtype=np.uint8).reshape(2, 5) % 9)},
        {"t": TokenLayout(5, (9,), scales=(1, 2)).as_json()},
    )
    assert kept_report(data) is None
    report = count_ids(data)
    keep_report(data, report)
    assert kept_report(data) == report
    raw = json.loads((tmp_path / "codebook.json").read_bytes())
    assert raw["version"] == 1
    for change in ({"index_sha256": "0"}, {"fingerprint": "0"}, {"version": 2}):
        (tmp_path / "codebook.json").write_text(json.dumps({**raw, **change}))
        assert kept_report(data) is None
    for other in (b"not json", b"[]", b"{}", json.dumps({**raw, "fields": {"t": {}}}).encode()):
        (tmp_path / "codebook.json").write_bytes(other)
        assert kept_report(data) is None


def first_shard(folder: Path) -> Path:
    return folder / "shards/0000000-000.arrow"


def test_an_id_above_the_codebook(tmp_path: Path) -> None:
    data = data_set(
        tmp_path,
        {"t": (FieldSpec("uint8", (2, 2), 99), np.full((3, 2, 2), 9, np.uint8))},
        {"t": TokenLayout(2, (99, 9), streams=("a", "b")).as_json()},
    )
    with pytest.raises(
        IntegrityError,
        match=r"-000.arrow: field 't' holds id 9, the codebook of stream 'b' has 9 ids",
    ):
        count_ids(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-100], r"bytes, the index says"),
        (lambda data: b"x" * len(data), r"not a shard \(.*Arrow"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Any, says: str) -> None:
    data = open_data_set(write_data_set(tmp_path, rows(60)))
    shard = first_shard(tmp_path)
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(IntegrityError, match=says) as raised:
        count_ids(data)
    assert raised.value.message.startswith(f"{shard}: ")
    assert "pipeline verify" in str(raised.value.hint)


def test_a_shard_that_is_gone_ends_all_readers(tmp_path: Path) -> None:
    data = open_data_set(write_data_set(tmp_path, rows(60), partitions=40))
    first_shard(tmp_path).unlink()
    with pytest.raises(NotFoundError, match=r"0000000-000.arrow"):
        count_ids(data)


class Distant(Storage):
    """Files as if they were far away; counts the bytes that are asked for."""

    num_read = 0

    def local_path(self, uri: str) -> Path | None:
        return None

    def open_read(self, uri: str, *, read_ahead: bool = True) -> Any:
        assert not read_ahead
        file = Path(uri).open("rb")  # noqa: SIM115 - the reader closes it
        read = file.read

        def counted(size: int = -1) -> bytes:
            data = read(size)
            self.num_read += len(data)
            return data

        return CountedFile(file, counted)

    def opened(self, uri: str, file: Any) -> Entry:
        return Entry(uri, Path(uri).stat().st_size, "")


class CountedFile:
    """A file whose ``read`` is another."""

    def __init__(self, file: Any, read: Any) -> None:
        self._file, self.read = file, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def test_of_distant_shards_only_the_ids_are_read(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 99, (500, 8), dtype=np.uint8)
    pixels = np.zeros((500, 1_000), np.uint8)
    fields = {"p": (FieldSpec("uint8", (1_000,)), pixels), "t": (FieldSpec("uint8", (8,), 99), ids)}
    data = data_set(tmp_path, fields)
    distant = Distant()
    assert count_ids(replace(data, storage=distant)) == count_ids(data)
    assert 4_000 < distant.num_read < 20_000


def test_counts_do_not_depend_on_the_number_of_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_data_set(write_data_set(tmp_path, rows(200), partitions=20))
    found = count_ids(data)
    monkeypatch.setattr(codebook, "READERS", 1)
    assert count_ids(data) == found
    assert isinstance(found, CodebookReport)
    assert math.isfinite(found.fields["image"].streams[0].all.entropy_bits or math.nan)
