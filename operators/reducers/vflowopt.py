"""VFlowOpt: drop by calibrated attention and patch entropy, recycle what is dropped by cells."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.base import FieldSpec, Ragged
from operators.errors import ContractError
from operators.reducers.base import (
    LOWEST,
    TINY,
    Keep,
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    merge,
    share,
    times_vector,
)
from operators.reducers.grid import GridWidth, grid

if TYPE_CHECKING:
    import torch


class VFlowOptConfig(ReducerConfig):
    """What a job may say about VFlowOpt."""

    name: Literal["vflowopt"] = "vflowopt"
    keep: Annotated[
        Keep, Field(description="Tokens that are left, or their share; kept within a few.")
    ] = 0.3
    cell: Annotated[
        int,
        Field(ge=1, le=64, description="Side of the cells that dropped tokens are merged by."),
    ] = 4
    threshold: Annotated[
        float,
        Field(
            ge=0,
            description="Only tokens that receive more than this many times the mean attention say "
            "what is important; 0 is all.",
        ),
    ] = 7.0
    entropy_weight: Annotated[
        float, Field(ge=0, description="Of a patch's entropy against its attention; reads `image`.")
    ] = 0.0
    grid_width: GridWidth = None


class VFlowOpt(Reducer[VFlowOptConfig]):
    """Keeps important tokens and merges the others by cells of the grid; raster order.

    A token is as important as the attention that it gets on average from those tokens that
    themselves receive much (averaged over the heads of the last of several ``attention_layers``),
    plus ``entropy_weight`` times the softmax over the patches of the entropy of their grey values
    (256 bins, bits). The least important are dropped, then those of each cell merged, weighted by
    importance, into the most important of them, which is so kept. To leave room, one token more is
    dropped for each ``cell`` squared of all tokens; as cells need not be full, nor of dropped
    tokens, the number that is left differs a little from ``keep`` and between images.

    Every crop for itself; the authors drop from thumbnail and crops together, and merge the crops
    as one grid. Where no token reaches ``threshold``, all are asked (the authors' code gives NaN).
    Its search for the best settings runs within a language model and is left out: 7 and 0 are the
    defaults of its function. Entropy is measured on the RGB picture ``image`` as it is given
    (uint8, cut to whole patches); the code casts pixels that were scaled to -1 to 1 before.

    Source: Yang et al., "VFlowOpt", section 3.1. Checked: the authors' importance and recycling, a
    brute-force oracle.
    """

    Config = VFlowOptConfig
    paper = "arXiv:2508.05211"
    is_adaptive = True
    needs_grid = True

    @property
    def signals(self) -> tuple[str, ...]:
        """Attention among tokens."""
        return ("attention",)

    @property
    def further_inputs(self) -> Mapping[str, FieldSpec]:
        """The picture, or that of each crop, where entropy counts."""
        if not self.config.entropy_weight:
            return {}
        features = self._given.get("features")
        crops = () if features is None else features.shape[:-2]
        given = self._given.get("image")
        any_such = FieldSpec("uint8", (*crops, None, None, 3))
        return {"image": given if given is not None and any_such.accepts(given) else any_such}

    def check_signal(self, name: str, spec: FieldSpec) -> None:
        """Check that pictures are of whole square patches of the tokens.

        Raises:
            ContractError: they are not.
        """
        image = self._given.get("image")
        if not self.config.entropy_weight or image is None or len(image.shape) < 3:
            return  # the plan says what is missing or wrong
        rows, columns = self._grid(spec.shape[-1] or 1)
        height, width = image.shape[-3:-1]
        if not height or not width or height // rows != width // columns or height < rows:
            raise ContractError(
                f"vflowopt: image {image} has no square patches for the {rows} x {columns} tokens "
                f"of {name}",
                hint="give the picture that the encoder reads, of one size for all",
            )

    def num_kept(self, num_tokens: int) -> int:
        """Return the most that can be left: one token of every cell comes back.

        Raises:
            ContractError: more would be dropped than there are.
        """
        config = self.config
        share(config.keep, num_tokens, config.name)
        rows, columns = grid(num_tokens, config.grid_width, config.name)
        dropped = self._dropped(num_tokens)
        if dropped > num_tokens:
            raise ContractError(
                f"vflowopt: keep={config.keep} and one for each cell of {config.cell} x "
                f"{config.cell} would drop {dropped} of {num_tokens} tokens",
                hint="keep more, or set a larger cell",
            )
        cells = -(-rows // config.cell) * -(-columns // config.cell)
        return num_tokens - dropped + min(cells, dropped)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Weigh, drop and merge."""
        import torch

        num = tokens.features.shape[1]
        scores = importance(tokens, self.config.threshold)
        if self.config.entropy_weight:
            entropy = patch_entropy(_pictures(tokens), *self._grid(num))
            if tokens.valid is not None:
                entropy = entropy.masked_fill(~tokens.valid, LOWEST)
            scores = scores + self.config.entropy_weight * entropy.softmax(dim=1)
        cells = self._cells(num).to(scores.device)
        count = torch.full((len(scores),), num, device=scores.device)
        if tokens.valid is not None:
            count = tokens.valid.sum(dim=1)
        dropped = (count.double() * (1 - self._share(num))).round().long()
        dropped = dropped + count // self.config.cell**2
        dropped = torch.maximum(dropped, count - num + self._dropped(num))  # at most K
        token_map, lengths = recycle(tokens, scores, cells, dropped)
        found = merge(tokens, token_map, self.num_kept(num), scores.clamp(min=TINY))
        return Reduction(found.features, token_map, lengths)

    def _dropped(self, num_tokens: int) -> int:
        share_dropped = 1 - self._share(num_tokens)
        return round(num_tokens * share_dropped) + num_tokens // self.config.cell**2

    def _share(self, num_tokens: int) -> float:
        keep = self.config.keep
        return keep / num_tokens if isinstance(keep, int) else keep

    def _cells(self, num_tokens: int) -> "torch.Tensor":
        """Return bool [cells, N]: which tokens are in each cell."""
        import torch

        rows, columns = self._grid(num_tokens)
        side = self.config.cell
        place = torch.arange(num_tokens)
        across = -(-columns // side)
        cell = place // columns // side * across + place % columns // side
        return cell == torch.arange(-(-rows // side) * across)[:, None]

    def _grid(self, num_tokens: int) -> tuple[int, int]:
        return grid(num_tokens, self.config.grid_width, self.config.name)


def importance(tokens: Tokens, threshold: float) -> "torch.Tensor":
    """Return float32 [B, N]: attention from the tokens that receive much, on average.

    Args:
        tokens: With attention; padding asks for nothing.
        threshold: How many times the mean a token must receive to be asked.
    """
    import torch

    attention = tokens.signal("attention")[:, -1].float().mean(dim=1)
    valid = tokens.valid
    if valid is None:
        valid = torch.ones(attention.shape[:2], dtype=torch.bool, device=attention.device)
    received = times_vector(attention.transpose(1, 2), valid.float())
    mean = (received * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
    is_asked = (received > threshold * mean[:, None]) & valid
    is_asked = torch.where(is_asked.any(dim=1, keepdim=True), is_asked, valid).float()
    asked = is_asked.sum(dim=1, keepdim=True).clamp(min=1)
    return times_vector(attention.transpose(1, 2), is_asked) / asked


def patch_entropy(images: "torch.Tensor", rows: int, columns: int) -> "torch.Tensor":
    """Return float32 [B, N]: entropy in bits of the grey values of every patch.

    Args:
        images: uint8 [B, H, W, 3]; what goes beyond whole patches is cut off.
        rows: Of patches.
        columns: Of patches.
    """
    import torch

    side = images.shape[1] // rows
    cut = images[:, : rows * side, : columns * side].float()
    grey = (0.3333 * cut.sum(dim=3)).round().long()
    patches = grey.unflatten(1, (rows, side)).unflatten(3, (columns, side))
    patches = patches.transpose(2, 3).flatten(3).flatten(1, 2)
    counts = torch.zeros(*patches.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, patches, torch.ones_like(patches, dtype=torch.int32))
    probability = counts.float() / side**2
    return -(probability * (probability + 1e-10).log2()).sum(dim=2)


def recycle(
    tokens: Tokens, scores: "torch.Tensor", cells: "torch.Tensor", dropped: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return int64 [B, N]: the row that each token goes into, and int64 [B]: rows.

    Args:
        tokens: Whose they are; padding goes nowhere.
        scores: float32 [B, N], importance.
        cells: bool [cells, N]: the tokens of each cell.
        dropped: int64 [B]: how many of the least important are merged by cell.
    """
    import torch

    valid = tokens.valid
    if valid is None:
        valid = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    order = scores.masked_fill(~valid, -LOWEST).sort(dim=1, stable=True).indices
    places = torch.arange(scores.shape[1], device=scores.device)
    is_low = torch.zeros_like(valid).scatter(1, order, places < dropped[:, None]) & valid
    inside = is_low[:, None] & cells
    best = torch.where(inside, scores[:, None], LOWEST).argmax(dim=2)  # the first of equals
    returns = torch.zeros_like(inside).scatter(2, best[..., None], True) & inside
    is_kept = valid & ~is_low | returns.any(dim=1)
    rows = is_kept.cumsum(dim=1) - 1
    own = torch.where(is_low, best[:, cells.int().argmax(dim=0)], places)
    return torch.where(valid, rows.gather(1, own), -1), is_kept.sum(dim=1)


def _pictures(tokens: Tokens) -> "torch.Tensor":
    """Return uint8 [B, H, W, 3]: the picture of every row."""
    import torch

    images = tokens.more["image"]
    if isinstance(images, Ragged):
        return torch.from_numpy(images.values).to(tokens.features.device)
    pictures: torch.Tensor = images
    return pictures if tokens.crops is None else pictures.flatten(0, 1)
