"""DART: a few pivots, and the tokens that are least like them."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.errors import ContractError
from operators.reducers.base import (
    Keep,
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    cosine,
    in_raster_order,
    select,
    top_k,
)

if TYPE_CHECKING:
    import torch


class DARTConfig(ReducerConfig):
    """What a job may say about DART."""

    name: Literal["dart"] = "dart"
    keep: Annotated[
        Keep,
        Field(description="Tokens that the pivots choose, or their share; pivots are kept as well"),
    ] = 0.25
    pivots: Annotated[int, Field(ge=1, description="Tokens of the largest keys.")] = 4


class DART(Reducer[DARTConfig]):
    """Keeps pivots, the tokens of the largest keys, and for each of them those least like it.

    Pivots are by the L1 norm of the keys of all heads. In raster order each takes the same number
    of tokens of the lowest cosine to it, from those that are left: what ``keep`` gives divided by
    the pivots, without the remainder. So the result has ``keep``, rounded down to a multiple of the
    pivots, and the pivots. Rows: as read.

    The authors' pivots are of an image and of the text after it, in a layer of a language model,
    and take turns in the order of a Python set, on which the result depends; here there is no text.
    The paper's own rule is a bound of similarity to the pivots, the code's a fixed number.

    Source: Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models",
    section 3. The authors' code is not public; checked: the tokens of a public copy's, a
    brute-force oracle.
    """

    Config = DARTConfig
    paper = "arXiv:2502.11494"

    @property
    def signals(self) -> tuple[str, ...]:
        """Keys."""
        return ("keys",)

    def num_kept(self, num_tokens: int) -> int:
        """Return the pivots and what they choose.

        Raises:
            ContractError: more than there are.
        """
        pivots = self.config.pivots
        kept = pivots * (1 + self._quota(num_tokens))
        if kept > num_tokens:
            raise ContractError(
                f"dart: {pivots} pivots and keep={self.config.keep} are {kept} of {num_tokens} "
                "tokens",
                hint=f"keep at most {max(num_tokens - pivots, 0)}, or take fewer pivots",
            )
        return kept

    def reduce(self, tokens: Tokens) -> Reduction:
        """Choose pivots, then by them."""
        import torch

        norms = tokens.signal("keys").float().abs().flatten(2).sum(dim=2)
        pivots = top_k(tokens.without_padding(norms), self.config.pivots).sort(dim=1).values
        width = tokens.features.shape[2]
        of_pivots = tokens.features.gather(1, pivots[..., None].expand(-1, -1, width))
        is_pivot = torch.zeros_like(norms, dtype=torch.bool).scatter(1, pivots, value=True)
        chosen = least_alike(tokens, of_pivots, is_pivot, self._quota(norms.shape[1]))
        return select(
            tokens, in_raster_order(chosen | is_pivot)[:, : self.num_kept(norms.shape[1])]
        )

    def _quota(self, num_tokens: int) -> int:
        keep = self.config.keep
        return int((keep if isinstance(keep, int) else num_tokens * keep) // self.config.pivots)


def least_alike(
    tokens: Tokens, pivots: "torch.Tensor", is_barred: "torch.Tensor", quota: int
) -> "torch.Tensor":
    """Return bool [B, N]: the tokens that pivots choose, one after another.

    Args:
        tokens: What is chosen from; padding comes last.
        pivots: [B, P, C], features, in the order in which they choose.
        is_barred: bool [B, N], tokens that are not chosen.
        quota: How many each chooses.
    """
    import torch

    alike = cosine(pivots, tokens.features)
    if tokens.valid is not None:
        alike = alike.masked_fill(~tokens.valid[:, None], 2)
    chosen = torch.zeros_like(is_barred)
    for of_one in alike.unbind(dim=1):
        left = of_one.masked_fill(is_barred | chosen, 3)
        chosen = chosen.scatter(1, top_k(-left, quota), value=True)
    return chosen
