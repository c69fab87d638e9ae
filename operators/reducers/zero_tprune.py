"""Zero-TPrune: PageRank on the graph of attention, after dropping tokens that repeat others."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from operators.reducers.base import (
    LOWEST,
    TINY,
    Keep,
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    cosine,
    select,
    share,
    times_vector,
    top_k,
)

if TYPE_CHECKING:
    import torch


class ZeroTPruneConfig(ReducerConfig):
    """What a job may say about Zero-TPrune."""

    name: Literal["zero_tprune"] = "zero_tprune"
    keep: Annotated[Keep, Field(description="Tokens that are left, or their share.")] = 0.5
    similar: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of the dropped tokens that go because another is alike (at most "
            "half of all tokens can); the rest go by rank.",
        ),
    ] = 0.3
    rounds: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="Votes of the ranking. The paper: 30 to 50 in shallow layers, 5 to 10 in "
            "the middle, 1 in deep ones.",
        ),
    ] = 5
    min_variance: Annotated[
        float, Field(ge=0, description="Heads whose scores vary less are left out.")
    ] = 0.01
    max_variance: Annotated[
        float, Field(gt=0, description="Heads whose scores vary more are left out.")
    ] = 0.7

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_variance > self.max_variance:
            raise ValueError(
                f"min_variance {self.min_variance} is above max_variance {self.max_variance}"
            )
        return self


class ZeroTPrune(Reducer[ZeroTPruneConfig]):
    """Drops tokens that repeat more important ones, then those of low rank; raster order.

    Tokens vote for tokens with their attention, and a vote weighs as much as its token: weighted
    PageRank from equal scores, head by head. Heads are put together as the root of their mean
    square, which stresses what is important to few of them; heads that vary too little or too much
    are left out. Three stages, of the last of several ``attention_layers``: one round of votes
    ranks all tokens; of the lower half, those are dropped whose keys are most alike (cosine) to one
    of the upper half; of the rest, which vote ``rounds`` times among themselves, the best are kept.

    Where the paper's description leaves a choice: variance is measured on scores whose mean is one;
    if no head passes, all count; the class token has no vote (the paper's uniform start, without
    its extra weight), because encoders give its attention apart; ``similar`` is a default of ours.

    Source: Wang et al., "Zero-TPrune", section 3. There is no code of the authors. Checked: a
    brute-force oracle.
    """

    Config = ZeroTPruneConfig
    paper = "arXiv:2305.17328"

    @property
    def signals(self) -> tuple[str, ...]:
        """Attention among tokens, and keys."""
        return ("attention", "keys")

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens, half to even."""
        return share(self.config.keep, num_tokens, self.config.name)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Rank, drop what is alike, rank again."""
        import torch

        attention = tokens.signal("attention")[:, -1].float()
        num = attention.shape[2]
        is_left = tokens.valid
        if is_left is None:
            is_left = torch.ones(
                tokens.features.shape[:2], dtype=torch.bool, device=attention.device
            )
        kept = self.num_kept(num)
        is_left = is_left & ~self._repeated(tokens, self._ranked(attention, is_left, 1), is_left)
        scores = self._ranked(attention, is_left, self.config.rounds)
        index = top_k(scores.masked_fill(~is_left, LOWEST), kept)
        return select(tokens, index.sort(dim=1).values)

    def _ranked(
        self, attention: "torch.Tensor", is_left: "torch.Tensor", rounds: int
    ) -> "torch.Tensor":
        """Return float32 [B, N]: the importance of the tokens that are left, 0 for others."""
        import torch

        there = is_left.float()[:, None]
        count = there.sum(dim=2, keepdim=True).clamp(min=1)
        votes = attention.transpose(2, 3)
        scores = there.expand(-1, attention.shape[1], -1)
        for _ in range(rounds):
            scores = times_vector(votes, scores) * there
            mean = scores.sum(dim=2, keepdim=True) / count
            scores = scores / mean.clamp(min=TINY)
        variance = ((scores - 1) ** 2 * there).sum(dim=2, keepdim=True) / count
        passes = (variance >= self.config.min_variance) & (variance <= self.config.max_variance)
        passes = passes | ~passes.any(dim=1, keepdim=True)
        squares = torch.where(passes, scores**2, 0).sum(dim=1)
        return (squares / passes.sum(dim=1)).sqrt()

    def _repeated(
        self, tokens: Tokens, scores: "torch.Tensor", is_left: "torch.Tensor"
    ) -> "torch.Tensor":
        """Return bool [B, N]: tokens of the lower half that are most alike to the upper half."""
        import torch

        num = scores.shape[1]
        count = is_left.sum(dim=1, keepdim=True)
        lower = _rank(scores.masked_fill(~is_left, LOWEST)) >= count - count // 2
        keys = tokens.signal("keys").flatten(2)
        alike = cosine(keys, keys)
        alike = alike.masked_fill((lower | ~is_left)[:, None], -2).amax(dim=2)
        alike = alike.masked_fill(~lower | ~is_left, -3)
        dropped = (count - self.num_kept(num)).clamp(min=0)
        going = torch.minimum((dropped * self.config.similar).round().long(), count // 2)
        return _rank(alike) < going


def _rank(scores: "torch.Tensor") -> "torch.Tensor":
    """Return int64 [B, N]: the place of each token from high to low, ties by lowest index."""
    import torch

    order = top_k(scores, scores.shape[1])
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places)
