"""HiPrune: what a middle layer attends to, its neighbours, and what a deep layer attends to."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.reducers.attention import class_scores, received
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

if TYPE_CHECKING:
    import torch


class HiPruneConfig(ReducerConfig):
    """What a job may say about HiPrune."""

    name: Literal["hiprune"] = "hiprune"
    keep: Annotated[Keep, Field(description="Tokens of a crop that are left, or their share.")] = (
        192
    )
    alpha: Annotated[
        float,
        Field(ge=0, le=1, description="Share of `keep` for anchors with their four neighbours."),
    ] = 0.1
    class_query: Annotated[
        bool,
        Field(
            description="The class token counts among those that attend, as with CLIP; off for "
            "encoders that have none."
        ),
    ] = True
    grid_width: GridWidth = None
    variant: Annotated[
        Literal["authors", "paper"],
        Field(
            description="Neighbours at the edge: `authors` takes the last token of the row above "
            "for the left one, and so on; `paper` leaves out what is outside."
        ),
    ] = "authors"


class HiPrune(Reducer[HiPruneConfig]):
    """Keeps anchors, buffers and registers, in raster order.

    Anchors are the tokens that receive most attention in the first of ``attention_layers``, as many
    as a fifth of ``alpha`` of the budget (half to even); buffers are the tokens left, right, above
    and below them; registers, those of the rest that receive most in the last layer, fill the
    budget. Received attention is averaged over heads and over all that attend. The authors read
    layers 9 and 23 of CLIP's 24 (counted from 1), and 16 and 32 of Qwen2.5-VL's 32.

    Every crop has its own budget: the authors divide a total by the number of crops, rounded down.

    ``variant: authors``: a neighbour is the token one or a row's width before or after, held
    between the first and the last token; so at the left edge it is the last token of the row above,
    and above the first row it is the first token. ``paper`` leaves such neighbours out.

    Source: Liu et al., "HiPrune", section 3. Checked: the authors' choices for one and two crops
    and for a grid that is not square, a brute-force oracle.
    """

    Config = HiPruneConfig
    paper = "arXiv:2508.00553"
    needs_grid = True

    @property
    def signals(self) -> tuple[str, ...]:
        """Attention of two layers."""
        return ("attention", "cls_attention") if self.config.class_query else ("attention",)

    def check_signal(self, name: str, spec: FieldSpec) -> None:
        """Check that there are two layers.

        Raises:
            ContractError: there is one.
        """
        layers = spec.shape[-4] if name == "attention" else spec.shape[-3]
        if layers is not None and layers < 2:
            raise ContractError(
                f"hiprune: {name} {spec} is of {layers} layer, expected a middle and a deep one",
                hint="set the encoder's attention_layers to two layers",
            )

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens, half to even.

        Raises:
            ContractError: anchors and their neighbours may be more.
        """
        kept = share(self.config.keep, num_tokens, self.config.name)
        grid(num_tokens, self.config.grid_width, self.config.name)
        if 5 * self._num_anchors(kept) > kept:
            raise ContractError(
                f"hiprune: {self._num_anchors(kept)} anchors with four neighbours each may be more "
                f"than the {kept} tokens that are kept",
                hint="set a lower alpha or a higher keep",
            )
        return kept

    def reduce(self, tokens: Tokens) -> Reduction:
        """Select anchors and buffers, fill up with registers."""
        import torch

        kept = self.num_kept(tokens.features.shape[1])
        shallow = tokens.without_padding(self._received(tokens, 0))
        anchors = top_k(shallow, self._num_anchors(kept))
        first = self._with_neighbours(anchors, tokens.features.shape[1])
        deep = self._received(tokens, -1).masked_fill(first, torch.finfo(torch.float32).max)
        index = top_k(tokens.without_padding(deep), kept)
        return select(tokens, index.sort(dim=1).values)

    def _num_anchors(self, kept: int) -> int:
        return round(self.config.alpha * kept / 5)

    def _received(self, tokens: Tokens, layer: int) -> "torch.Tensor":
        by_class = class_scores(tokens, layer) if self.config.class_query else None
        return received(tokens.signal("attention")[:, layer], tokens, by_class)

    def _with_neighbours(self, anchors: "torch.Tensor", num: int) -> "torch.Tensor":
        """Return bool [B, N]: anchors [B, A] and the tokens beside them."""
        import torch

        _, width = grid(num, self.config.grid_width, self.config.name)
        steps = torch.tensor([0, -1, 1, -width, width], device=anchors.device)
        around = anchors[..., None] + steps
        if self.config.variant == "paper":
            column = anchors % width
            is_inside = (around >= 0) & (around < num)
            is_inside[..., 1] &= column > 0
            is_inside[..., 2] &= column < width - 1
            around = torch.where(is_inside, around, anchors[..., None])
        around = around.clamp(0, num - 1).flatten(1)
        found = torch.zeros(len(anchors), num, dtype=torch.bool, device=anchors.device)
        return found.scatter(1, around, True)
