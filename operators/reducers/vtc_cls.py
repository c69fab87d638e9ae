"""VTC-CLS: the tokens that the class token attends to most over several layers."""

from typing import Annotated, Literal

from pydantic import Field

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


class VtcClsConfig(ReducerConfig):
    """What a job may say about VTC-CLS."""

    name: Literal["vtc_cls"] = "vtc_cls"
    keep: Annotated[Keep, Field(description="Tokens that are left, or their share.")] = 0.25


class VtcCls(Reducer[VtcClsConfig]):
    """Keeps the tokens of the highest class attention, summed over layers, in raster order.

    All ``attention_layers`` of the encoder count alike. The authors take every layer from a first
    one (which they choose per budget; neither paper nor code has a default) up to the one that
    ``features`` are of: its own attention forms them, that of later layers does not. Their code
    sums where the paper averages, which gives the same order.

    Source: Wang et al., "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs",
    section 3. Checked: the authors' indices and features, a brute-force oracle.
    """

    Config = VtcClsConfig
    paper = "arXiv:2412.05819"

    @property
    def signals(self) -> tuple[str, ...]:
        """Class attention of one or several layers."""
        return ("cls_attention",)

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens, half to even."""
        return share(self.config.keep, num_tokens, self.config.name)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Select by score."""
        scores = tokens.signal("cls_attention").float().mean(dim=2).sum(dim=1)
        index = top_k(tokens.without_padding(scores), self.num_kept(scores.shape[1]))
        return select(tokens, index.sort(dim=1).values)
