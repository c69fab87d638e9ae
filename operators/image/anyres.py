"""Where an image lies in the grid of crops that LLaVA-NeXT (AnyRes) cuts it into.

Sizes are height and width, in pixels or in tokens.
"""

import math
from collections.abc import Sequence

import numpy as np

Size = tuple[int, int]


def best_grid(image: Size, grids: Sequence[Size], side: int) -> Size:
    """Return the rows and columns of crops that show most of an image, with least left empty.

    Args:
        image: Its size.
        grids: What there is to choose from; the first of equals is taken.
        side: Of a crop.
    """

    def merit(grid: Size) -> tuple[int, int]:
        height, width = grid[0] * side, grid[1] * side
        scale = min(width / image[1], height / image[0])
        shown = int(image[1] * scale) * int(image[0] * scale)
        useful = min(shown, image[0] * image[1])
        return useful, useful - height * width

    return max(grids, key=merit)


def fitted_size(image: Size, target: Size) -> Size:
    """Return the largest size of an image's aspect that lies in ``target``."""
    across, down = target[1] / image[1], target[0] / image[0]
    if across < down:
        return min(math.ceil(image[0] * across), target[0]), target[1]
    return target[0], min(math.ceil(image[1] * down), target[1])


def kept_tokens(image: Size, grid: Size, tokens: Size) -> np.ndarray:
    """Say which tokens of an image's crops are not padding, as LLaVA-NeXT cuts it off.

    Args:
        image: Size of the original image.
        grid: Rows and columns of crops.
        tokens: Rows and columns of tokens of one crop.

    Returns:
        bool [1 + crops, tokens of a crop]; all of the first, the whole image made small, count.
    """
    rows, columns = grid[0] * tokens[0], grid[1] * tokens[1]
    kept = np.zeros((rows, columns), bool)
    if image[1] / image[0] > columns / rows:
        border = (rows - int(round(image[0] * (columns / image[1]), 7))) // 2
        kept[border : rows - border] = True
    else:
        border = (columns - int(round(image[1] * (rows / image[0]), 7))) // 2
        kept[:, border : columns - border] = True
    crops = kept.reshape(grid[0], tokens[0], grid[1], tokens[1]).swapaxes(1, 2)
    whole = np.ones((1, tokens[0] * tokens[1]), bool)
    return np.concatenate([whole, crops.reshape(grid[0] * grid[1], -1)])
