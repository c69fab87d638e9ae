"""TokenCorrCompressor: as many tokens as a crop has that do not repeat, by class attention."""

from typing import Annotated, Literal

from pydantic import Field

from operators.reducers.base import (
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    cosine,
    select_some,
    top_k,
)


class TokenCorrCompressorConfig(ReducerConfig):
    """What a job may say about TokenCorrCompressor."""

    name: Literal["token_corr_compressor"] = "token_corr_compressor"
    similarity: Annotated[
        float, Field(ge=-1, le=1, description="Cosine of keys from which two tokens are alike.")
    ] = 0.9
    repeats: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="A token is redundant when more than this share of its crop's other tokens "
            "is alike.",
        ),
    ] = 0.05
    least: Annotated[int, Field(ge=1, description="Tokens that every crop keeps.")] = 1


class TokenCorrCompressor(Reducer[TokenCorrCompressorConfig]):
    """Keeps as large a share of a crop as is not redundant; raster order.

    Every crop for itself: tokens whose keys (heads side by side) are like those of many others are
    redundant; the share of the others is the crop's information density, and as large a share of
    its tokens (rounded up) is kept. Which ones, class attention says, averaged over heads and over
    all ``attention_layers``: the highest. So a blank margin costs a crop its tokens by their
    number, while a redundant token may stay where the class token looks at it.

    Source: Zhang et al., "Token-level Correlation-guided Compression", section 3. There is no
    public code: density from the cosine of keys and selection guided by class attention are the
    paper's, its thresholds and the details of its sampling could not be checked, so the defaults
    are ours and the highest are taken instead of samples. Checked: a brute-force oracle.
    """

    Config = TokenCorrCompressorConfig
    paper = "arXiv:2407.14439"
    is_adaptive = True

    @property
    def signals(self) -> tuple[str, ...]:
        """Class attention and keys."""
        return ("cls_attention", "keys")

    def num_kept(self, num_tokens: int) -> int:
        """Return all tokens: none may be redundant."""
        return num_tokens

    def reduce(self, tokens: Tokens) -> Reduction:
        """Count what repeats, then select by score."""
        import torch

        keys = tokens.signal("keys").flatten(2)
        num = keys.shape[1]
        valid = tokens.valid
        if valid is None:
            valid = torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device)
        is_alike = cosine(keys, keys) >= self.config.similarity
        itself = torch.eye(num, dtype=torch.bool, device=keys.device)
        alike = (is_alike & ~itself & valid[:, None]).sum(dim=2)
        count = valid.sum(dim=1)
        most = (count - 1).double() * self.config.repeats
        distinct = ((alike <= most[:, None]) & valid).sum(dim=1)  # density times count
        lengths = torch.minimum(distinct.clamp(min=self.config.least), count)
        scores = tokens.signal("cls_attention").float().mean(dim=(1, 2))
        order = top_k(tokens.without_padding(scores), num)
        is_kept = torch.arange(num, device=keys.device) < lengths[:, None]
        order = torch.where(is_kept, order, order + num).sort(dim=1).values  # kept ones in front
        return select_some(tokens, order % num, lengths)
