"""FoPru: the tokens, or the rows of tokens, that receive most attention."""

from typing import Annotated, Literal

from pydantic import Field

from operators.errors import ContractError
from operators.reducers.attention import received
from operators.reducers.base import (
    Keep,
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    select,
    share,
    top_k,
)
from operators.reducers.grid import GridWidth, grid


class FoPruConfig(ReducerConfig):
    """What a job may say about FoPru."""

    name: Literal["fopru"] = "fopru"
    keep: Annotated[Keep, Field(description="Tokens that are left, or their share.")] = 0.25
    strategy: Annotated[
        Literal["rank", "row"],
        Field(description="Keep the best tokens, or whole rows of the grid that are best."),
    ] = "rank"
    grid_width: GridWidth = None


class FoPru(Reducer[FoPruConfig]):
    """Keeps the tokens that receive most attention from all tokens, in raster order.

    Received attention is averaged over the heads of the last of several ``attention_layers``; the
    paper reads the layer that ``features`` are of. ``strategy: rank`` keeps single tokens. ``row``
    adds up each row of the grid and keeps the best rows whole, so that a thing that stretches over
    a row stays in one piece: a number of tokens is that of full rows, a share is one of the rows
    (half to even).

    Source: Jiang et al., "FoPru: Focal Pruning for Efficient Large Vision-Language Models",
    section 3; there is no public code, so only the paper's description was followed: attention of
    the class token, which the encoder gives apart, is left out. Checked: a brute-force oracle.
    """

    Config = FoPruConfig
    paper = "arXiv:2411.14164"

    def __init__(self, config: FoPruConfig) -> None:
        super().__init__(config)
        self.needs_grid = config.strategy == "row"

    @property
    def signals(self) -> tuple[str, ...]:
        """Attention among tokens."""
        return ("attention",)

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of tokens or rows, half to even.

        Raises:
            ContractError: the budget is not of whole rows.
        """
        keep, name = self.config.keep, self.config.name
        if self.config.strategy == "rank":
            return share(keep, num_tokens, name)
        rows, width = grid(num_tokens, self.config.grid_width, name)
        if isinstance(keep, float):
            return share(keep, rows, name) * width
        if keep % width:
            raise ContractError(
                f"{name}: keep={keep} is not a number of whole rows of {width} tokens",
                hint=f"keep a multiple of {width}, or a share",
            )
        return share(keep, num_tokens, name)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Select by score."""
        import torch

        scores = received(tokens.signal("attention")[:, -1], tokens)
        num = scores.shape[1]
        kept = self.num_kept(num)
        if self.config.strategy == "row":
            _, width = grid(num, self.config.grid_width, self.config.name)
            if tokens.valid is not None:
                scores = scores.masked_fill(~tokens.valid, 0)
            first = top_k(scores.unflatten(1, (-1, width)).sum(dim=2), kept // width) * width
            index = (first[..., None] + torch.arange(width, device=first.device)).flatten(1)
        else:
            index = top_k(tokens.without_padding(scores), kept)
        return select(tokens, index.sort(dim=1).values)
