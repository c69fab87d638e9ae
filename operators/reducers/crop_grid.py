"""What reducers of several crops of an image share: which image, where in it, what may be wrong.

Shapes: I images, B crops of all of them, thumbnails first, N tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from operators.base import FieldSpec
from operators.reducers.base import Tokens

if TYPE_CHECKING:
    import torch

CROP_GRID: Mapping[str, FieldSpec] = {"crop_grid": FieldSpec("int32", (4,))}
"""Rows and columns of the crops after the thumbnail, height and width of the original image."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where each crop of a batch is, on the device of its features.

    Attributes:
        image: int64 [B], the image it is of.
        thumbnail: int64 [B], the row of its image's thumbnail.
        number: int64 [B], crops of its image before it that are no thumbnails; -1 of thumbnails.
        others: int64 [B], crops of its image that are no thumbnails.
    """

    image: "torch.Tensor"
    thumbnail: "torch.Tensor"
    number: "torch.Tensor"
    others: "torch.Tensor"


def places_of(tokens: Tokens) -> Places:
    """Return where the crops of a batch are."""
    import torch

    offsets = offsets_of(tokens)
    counts = np.diff(offsets)
    image = np.repeat(np.arange(len(counts)), counts)
    first = offsets[:-1][image]
    columns = (image, first, np.arange(len(image)) - first - 1, counts[image] - 1)
    device = tokens.features.device
    return Places(*(torch.from_numpy(column).to(device) for column in columns))


def offsets_of(tokens: Tokens) -> np.ndarray:
    """Return int64 [I + 1], where the crops of each image begin."""
    assert tokens.crops is not None, "the method says needs_crops"
    return tokens.crops


def grid_faults(tokens: Tokens) -> Mapping[int, str]:
    """Return what is wrong with the crop grids of some images, as ``Reducer.faults`` does."""
    grids = tokens.more["crop_grid"].cpu().numpy().astype(np.int64)
    others = np.diff(offsets_of(tokens)) - 1
    fits = (grids >= 1).all(axis=1) & (grids[:, 0] * grids[:, 1] == others)
    return {
        int(row): f"crop_grid is {grids[row].tolist()} (rows, columns, height, width), expected "
        f"positive numbers, and rows times columns to be the {others[row]} crops "
        "after the thumbnail"
        for row in np.flatnonzero(~(fits | (others == 0)))
    }
