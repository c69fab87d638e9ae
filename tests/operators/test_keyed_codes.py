"""Product quantization by keys: ids are those of the best keys, ties go to the lowest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ContractError
from operators.image_tokenizers.quantize.keyed import KeyedCodes


def quantizer(streams: int, num_codes: int, width: int, seed: int) -> KeyedCodes:
    made = KeyedCodes(num_codes, streams * width, streams)
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    made.requires_grad_(False)
    return made


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.integers(1, 5), st.integers(0, 2**16))
def test_ids_and_vectors_code_by_code(streams: int, num_codes: int, width: int, seed: int) -> None:
    made = quantizer(streams, num_codes, width, seed)
    latents = torch.randn(2, 3, streams * width, generator=torch.Generator().manual_seed(seed + 1))
    ids = made.encode(latents)
    assert ids.shape == (2, 3, streams)
    vectors = made.decode(ids)
    assert vectors.shape == latents.shape
    for stream in range(streams):
        part = slice(stream * width, (stream + 1) * width)
        fits = latents[..., part] @ (made.codes[stream] @ made.key_weight[stream]).T
        picked = fits.gather(-1, ids[..., stream : stream + 1])[..., 0]
        torch.testing.assert_close(picked, fits.max(dim=-1).values)
        values = made.codes[stream] @ made.value_weight[stream]
        torch.testing.assert_close(vectors[..., part], values[ids[..., stream]])


def test_ties_go_to_the_lowest_id() -> None:
    made = quantizer(2, 6, 3, seed=0)
    made.codes.data[:, 3:] = made.codes.data[:, :3]
    ids = made.encode(torch.randn(50, 6, generator=torch.Generator().manual_seed(1)))
    assert int(ids.max()) < 3


def test_ids_out_of_range() -> None:
    with pytest.raises(ContractError, match="id 4 is out of range, expected 0 to 3"):
        quantizer(2, 4, 3, seed=0).decode(torch.tensor([[0, 4]]))
