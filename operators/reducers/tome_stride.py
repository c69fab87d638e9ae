"""ToMe with a stride: every k-th token takes in the others that are most like it."""

from typing import Annotated, Literal

from pydantic import Field

from operators.errors import ContractError
from operators.reducers.base import Reduction, Tokens, cosine, merge
from operators.reducers.key_metric import KeyMetricConfig, KeyMetricReducer


class ToMeStrideConfig(KeyMetricConfig):
    """What a job may say about ToMe with a stride."""

    name: Literal["tome_stride"] = "tome_stride"
    stride: Annotated[
        int, Field(ge=2, description="One of so many tokens is left, the last of each run.")
    ] = 4


class ToMeStride(KeyMetricReducer[ToMeStrideConfig]):
    """Merges every token into the most alike of the last ones of each run of ``stride`` tokens.

    Alike is by cosine, over the whole image; averages are weighted by size. Rows: as read. Tokens
    after the last whole run are dropped, as by the authors.

    Source: the code of Bolya et al., "Token Merging" (arXiv:2210.09461), which the paper does not
    describe. Checked: the authors' features, a brute-force oracle.
    """

    Config = ToMeStrideConfig
    paper = "arXiv:2210.09461"

    def num_kept(self, num_tokens: int) -> int:
        """Return the number of whole runs.

        Raises:
            ContractError: there is none.
        """
        stride = self.config.stride
        if num_tokens < stride:
            raise ContractError(
                f"tome_stride: stride={stride} is more than the {num_tokens} tokens",
                hint=f"set stride to at most {num_tokens}",
            )
        return num_tokens // stride

    def reduce(self, tokens: Tokens) -> Reduction:
        """Match and merge."""
        import torch

        keys = self.metric_of(tokens)
        stride, kept = self.config.stride, self.num_kept(keys.shape[1])
        whole = kept * stride
        alike = cosine(keys[:, :whole], keys[:, stride - 1 : whole : stride])
        if tokens.valid is not None:
            alike = alike.masked_fill(~tokens.valid[:, None, stride - 1 : whole : stride], -2)
        token_map = torch.full(keys.shape[:2], -1, device=keys.device)
        token_map[:, :whole] = alike.argmax(dim=2)
        token_map[:, stride - 1 : whole : stride] = torch.arange(kept, device=keys.device)
        return merge(tokens, token_map, kept)
