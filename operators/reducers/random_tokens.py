"""Random tokens: the baseline that every method should beat."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from operators.base import FieldSpec
from operators.keyed_draws import draws_of_keys
from operators.reducers.base import Keep, Reducer, ReducerConfig, Reduction, Tokens, select, share
from operators.reducers.clustering import names_of
from operators.splitmix import STEP, mixed


class RandomTokensConfig(ReducerConfig):
    """What a job may say about random tokens."""

    name: Literal["random_tokens"] = "random_tokens"
    keep: Annotated[Keep, Field(description="Tokens that are left, or their share.")] = 0.5
    seed: Annotated[int, Field(ge=0, description="With a sample's key it says which.")] = 0


class RandomTokens(Reducer[RandomTokensConfig]):
    """Keeps tokens by chance, in raster order.

    Which ones depends on the seed, the sample's key, the crop and the number of tokens alone, not
    on device or batch: the tokens of the lowest 64-bit numbers, made by SplitMix64 (Steele et al.,
    2014) from SHA-256 of seed and key. All subsets are equally likely. A share is rounded half to
    even. Checked: the numbers against an independent implementation in Python integers.
    """

    Config = RandomTokensConfig
    paper = "none: a baseline"

    @property
    def further_inputs(self) -> Mapping[str, FieldSpec]:
        """The key."""
        return {"key": FieldSpec("string")}

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens, half to even."""
        return share(self.config.keep, num_tokens, self.config.name)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Draw without replacement."""
        import torch

        num = tokens.features.shape[1]
        numbers = numbers_of(self.config.seed, names_of(tokens), num)
        rank = torch.from_numpy(numbers.argsort(axis=1, kind="stable")).to(tokens.features.device)
        if tokens.valid is not None:  # padding last
            is_padding = (~tokens.valid.gather(1, rank)).to(torch.int8)
            rank = rank.gather(1, is_padding.sort(dim=1, stable=True).indices)
        return select(tokens, rank[:, : self.num_kept(num)].sort(dim=1).values)


def numbers_of(seed: int, names: pa.Array, num: int) -> np.ndarray:
    """Return uint64 [B, num], independent of one another."""
    draws = draws_of_keys(seed, "random_tokens", names)
    states = (draws[:, :1] * 2.0**53).astype(np.uint64)
    return mixed(states + np.arange(1, num + 1, dtype=np.uint64) * np.uint64(STEP))
