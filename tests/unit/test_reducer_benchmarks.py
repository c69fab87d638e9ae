"""The benchmarks of reducers reach every reducer, and measure what they say."""

import numpy as np
import pytest

from benchmarks.reducer_chain import Encoder, build_chain, reducer_names
from benchmarks.reducer_quality import measures, nearest_in_grid

ENCODER = Encoder(tokens=144, channels=8, heads=2, head_dim=4)


@pytest.mark.parametrize("name", reducer_names())
def test_every_reducer_can_be_measured(name: str) -> None:
    chain = build_chain(name, 36, ENCODER)
    assert chain is not None
    out = chain(chain.batch(2))
    assert len(out["features"]) == len(out["token_map"]) == 2


def test_a_method_that_halves_is_put_in_a_row() -> None:
    chain = build_chain("tome", 20, ENCODER)
    assert chain is not None
    assert [step.config.keep for step in chain.steps] == [72, 36, 20]
    assert chain.kept == 20


def test_nothing_is_lost_when_all_is_kept() -> None:
    features = np.random.default_rng(0).normal(size=(9, 4))
    found = measures(features, features, np.arange(9), 9)
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-7)


def test_what_is_lost() -> None:
    features = np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 8.0], [6.0, 0.0]])
    found = measures(features, features[:1], np.array([0, -1, -1, -1]), 4)
    norm = np.sqrt(9 + 16 + 64 + 36)
    assert found["zero"] == pytest.approx(np.sqrt(16 + 64 + 36) / norm)
    assert found["near"] == pytest.approx(np.sqrt(9 + 16 + 9 + 64 + 9) / norm)
    assert found["mean"] == pytest.approx(0.5)
    assert found["far"] == pytest.approx(1.0)


def test_crops_are_covered_by_their_own_rows() -> None:
    features = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    apart = measures(features, features[::-1], np.zeros((2, 1), int), 1)
    together = measures(features, features[:, 0], np.array([[0], [1]]), 1)
    assert apart["mean"] == pytest.approx(1)
    assert together["mean"] == pytest.approx(0)


def test_the_nearest_represented_token_of_a_grid() -> None:
    is_there = np.array([True, False, False, False, False, False, False, False, True])
    assert nearest_in_grid(is_there).tolist() == [0, 0, 0, 0, 0, 8, 0, 8, 8]
