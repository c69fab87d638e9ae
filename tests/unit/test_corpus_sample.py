"""The sample of a corpus: which documents are in it, whatever their order and batches."""

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.corpus_sample import CorpusSample
from pipeline.errors import ContractError
from pipeline.spec import SampleSpec

CORPUS = [(f"file:{i}", "ä" * (i % 37)) for i in range(5000)]


def draw(
    folder: Path, spec: SampleSpec, corpus: Sequence[tuple[str, str]] = CORPUS, at_once: int = 100
) -> tuple[CorpusSample, list[str]]:
    """Return the sample of a corpus, and its texts."""
    sample = CorpusSample(spec, str(folder / "sample.arrow"))
    with sample:
        for first in range(0, len(corpus), at_once):
            keys, values = zip(*corpus[first : first + at_once], strict=True)
            sample.add(pa.array(keys, pa.large_string()), pa.array(values, pa.large_string()))
    texts = [text for part in sample.documents() for text in part.to_pylist()]
    assert sample.num_seen == len(corpus)
    assert sample.num_documents == len(texts)
    assert sample.num_bytes == sum(len(text.encode()) for text in texts)
    assert texts == [text for part in sample.documents() for text in part.to_pylist()]
    return sample, texts


SPECS = [
    SampleSpec(fraction=0.1),
    SampleSpec(max_documents=500),
    SampleSpec(max_bytes=20_000),
    SampleSpec(),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_neither_order_nor_batches_count(spec: SampleSpec, tmp_path: Path) -> None:
    _, texts = draw(tmp_path, spec)
    assert texts == draw(tmp_path, spec, at_once=7)[1]
    shuffled = random.Random(0).sample(CORPUS, len(CORPUS))
    assert sorted(texts) == sorted(draw(tmp_path, spec, shuffled)[1])


def test_sizes(tmp_path: Path) -> None:
    assert 400 < draw(tmp_path, SampleSpec(fraction=0.1))[0].num_documents < 600
    assert draw(tmp_path, SampleSpec(max_documents=500))[0].num_documents == 500
    assert 20_000 - 2 * 37 < draw(tmp_path, SampleSpec(max_bytes=20_000))[0].num_bytes <= 20_000
    everything, texts = draw(tmp_path, SampleSpec())
    assert everything.num_documents == len(CORPUS)
    assert texts == [text for _, text in CORPUS]
    assert draw(tmp_path, SampleSpec(max_bytes=1 << 30))[1] == texts
    assert draw(tmp_path, SampleSpec(fraction=1.0))[1] == texts


def test_a_smaller_sample_is_part_of_a_larger_one(tmp_path: Path) -> None:
    corpus = [(key, key) for key, _ in CORPUS]
    small = draw(tmp_path, SampleSpec(max_documents=50), corpus)[1]
    large = draw(tmp_path, SampleSpec(fraction=0.1), corpus)[1]
    assert set(small) < set(large)
    assert small == [text for text in large if text in small]


def test_another_seed_draws_others(tmp_path: Path) -> None:
    corpus = [(key, key) for key, _ in CORPUS]
    one = draw(tmp_path, SampleSpec(max_documents=500), corpus)[1]
    two = draw(tmp_path, SampleSpec(max_documents=500, seed=1), corpus)[1]
    assert len(set(one) & set(two)) < 100


def test_the_file_stays_small(tmp_path: Path) -> None:
    corpus = [(str(i), "x" * 100) for i in range(100_000)]
    draw(tmp_path, SampleSpec(max_bytes=100_000), corpus)
    assert (tmp_path / "sample.arrow").stat().st_size < 1_500_000


def test_documents_of_one_key_stay_together(tmp_path: Path) -> None:
    corpus = [(str(i // 2), str(i)) for i in range(100)]
    assert draw(tmp_path, SampleSpec(max_documents=11), corpus)[0].num_documents == 10


def test_nulls_are_refused(tmp_path: Path) -> None:
    sample = CorpusSample(SampleSpec(), str(tmp_path / "sample.arrow"))
    keys, texts = pa.array(["a", "b"], pa.large_string()), pa.array(["x", None], pa.large_string())
    with pytest.raises(ContractError, match="1 of 2 texts are null"), sample:
        sample.add(keys, texts)
