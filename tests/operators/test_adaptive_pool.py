"""Adaptive pooling: as torch does it, and the map."""

import pytest
import torch

from operators.errors import ContractError
from tests.reducer_cases import reducer, tokens_of


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4), (5, 7), (7, 7)])
def test_it_is_what_torch_does(grid: tuple[int, int]) -> None:
    features = torch.randn(2, 49, 5, generator=torch.Generator().manual_seed(0))
    found = reducer("adaptive_pool", 49, channels=5, grid=grid).reduce(tokens_of(features))
    maps = features.transpose(1, 2).reshape(2, 5, 7, 7)
    wanted = torch.nn.functional.adaptive_avg_pool2d(maps, grid).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found.features, wanted)


def test_tokens_lead_to_a_window_that_holds_them() -> None:
    features = torch.eye(25)[None]  # a row's features say what it averages
    found = reducer("adaptive_pool", 25, channels=25, grid=(3, 4)).reduce(tokens_of(features))
    held = found.features[0, found.token_map[0]].diagonal()
    assert (held > 0).all()
    assert found.sizes is not None
    assert found.sizes.tolist()[0] == (found.features[0] > 0).sum(dim=1).tolist()


def test_more_windows_than_lines_are_refused() -> None:
    with pytest.raises(ContractError, match=r"grid=\[3, 6\] of 5 x 5 tokens"):
        reducer("adaptive_pool", 25, grid=(3, 6))
