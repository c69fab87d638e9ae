"""grid_order: walks of the grid written out step by step, inverses, grids that do not fit."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.sequence import orders
from operators.sequence.grid_order import GridOrder, GridOrderConfig
from operators.testing import assert_operator_contract

PLAIN_ORDERS_SHA256 = "2bfcfc9f4b3860fbf43c666e23c2397429c08aaacc9c6430fdbaa80c6ae6cfcd"
sides = st.integers(1, 13)


def operator(shape: tuple[int | None, ...] = (16,), **options: Any) -> GridOrder:
    op = GridOrder(GridOrderConfig(**options))
    op.bind({"tokens": FieldSpec("uint16", shape, 1024)})
    return op


def cells_of(op: GridOrder) -> list[int]:
    """Return the permutation as the operator applies it."""
    positions = op.inputs["tokens"].shape[0]
    assert positions is not None
    found: list[int] = op({"tokens": np.arange(positions)[None]})["tokens"][0].tolist()
    return found


def walk(height: int, width: int, *, turns: list[tuple[int, int]]) -> list[int]:
    """Go on in one direction until there is a border or a visited cell, then take the next."""
    cell, seen, direction = (0, 0), [(0, 0)], 0
    while True:
        for _ in range(4):
            step = turns[direction % 4]
            ahead = (cell[0] + step[0], cell[1] + step[1])
            if 0 <= ahead[0] < height and 0 <= ahead[1] < width and ahead not in seen:
                break
            direction += 1
        else:
            return [row * width + column for row, column in seen]
        cell = ahead
        seen.append(cell)


def classic_hilbert(side: int) -> list[int]:
    """Return the cells of Hilbert's curve, from the bits of the distance along it."""
    cells = []
    for distance in range(side * side):
        x = y = 0
        left, size = distance, 1
        while size < side:
            x_bit = 1 & (left // 2)
            y_bit = 1 & (left ^ x_bit)
            if y_bit == 0:
                if x_bit == 1:
                    x, y = size - 1 - x, size - 1 - y
                x, y = y, x
            x, y = x + size * x_bit, y + size * y_bit
            left, size = left // 4, size * 2
        cells.append((x, y))
    return [row * side + column for column, row in cells]


@pytest.mark.parametrize("height", range(1, 13))
@pytest.mark.parametrize("width", range(1, 13))
def test_hilbert_goes_from_neighbour_to_neighbour(height: int, width: int) -> None:
    found = orders.hilbert(height, width).permutation
    assert sorted(found.tolist()) == list(range(height * width))
    rows, columns = np.abs(np.diff(np.divmod(found, width)))
    assert np.all(np.maximum(rows, columns) == 1)
    longer, shorter = max(height, width), min(height, width)
    diagonal_steps = int((rows + columns == 2).sum())
    assert diagonal_steps <= (longer % 2 == 1 and shorter % 2 == 0)
    assert found[0] == 0


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16, 32])
def test_hilbert_of_a_power_of_two_is_the_classic_curve(side: int) -> None:
    found = orders.hilbert(side, side).permutation
    classic = np.array(classic_hilbert(side))
    mirrored = classic % side * side + classic // side
    assert found.tolist() in (classic.tolist(), mirrored.tolist())


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides)
def test_spiral_is_a_walk_that_turns_right(height: int, width: int) -> None:
    turns = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    assert orders.spiral(height, width).permutation.tolist() == walk(height, width, turns=turns)


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides)
def test_snake_steps_aside_at_the_ends_of_rows(height: int, width: int) -> None:
    want = []
    for row in range(height):
        places = range(width) if row % 2 == 0 else reversed(range(width))
        want += [row * width + column for column in places]
    assert orders.snake(height, width).permutation.tolist() == want


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides)
def test_diagonals_are_sorted_by_distance(height: int, width: int) -> None:
    order = orders.diagonals(height, width)
    cells = [(row, column) for row in range(height) for column in range(width)]
    want = sorted(cells, key=lambda cell: (sum(cell), cell[0]))
    assert order.permutation.tolist() == [row * width + column for row, column in want]
    assert len(order.group_sizes) == height + width - 1
    assert sum(order.group_sizes) == height * width


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 5), width=st.integers(1, 5), size=st.integers(1, 4))
def test_cells_and_subsampled_grids_by_loops(height: int, width: int, size: int) -> None:
    num_rows, num_columns = height * size, width * size
    by_cells = [
        (i * size + row) * num_columns + j * size + column
        for i in range(height)
        for j in range(width)
        for row in range(size)
        for column in range(size)
    ]
    found = orders.cells(num_rows, num_columns, size)
    assert found.permutation.tolist() == by_cells
    assert found.group_sizes == (size * size,) * (height * width)
    by_offsets = [
        row * num_columns + column
        for first_row in range(size)
        for first_column in range(size)
        for row in range(first_row, num_rows, size)
        for column in range(first_column, num_columns, size)
    ]
    found = orders.subsampled(num_rows, num_columns, size)
    assert found.permutation.tolist() == by_offsets
    assert found.group_sizes == (height * width,) * size**2


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(orders.PLAIN)),
    maps=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    reverse=st.booleans(),
    axis=st.integers(0, 2),
)
def test_decoding_undoes_any_order(name: str, maps: list[int], reverse: bool, axis: int) -> None:
    positions = sum(side * side for side in maps)
    shape = [2, 3, 2]
    shape[axis] = positions
    op = operator(tuple(shape), order=name, scales=maps, reverse=reverse, axis=axis)
    tokens = np.random.default_rng(0).integers(0, 1024, (2, *shape)).astype(np.uint16)
    out = assert_operator_contract(op, {"tokens": tokens})
    assert np.array_equal(op.decode(out)["tokens"], tokens)
    permutation = np.array(op.metadata()["permutation"])
    assert sorted(permutation) == list(range(positions))
    assert np.array_equal(out["tokens"], np.take(tokens, permutation, axis=axis + 1))


def test_reversed_spiral_begins_in_the_middle() -> None:
    assert cells_of(operator((9,), order="spiral", reverse=True)) == [4, 3, 6, 7, 8, 5, 2, 1, 0]


def test_groups_turn_with_the_order() -> None:
    forward = operator((12,), order="diagonals", grid=(3, 4)).metadata()
    backward = operator((12,), order="diagonals", grid=(3, 4), reverse=True).metadata()
    assert forward["group_sizes"] == [1, 2, 3, 3, 2, 1]
    assert backward["permutation"] == forward["permutation"][::-1]  # type: ignore[index]
    uneven = operator((5,), order="next_scale", scales=[1, 2], reverse=True)
    assert uneven.metadata()["group_sizes"] == [4, 1]


def test_next_scale_moves_nothing_and_groups_the_maps() -> None:
    op = operator((14,), order="next_scale", scales=[1, 2, 3])
    assert cells_of(op) == list(range(14))
    assert op.metadata()["group_sizes"] == [1, 4, 9]


def test_an_order_within_every_scale() -> None:
    op = operator((5,), order="spiral", scales=[1, 2])
    assert cells_of(op) == [0, 1, 2, 4, 3]
    assert "group_sizes" not in op.metadata()


def test_ids_are_frozen() -> None:
    """Published shards hold ids in these orders."""
    plain = [operator((256,), order=name).metadata()["permutation"] for name in orders.PLAIN]
    text = json.dumps(plain)
    assert hashlib.sha256(text.encode()).hexdigest() == PLAIN_ORDERS_SHA256


def test_columns_are_the_grid_turned() -> None:
    assert cells_of(operator((6,), order="columns", grid=(2, 3))) == [0, 3, 1, 4, 2, 5]


def test_features_keep_their_type() -> None:
    op = GridOrder(GridOrderConfig(order="columns"))
    op.bind({"tokens": FieldSpec("float32", (4, 8))})
    assert op.outputs == {"tokens": FieldSpec("float32", (4, 8))}


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((15,), {"order": "spiral"}, "has 15 positions, which are no square"),
        ((16,), {"order": "spiral", "grid": (3, 5)}, r"16 positions, not the 15 of grid=\[3, 5\]"),
        ((16,), {"order": "next_scale", "scales": [1, 2]}, r"not the 5 of scales=\[1, 2\]"),
        ((36,), {"order": "cells", "side": 4}, r"side=4 does not .* 6 x 6 .* \[1, 2, 3, 6\]"),
        ((16,), {"order": "subsampled", "stride": 3}, r"stride=3 does not divide .*\[1, 2, 4\]"),
        ((None,), {"order": "spiral"}, "no fixed number of positions along axis 0"),
        ((16,), {"order": "spiral", "axis": 1}, "no fixed number of positions along axis 1"),
    ],
)
def test_grid_that_does_not_fit_is_named(
    shape: tuple[int | None, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        operator(shape, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "cells"}, "order cells needs side"),
        ({"order": "next_scale"}, "order next_scale needs scales"),
        ({"order": "spiral", "stride": 2}, "stride=2 is for order subsampled"),
        ({"order": "spiral", "grid": (2, 2), "scales": [2]}, "give one of them"),
        ({"order": "zigzag"}, "Input should be 'raster'"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GridOrderConfig(**options)
