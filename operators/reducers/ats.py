"""ATS: as many tokens as differ where the class attention is sampled evenly."""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from operators.reducers.base import (
    Keep,
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    in_raster_order,
    select_some,
    share,
)


class AtsConfig(ReducerConfig):
    """What a job may say about ATS."""

    name: Literal["ats"] = "ats"
    keep: Annotated[
        Keep,
        Field(description="Samples, or their share of the tokens: the most that can be left."),
    ] = 0.5
    variant: Annotated[
        Literal["authors", "paper"],
        Field(
            description="How samples are spaced: `authors` leaves the last of one more out, as the "
            "authors of the benchmark do; `paper` spreads them over the whole."
        ),
    ] = "authors"


class Ats(Reducer[AtsConfig]):
    """Samples tokens by class attention times length of the value, in raster order.

    The scores are added up in raster order to a distribution; for each of evenly spaced heights the
    token is kept whose sum is nearest. Few tokens of high score are sampled many times, so few are
    left; an image without such tokens keeps more. Class attention is that of the last of several
    ``attention_layers``; ``key_layer`` should be the same.

    ``variant: authors`` asks for one sample more than ``keep`` and leaves the last one out, because
    its end is exclusive; where the division is rounded up, one sample more than ``keep`` is taken
    (``keep`` of 2, 6, 11, 13, ...). ``paper`` takes ``keep`` samples at (2i + 1) / (2 keep).
    Padding counts as never sampled; in the authors' code it moves the sums.

    Source: Fayyaz et al., "Adaptive Token Sampling for Efficient Vision Transformers", section 3;
    ``authors`` is the re-implementation that "Which Tokens to Use?" is measured with. Checked: its
    indices, a brute-force oracle.
    """

    Config = AtsConfig
    paper = "arXiv:2111.15667"
    is_adaptive = True

    @property
    def signals(self) -> tuple[str, ...]:
        """Class attention and values."""
        return ("cls_attention", "values")

    def num_kept(self, num_tokens: int) -> int:
        """Return the number of samples, at most all tokens."""
        return min(len(self._heights(num_tokens)), num_tokens)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Sample, and keep each token that was sampled once."""
        import torch

        attention = tokens.signal("cls_attention")[:, -1].float()
        length = tokens.signal("values").float().norm(dim=-1).transpose(1, 2)
        scores = (attention * length).sum(dim=1)
        if tokens.valid is not None:
            scores = scores.masked_fill(~tokens.valid, 0)
        scores = scores / (scores.sum(dim=1, keepdim=True) + 1e-6)
        sums = scores.double().cumsum(dim=1)
        heights = torch.from_numpy(self._heights(scores.shape[1])).to(sums.device)
        gaps = (sums[:, None] - heights[:, None]).abs()
        if tokens.valid is not None:
            gaps = gaps.masked_fill(~tokens.valid[:, None], float("inf"))
        is_kept = torch.zeros_like(scores, dtype=torch.bool)
        is_kept.scatter_(1, gaps.argmin(dim=2), True)  # the first of equals
        if tokens.valid is not None:
            is_kept &= tokens.valid
        index = in_raster_order(is_kept)[:, : self.num_kept(scores.shape[1])]
        return select_some(tokens, index, is_kept.sum(dim=1))

    def _heights(self, num_tokens: int) -> np.ndarray:
        """Return float64 [K]: where the distribution is sampled."""
        count = share(self.config.keep, num_tokens, self.config.name, rounding=int)
        if self.config.variant == "paper":
            return (2 * np.arange(count) + 1) / (2 * count)
        step = 2 * (count + 1)
        first, last = 1 / step, (step - 1) / step
        points = math.ceil((last - first) / (2 / step))  # its rounding is part of the method
        return (first + np.arange(points) * (2 / step)).astype(np.float32).astype(np.float64)
