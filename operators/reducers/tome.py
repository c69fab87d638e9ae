"""ToMe: merge the tokens that are most alike, by bipartite matching."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.errors import ContractError
from operators.reducers.base import (
    Keep,
    Reduction,
    Tokens,
    cosine,
    merge,
    share,
    top_k,
)
from operators.reducers.key_metric import KeyMetricConfig, KeyMetricReducer

if TYPE_CHECKING:
    import torch


class ToMeConfig(KeyMetricConfig):
    """What a job may say about ToMe."""

    name: Literal["tome"] = "tome"
    keep: Annotated[
        Keep,
        Field(description="Tokens that are left, or their share; one call at most halves them."),
    ] = 0.5


class ToMe(KeyMetricReducer[ToMeConfig]):
    """Merges the most alike tokens of even and odd positions, weighted by size.

    Every even token is matched with the odd one that is most alike by cosine; the best matches are
    merged into the odd ones. Rows of the result: even tokens that are left, from the most alike to
    the least, then the odd ones. Put several in a row to merge in rounds, as the layers of a model
    do; sizes are carried from one to the next. A model that was trained without merging needs
    attention in proportion to ``sizes`` (their logarithm added to the scores of each token) when it
    goes on from merged tokens; that is the model's business.

    Source: Bolya et al., "Token Merging", section 3. Checked: the authors' groups, sizes and
    features over chained rounds, with class and distillation tokens too, a brute-force oracle.
    """

    Config = ToMeConfig
    paper = "arXiv:2210.09461"

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens; at least half of them.

        Raises:
            ContractError: fewer than half.
        """
        kept = share(self.config.keep, num_tokens, self.config.name)
        if kept < num_tokens - num_tokens // 2:
            raise ContractError(
                f"tome: keep={self.config.keep} is {kept} of {num_tokens} tokens, one call can at "
                f"most halve them to {num_tokens - num_tokens // 2}",
                hint="put several tome operators in a row",
            )
        return kept

    def reduce(self, tokens: Tokens) -> Reduction:
        """Match and merge."""
        keys = self.metric_of(tokens)
        num = keys.shape[1]
        kept = self.num_kept(num)
        token_map = match(keys, num - kept, tokens)
        return merge(tokens, token_map, kept)


def match(
    metric: "torch.Tensor",
    num_merged: int,
    tokens: Tokens,
    *,
    has_class: bool = False,
    has_distilled: bool = False,
    ascending: bool = False,
) -> "torch.Tensor":
    """Return int64 [B, N]: the row of the result that each token goes into.

    Args:
        metric: [B, N, D], what is compared.
        num_merged: How many even tokens are merged, at most half of all that are not protected.
        tokens: Whose they are; padding is merged with nothing.
        has_class: The first token is a class token: it merges with none and stays first.
        has_distilled: The second token is a distillation token: none merges into it, and it stays
            second. Only with a class token.
        ascending: Even tokens that are left stand by place and not by likeness; always so with a
            class token.
    """
    import torch

    count, num = metric.shape[:2]
    even, odd = metric[:, 0::2], metric[:, 1::2]
    alike = cosine(even, odd)
    if tokens.valid is not None:
        alike = alike.masked_fill(~tokens.valid[:, None, 1::2], -2)
    if has_distilled:
        alike[:, :, 0] = -2
    best, partner = alike.max(dim=2)  # the first of equals
    if tokens.valid is not None:
        best = best.masked_fill(~tokens.valid[:, 0::2], -3)
    if has_class:
        best[:, 0] = -4
    order = top_k(best, even.shape[1])
    merged, left = order[:, :num_merged], order[:, num_merged:]
    if ascending or has_class:
        left = left.sort(dim=1).values
    rows = torch.empty_like(order)
    first_odd = left.shape[1]
    rows.scatter_(1, left, torch.arange(first_odd, device=rows.device).expand_as(left))
    rows.scatter_(1, merged, partner.gather(1, merged) + first_odd)
    token_map = torch.empty((count, num), dtype=torch.int64, device=metric.device)
    token_map[:, 0::2] = rows
    token_map[:, 1::2] = torch.arange(odd.shape[1], device=rows.device) + first_odd
    if has_distilled:  # from behind the even tokens to the second place
        between = (token_map >= 1) & (token_map < first_odd)
        token_map = torch.where(token_map == first_odd, 1, token_map + between)
    return token_map
