"""Draw over a photograph which of its tokens were kept, merged and dropped.

Shapes: H x W pixels, G rows and F columns of tokens, N = G * F tokens, K rows of features.
"""

import colorsys

import numpy as np

DARK = 0.22
"""How much light is left where a token was dropped."""
TINT = 0.35
"""How much of a merged group's own colour lies over it."""


def draw_map(picture_HW3: np.ndarray, token_map_N: np.ndarray, sizes_K: np.ndarray) -> np.ndarray:
    """Return a picture: clear where a token was kept, dark and grey where it was dropped.

    Tokens that were merged into one have a colour of their own, and a line around them.

    Args:
        picture_HW3: uint8, what the tokens come from.
        token_map_N: The row that each token went into, -1 for dropped.
        sizes_K: How many tokens went into each row.
    """
    rows, columns = grid_of(len(token_map_N), *picture_HW3.shape[:2])
    height, width, _ = picture_HW3.shape
    of_y = np.arange(height) * rows // height
    of_x = np.arange(width) * columns // width
    map_HW = token_map_N.reshape(rows, columns)[of_y[:, None], of_x]
    is_merged_HW = (map_HW >= 0) & (sizes_K[np.maximum(map_HW, 0)] > 1)
    colours_K3 = np.array([_colour(row) for row in range(len(sizes_K))]).reshape(-1, 3)
    colour_HW3 = colours_K3[np.maximum(map_HW, 0)] if len(sizes_K) else np.zeros((1, 1, 3))

    drawn_HW3 = picture_HW3.astype(np.float32)
    grey_HW1 = drawn_HW3.mean(axis=2, keepdims=True)
    tinted_HW3 = (1 - TINT) * drawn_HW3 + TINT * colour_HW3
    drawn_HW3 = np.where(is_merged_HW[..., None], tinted_HW3, drawn_HW3)
    drawn_HW3 = np.where(map_HW[..., None] < 0, DARK * grey_HW1, drawn_HW3)
    is_line_HW = is_merged_HW & _is_edge(map_HW, max(1, height // rows // 12))
    drawn_HW3 = np.where(is_line_HW[..., None], colour_HW3, drawn_HW3)
    return drawn_HW3.round().astype(np.uint8)


def grid_of(num_tokens: int, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of N tokens: those whose shape is nearest to the picture's."""
    pairs = [(rows, num_tokens // rows) for rows in range(1, num_tokens + 1)]
    fits = [(rows, columns) for rows, columns in pairs if rows * columns == num_tokens]
    return min(fits, key=lambda pair: abs(np.log(pair[0] * width / (pair[1] * height))))


def _colour(row: int) -> tuple[float, float, float]:
    """Return a colour [0, 255] unlike those of the rows before."""
    red, green, blue = colorsys.hsv_to_rgb(row * 0.618034 % 1, 0.85, 1.0 - 0.25 * (row % 3 == 2))
    return 255 * red, 255 * green, 255 * blue


def _is_edge(map_HW: np.ndarray, thickness: int) -> np.ndarray:
    """Return bool [H, W]: pixels that are no further from another token's row than this."""
    found_HW = np.zeros(map_HW.shape, bool)
    for step in range(1, thickness + 1):
        down_HW = map_HW[step:] != map_HW[:-step]
        found_HW[step:] |= down_HW
        found_HW[:-step] |= down_HW
        across_HW = map_HW[:, step:] != map_HW[:, :-step]
        found_HW[:, step:] |= across_HW
        found_HW[:, :-step] |= across_HW
    return found_HW
