"""FastVGGT: merge the views of a scene into a first one, and into a grid of the others."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from operators.errors import ContractError
from operators.reducers.base import (
    Keep,
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    merge,
    share,
    sum_by_map,
    top_k,
)
from operators.reducers.pooling import square_side

if TYPE_CHECKING:
    import torch

Side = Annotated[int, Field(ge=1)]


class FastVGGTConfig(ReducerConfig):
    """What a job may say about FastVGGT's merging."""

    name: Literal["fastvggt"] = "fastvggt"
    keep: Annotated[
        Keep,
        Field(
            description="Tokens of all views that are left, or their share; where destinations and "
            "protected tokens are more, these are left."
        ),
    ] = 0.1
    protect: Annotated[
        float,
        Field(ge=0, lt=1, description="Share of tokens, evenly spaced, that also stay as they are"),
    ] = 0.1
    special_tokens: Annotated[
        int,
        Field(
            ge=0, description="Tokens before the patches of each view, all destinations; VGGT: 5"
        ),
    ] = 0
    grid: Annotated[
        tuple[Side, Side] | None,
        Field(description="Rows and columns of the patches of a view; null is a square."),
    ] = None
    seed: Annotated[
        int, Field(ge=0, description="Of the cell of each 2 x 2 block that is a destination.")
    ] = 33
    variant: Annotated[
        Literal["authors", "paper"],
        Field(description="authors: cosines are rounded to bfloat16. paper: they are float32."),
    ] = "authors"


class FastVGGT(Reducer[FastVGGTConfig]):
    """Merges tokens of all views into destinations: the whole first view, and a grid of the others.

    Reads all views of a scene, [V, N, C]. Destinations are the first view, the special tokens of
    each, and one cell of each 2 x 2 block of the patches of the others, drawn once for all samples.
    Every other token is matched with the destination that is most alike by cosine of its features;
    the best matches are merged, by size. An evenly spaced share is protected. Rows: tokens that
    were not merged, from the most alike to the least; the destinations; the protected tokens. A
    destination that is protected stands in both, once merged and once as it was; the map leads to
    the second, and ``sizes`` counts it in both.

    The authors draw cells on the device, so differently on a GPU; here it is always as on a CPU.
    Their order of equal scores is undefined; here it is by place.

    Source: Shen et al., "FastVGGT", section 3. Checked: the authors' groups and features, a
    brute-force oracle.
    """

    Config = FastVGGTConfig
    paper = "arXiv:2509.02560"
    is_joint = True
    needs_crops = True
    needs_grid = True

    @property
    def needs_whole(self) -> bool:
        """Padding has no place in a scene."""
        return True

    @property
    def offers(self) -> dict[str, str]:
        """No signals: rows overlap."""
        return {}

    def num_kept(self, num_tokens: int) -> int:
        """Return the tokens that are not merged, the destinations and the protected ones.

        Raises:
            ContractError: the grid does not fit.
        """
        parts = self._parts
        return num_tokens - self._num_merged(num_tokens) + int(parts.twice.sum())

    def reduce(self, tokens: Tokens) -> Reduction:
        """Match and merge."""
        import torch

        features, parts = tokens.features, self._parts
        device = features.device
        sources, destinations, guarded = (
            torch.from_numpy(np.flatnonzero(part)).to(device)
            for part in (parts.sources, parts.destinations, parts.guarded)
        )
        best, partner = self._alike(features, sources, destinations).max(dim=2)
        is_guarded = torch.from_numpy(parts.guarded).to(device)
        best = best.masked_fill(is_guarded[sources], -2)
        order = top_k(best, len(sources))
        merging = self._num_merged(features.shape[1])
        free = len(sources) - int((parts.guarded & parts.sources).sum())
        merged, left = order[:, :merging], order[:, merging:free]

        first = left.shape[1]  # of the destinations
        rows = torch.full_like(order, -1)
        rows.scatter_(1, left, torch.arange(first, device=device).expand_as(left))
        rows.scatter_(1, merged, partner.gather(1, merged) + first)
        into = torch.full(features.shape[:2], -1, device=device)
        into[:, sources] = rows
        into[:, destinations] = torch.arange(len(destinations), device=device) + first
        kept = first + len(destinations)
        found = merge(tokens, into, kept)
        sizes = sum_by_map(tokens.sizes[..., None], into, kept)[..., 0]
        final = into.clone()
        final[:, guarded] = torch.arange(len(guarded), device=device) + kept
        return Reduction(
            torch.cat([found.features, features[:, guarded]], dim=1),
            final,
            sizes=torch.cat([sizes, tokens.sizes[:, guarded]], dim=1),
        )

    def _alike(
        self, features: "torch.Tensor", sources: "torch.Tensor", destinations: "torch.Tensor"
    ) -> "torch.Tensor":
        """Return float32 [B, S, D]: cosines of sources with destinations."""
        import torch

        unit = torch.nn.functional.normalize(features.float(), dim=2)
        if self.config.variant == "authors":
            unit = unit.bfloat16().float()
        alike = unit[:, sources] @ unit[:, destinations].transpose(1, 2)
        return alike.bfloat16().float() if self.config.variant == "authors" else alike

    def _num_merged(self, num_tokens: int) -> int:
        keep, parts = self.config.keep, self._parts
        free = int((parts.sources & ~parts.guarded).sum())
        if isinstance(keep, int):
            return min(num_tokens - share(keep, num_tokens, "fastvggt"), free)
        return min(int((1 - keep) * num_tokens), free)

    @property
    def _parts(self) -> "_Parts":
        features = self._given["features"]
        views, of_view = self.joint_crops or 1, features.shape[-2] or 1
        patches = of_view - self.config.special_tokens
        if self.config.grid is None:
            side = square_side(max(patches, 1), "fastvggt")
            height, width = side, side
        else:
            height, width = self.config.grid
        if views < 2 or height * width != patches:
            raise ContractError(
                f"fastvggt: features {features} are not several views of "
                f"{self.config.special_tokens} special tokens and {height} x {width} patches",
                hint="set grid and special_tokens to the encoder's own, and give two views or more",
            )
        config = self.config
        return _parts(views, config.special_tokens, height, width, config.seed, config.protect)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What each token of a scene is, bool [V * N].

    Attributes:
        destinations: Others are merged into it.
        guarded: It stays as it is.
    """

    destinations: np.ndarray
    guarded: np.ndarray

    @property
    def sources(self) -> np.ndarray:
        """It may be merged."""
        are: np.ndarray = ~self.destinations
        return are

    @property
    def twice(self) -> np.ndarray:
        """It is guarded and a destination."""
        are: np.ndarray = self.guarded & self.destinations
        return are


@cache
def _parts(views: int, special: int, height: int, width: int, seed: int, protect: float) -> _Parts:
    """Return what the tokens of views of that many special tokens and patches are."""
    import torch

    shape = (views - 1, height // 2, width // 2)
    cell = torch.randint(4, shape, generator=torch.Generator().manual_seed(seed)).numpy()
    patches = np.zeros((views, height, width), bool)
    view, row, column = np.indices(shape)
    patches[view + 1, row * 2 + cell // 2, column * 2 + cell % 2] = True
    patches[0] = True
    ahead = np.ones((views, special), bool)
    flat = patches.reshape(views, height * width)
    destinations = np.concatenate([ahead, flat], axis=1).reshape(-1)
    guarded = np.zeros(len(destinations), bool)
    num = int(protect * len(destinations))
    if num:
        guarded[np.arange(num) * max(1, len(destinations) // num)] = True
    return _Parts(destinations, guarded)
