"""Compiled functions that lay out rows of tokens and copy them from memory-mapped shards.

A batch is B rows of W places, also seen flattened. A table of stretches says what is open
(``token_stream.StretchTable``); where a function needs a token that is not, it returns and is
called again when it is. ``_K`` are stretches, ``_N`` spans, ``_M`` pieces, ``_B`` rows.
"""

from typing import Any

import numpy as np

from pipeline.loader.compiled import compiled, extending, numba

carray = numba.carray

PROGRESS = 5
"""What ``lay_out_samples`` keeps between calls: row, documents and places of it that are done,
bounds so far, longest."""

_INT32 = np.empty(0, np.int32)


@extending.intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing_context: Any, address: Any, like: Any) -> Any:  # noqa: ARG001
    """Return an address as a pointer to items like those of an array."""
    pointer = numba.types.CPointer(like.dtype)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(numba.types.int64, like), code


@compiled
def copy_spans(
    spans_N3: np.ndarray,
    first: int,
    starts_K: np.ndarray,
    stops_K: np.ndarray,
    addresses_K: np.ndarray,
    like: np.ndarray,
    out: np.ndarray,
) -> int:
    """Copy spans of the stream, converting to the type of ``out``.

    Args:
        spans_N3: First token, number of tokens, place in ``out``; what is done is taken off.
        first: Span to begin with.
        starts_K: First token of each stretch.
        stops_K: One past the last.
        addresses_K: Of the values of each stretch.
        like: An array of the type that is stored.
        out: The flattened batch.

    Returns:
        N, or the span whose first token lies in no open stretch.
    """
    for n in range(first, len(spans_N3)):
        while spans_N3[n, 1] > 0:
            token = spans_N3[n, 0]
            k = np.searchsorted(starts_K, token, side="right") - 1
            if k < 0 or token >= stops_K[k]:
                return n
            count = min(spans_N3[n, 1], stops_K[k] - token)
            address = addresses_K[k] + (token - starts_K[k]) * like.itemsize
            source = carray(_pointer(address, like), (count,))
            target = out[spans_N3[n, 2] : spans_N3[n, 2] + count]
            for i in range(count):  # over slices: this becomes vector instructions
                target[i] = source[i]
            spans_N3[n, 0] += count
            spans_N3[n, 1] -= count
            spans_N3[n, 2] += count
    return len(spans_N3)


@compiled
def copy_rows(
    starts_N: np.ndarray,
    first: int,
    place: np.ndarray,
    starts_K: np.ndarray,
    stops_K: np.ndarray,
    addresses_K: np.ndarray,
    like: np.ndarray,
    out_NW: np.ndarray,
) -> int:
    """Copy runs of W tokens of the stream, converting to the type of ``out_NW``.

    Args:
        starts_N: First token of each run.
        first: Run to begin with.
        place: One number, the places of that run that are done; 0 in the first call.
        starts_K: First token of each stretch.
        stops_K: One past the last.
        addresses_K: Of the values of each stretch.
        like: An array of the type that is stored.
        out_NW: Filled.

    Returns:
        N, or the run whose token at ``place`` lies in no open stretch.
    """
    num_rows, width = out_NW.shape
    for n in range(first, num_rows):
        done = place[0]
        while done < width:
            token = starts_N[n] + done
            k = np.searchsorted(starts_K, token, side="right") - 1
            if k < 0 or token >= stops_K[k]:
                place[0] = done
                return n
            count = min(width - done, stops_K[k] - token)
            address = addresses_K[k] + (token - starts_K[k]) * like.itemsize
            source = carray(_pointer(address, like), (count,))
            row = out_NW[n, done : done + count]
            for i in range(count):
                row[i] = source[i]
            done += count
        place[0] = 0
    return len(starts_N)


@compiled
def _fill(
    position_ids: np.ndarray,
    document_ids: np.ndarray,
    row: int,
    start: int,
    stop: int,
    document: int,
) -> None:
    """Make some places of a row a document."""
    positions, documents = position_ids[row, start:stop], document_ids[row, start:stop]
    for i in range(len(positions)):  # two loops over slices: these become vector instructions
        positions[i] = i
    for i in range(len(documents)):
        documents[i] = document


@compiled
def lay_out_pieces(
    packs_B: np.ndarray,
    stops_P: np.ndarray,
    pieces_M2: np.ndarray,
    position_ids: np.ndarray,
    document_ids: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Say where the pieces of some packs go.

    Args:
        packs_B: Which packs.
        stops_P: Where the pieces of each pack begin, and one more.
        pieces_M2: First token and number of tokens.
        position_ids: Filled, [B, W].
        document_ids: Filled, [B, W].

    Returns:
        int64 [N, 3], first token, number of tokens, and place of each piece; int64 [B], the tokens
        of each row; int32, where pieces and padding begin in the flattened batch, and its end; the
        tokens of the longest piece or padding.
    """
    num_rows, width = position_ids.shape
    num_pieces = 0
    for pack in packs_B:
        num_pieces += stops_P[pack + 1] - stops_P[pack]
    spans_N3 = np.empty((num_pieces, 3), np.int64)
    counts_B = np.empty(num_rows, np.int64)
    bounds = np.empty(num_pieces + num_rows + 1, np.int32)
    num_spans = num_bounds = longest = 0
    for row in range(num_rows):
        pack, place = packs_B[row], 0
        for document, piece in enumerate(range(stops_P[pack], stops_P[pack + 1])):
            count = pieces_M2[piece, 1]
            spans_N3[num_spans, 0] = pieces_M2[piece, 0]
            spans_N3[num_spans, 1] = count
            spans_N3[num_spans, 2] = row * width + place
            num_spans += 1
            _fill(position_ids, document_ids, row, place, place + count, document)
            bounds[num_bounds] = row * width + place
            num_bounds += 1
            longest = max(longest, count)
            place += count
        counts_B[row] = place
        if place < width:
            _fill(position_ids, document_ids, row, place, width, -1)
            bounds[num_bounds] = row * width + place
            num_bounds += 1
            longest = max(longest, width - place)
    bounds[num_bounds] = num_rows * width
    return spans_N3, counts_B, bounds[: num_bounds + 1], longest


@compiled
def lay_out_samples(
    starts_B: np.ndarray,
    counts_B: np.ndarray,
    sample_length: int,
    starts_K: np.ndarray,
    stops_K: np.ndarray,
    offsets_K: np.ndarray,
    num_samples_K: np.ndarray,
    progress: np.ndarray,
    position_ids: np.ndarray,
    document_ids: np.ndarray,
    bounds: np.ndarray,
) -> int:
    """Say where samples begin in windows of the stream.

    Args:
        starts_B: First token of each window.
        counts_B: Its tokens.
        sample_length: Of every sample, or 0.
        starts_K: First token of each stretch.
        stops_K: One past the last.
        offsets_K: Addresses of the int32 offsets of each stretch's samples.
        num_samples_K: How many they are.
        progress: ``PROGRESS`` numbers; zeros in the first call.
        position_ids: Filled, [B, W].
        document_ids: Filled, [B, W].
        bounds: Filled with where samples and padding begin in the flattened batch, and its end.

    Returns:
        -1, or a token that lies in no open stretch.
    """
    width = position_ids.shape[1]
    row, document, place, num_bounds, longest = (
        progress[0],
        progress[1],
        progress[2],
        progress[3],
        progress[4],
    )
    while row < len(starts_B):
        while place < counts_B[row]:
            token: int = starts_B[row] + place
            k = np.searchsorted(starts_K, token, side="right") - 1
            if k < 0 or token >= stops_K[k]:
                progress[0] = row
                progress[1] = document
                progress[2] = place
                progress[3] = num_bounds
                progress[4] = longest
                return token
            local = token - starts_K[k]
            if sample_length:
                left = sample_length - local % sample_length
            else:
                offsets = carray(_pointer(offsets_K[k], _INT32), (num_samples_K[k] + 1,))
                local += offsets[0]
                left = offsets[np.searchsorted(offsets, local, side="right")] - local
            count = min(left, counts_B[row] - place)
            _fill(position_ids, document_ids, row, place, place + count, document)
            bounds[num_bounds] = row * width + place
            num_bounds += 1
            longest = max(longest, count)
            place += count
            document += 1
        if place < width:
            _fill(position_ids, document_ids, row, place, width, -1)
            bounds[num_bounds] = row * width + place
            num_bounds += 1
            longest = max(longest, width - place)
        row, document, place = row + 1, 0, 0
    progress[0] = row
    progress[1] = document
    progress[2] = place
    progress[3] = num_bounds
    progress[4] = longest
    bounds[num_bounds] = len(starts_B) * width
    return -1
