"""Reduced features back in their places, in every form that reducers write, sample by sample."""

import numpy as np
import pytest
import torch

from operators.reducers.unreduce import unreduce as unreduce_one
from pipeline.errors import ContractError
from pipeline.loader import RaggedBatch, size_bias, unreduce
from tests.reducer_cases import golden

TOKENS, CHANNELS = 7, 3


def ragged(rows: list[np.ndarray]) -> RaggedBatch:
    lengths = np.cumsum([0, *map(len, rows)])
    return RaggedBatch(torch.from_numpy(np.concatenate(rows)), torch.from_numpy(lengths))


CROPS: dict[str, list[tuple[int, ...]]] = {
    "one": [()] * 4,
    "several": [(2,)] * 4,
    "any": [(2,), (0,), (3,), (1,)],
}


def samples(crops: str, rows: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return features and maps of four samples.

    Args:
        crops: Of each sample.
        rows: of each crop ``five``; or of the whole sample, ``five together`` or ``differing``.
    """
    random = np.random.default_rng(0)
    features, maps = [], []
    for sample, shape in enumerate(CROPS[crops]):
        kept = sample + 1 if rows == "differing" else 5
        leading = shape if rows == "five" else ()
        values = random.normal(size=(*leading, kept, CHANNELS))
        features.append(values.astype(np.float32))
        maps.append(random.integers(-1, kept, (*shape, TOKENS)).astype(np.int16))
    return features, maps


def together(rows: list[np.ndarray]) -> torch.Tensor | RaggedBatch:
    """Return rows as the loader gives them."""
    if len({row.shape for row in rows}) > 1:
        return ragged(rows)
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("crops", ["one", "several"])
@pytest.mark.parametrize("rows", ["five", "five together", "differing"])
def test_every_token_has_the_row_that_stands_for_it(crops: str, rows: str) -> None:
    features, maps = samples(crops, rows)
    token_map = torch.from_numpy(np.stack(maps))
    dense, mask = unreduce(together(features), token_map, fill=9.0)
    for sample in range(4):
        want, is_there = unreduce_one(features[sample], maps[sample], fill=9.0)
        assert np.array_equal(dense[sample], want)
        assert np.array_equal(mask[sample], is_there)


@pytest.mark.parametrize("rows", ["five", "differing"])
def test_any_number_of_crops(rows: str) -> None:
    features, maps = samples("any", rows)
    dense, mask = unreduce(ragged(features), ragged(maps))
    assert dense.lengths.tolist() == [2, 0, 3, 1]
    for sample in range(4):
        want, is_there = unreduce_one(features[sample], maps[sample])
        assert np.array_equal(dense[sample], want)
        assert np.array_equal(mask[sample], is_there)


def test_gradients_are_summed_over_the_tokens_of_a_row() -> None:
    features = torch.ones(1, 3, CHANNELS, requires_grad=True)
    dense, _ = unreduce(features, torch.tensor([[0, 0, -1, 2]], dtype=torch.int16))
    dense.sum().backward()
    assert features.grad is not None
    assert features.grad[0, :, 0].tolist() == [2, 0, 1]


def test_the_dtype_stays() -> None:
    features = torch.ones(1, 2, CHANNELS, dtype=torch.bfloat16)
    dense, _ = unreduce(features, torch.tensor([[0, -1]], dtype=torch.int16))
    assert dense.dtype == torch.bfloat16
    assert dense[0, :, 0].tolist() == [1, 0]


def test_no_rows_at_all() -> None:
    features = RaggedBatch(torch.zeros(0, CHANNELS), torch.tensor([0, 0]))
    dense, mask = unreduce(features, torch.full((1, TOKENS), -1), fill=2.0)
    assert (dense == 2).all()
    assert not mask.any()


def test_fields_of_different_batches_are_refused() -> None:
    with pytest.raises(ContractError, match="features of 2 samples, token_map of 3"):
        unreduce(torch.zeros(2, 4, CHANNELS), torch.zeros(3, TOKENS))


def test_proportional_attention_is_the_authors() -> None:
    given, wanted = golden("tome", "proportional_attention")
    for sizes, name in ((given["size"][..., 0], "y"), (torch.ones(2, 40), "y_without_size")):
        projected = given["x"] @ given["qkv.weight"].T + given["qkv.bias"]
        q, k, v = projected.reshape(2, 40, 3, 4, 8).permute(2, 0, 3, 1, 4)
        found = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=size_bias(sizes)
        )
        merged = found.transpose(1, 2).flatten(2) @ given["proj.weight"].T + given["proj.bias"]
        torch.testing.assert_close(merged, wanted[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(k.mean(dim=1), wanted["metric"])


def test_padding_gets_no_attention() -> None:
    assert size_bias(torch.tensor([[3, 1, 0]])).tolist() == [
        [[[pytest.approx(np.log(3)), 0.0, float("-inf")]]]
    ]
