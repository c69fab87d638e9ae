"""Finite scalar quantization: ids and codes are inverse, values reach every level."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from operators.image_tokenizers.quantize.fsq import FSQ
from operators.image_tokenizers.quantize.mixed_radix import split_ids

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=5)


@given(levels=LEVELS, data=st.data())
def test_codes_are_the_inverse_of_ids(levels: list[int], data: st.DataObject) -> None:
    fsq = FSQ(levels)
    ids = torch.tensor(data.draw(st.lists(st.integers(0, fsq.codebook_sizes[0] - 1), min_size=1)))
    codes = fsq.decode(ids)
    assert codes.dtype == torch.float32
    assert float(codes.abs().max()) <= 1

    half = np.array(levels) // 2
    assert np.allclose(codes.numpy() * half + half, split_ids(ids.numpy(), levels), atol=1e-5)
    # Undo the bound, and quantize again.
    sizes = torch.tensor(levels)
    reach, offset = (sizes - 1) * 1.001 / 2, (sizes % 2 == 0) * 0.5
    latents = torch.atanh((codes * (sizes // 2) + offset) / reach) - torch.atanh(offset / reach)
    assert torch.equal(fsq.encode(latents), ids)


@given(levels=LEVELS, data=st.data())
def test_ids_lie_in_the_codebook(levels: list[int], data: st.DataObject) -> None:
    fsq = FSQ(levels)
    value = st.floats(-1e6, 1e6, width=32)
    latents = torch.tensor(data.draw(st.lists(value, min_size=len(levels), max_size=len(levels))))
    assert 0 <= int(fsq.encode(latents)) < fsq.codebook_sizes[0]


@pytest.mark.parametrize("level", range(2, 10))
def test_every_level_is_reached_in_order(level: int) -> None:
    ids = FSQ([level]).encode(torch.linspace(-8, 8, 4001)[:, None])
    assert ids.unique_consecutive().tolist() == list(range(level))


def test_first_channel_is_least_significant() -> None:
    fsq = FSQ([8, 5])
    latents = torch.tensor([[-9.0, -9.0], [9.0, -9.0], [-9.0, 9.0], [9.0, 9.0]])
    assert fsq.encode(latents).tolist() == [0, 7, 32, 39]


def test_zero_is_the_middle() -> None:
    assert FSQ([8, 5]).encode(torch.zeros(2)).tolist() == 4 + 8 * 2
    assert FSQ([8, 5]).decode(torch.tensor(4 + 8 * 2)).tolist() == [0.0, 0.0]


def test_bfloat16_latents_are_quantized_in_float32() -> None:
    latents = torch.linspace(-3, 3, 64, dtype=torch.bfloat16)[:, None]
    assert FSQ([8]).bound(latents).dtype == torch.float32
    assert torch.equal(FSQ([8]).encode(latents), FSQ([8]).encode(latents.float()))
