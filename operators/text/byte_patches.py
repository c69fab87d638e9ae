"""Tokenize text as bytes with the patches of byte-level models whose rules need no model."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from operators.base import Batch, FieldSpec, Operator, OperatorConfig, Ragged, TokenPieces
from operators.text.algorithms.token_pieces import byte_pieces
from operators.text.text_column import check_no_nulls, text_of_bytes, utf8_bytes

NUM_BYTES = 256
DEFAULT_SIZE = 8


class BytePatchesConfig(OperatorConfig):
    """What a job may say about ``byte_patches``."""

    name: Literal["byte_patches"] = "byte_patches"
    rule: Annotated[
        Literal["fixed", "spacelike", "whitespace"],
        Field(
            description="'fixed': so many bytes each (MegaByte). 'spacelike': a patch ends with "
            "the first of several bytes that are neither letter, digit nor inside of a character "
            "(SpaceByte). 'whitespace': a patch is a word with the white space behind it."
        ),
    ] = "spacelike"
    size: Annotated[
        int | None, Field(ge=1, description="Bytes of a patch, for the rule fixed; 8 if null.")
    ] = None
    max_bytes: Annotated[
        int | None,
        Field(ge=1, description="Cut longer patches of the other rules, from the left."),
    ] = None

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        if self.rule == "fixed" and self.max_bytes is not None:
            raise ValueError("max_bytes belongs to the other rules; rule=fixed has size")
        if self.rule != "fixed" and self.size is not None:
            raise ValueError(f"size belongs to rule=fixed, but rule={self.rule}; use max_bytes")
        return self


class BytePatches(Operator[BytePatchesConfig]):
    """Map text to its UTF-8 bytes, and say where the patches of a byte-level model end.

    Reads ``text``; adds ``tokens`` uint8 [T], the bytes as they are, and ``patch_lengths`` uint32
    [P], which sum to T.

    Rules: ``fixed`` cuts every ``size`` bytes, the last patch being shorter where T is no multiple
    (MegaByte, https://arxiv.org/abs/2305.07185, section 2; the strided patches of BLT,
    https://arxiv.org/abs/2412.09871, section 2.1). ``spacelike`` ends a patch with every
    spacelike byte that follows none (SpaceByte, https://arxiv.org/abs/2404.14408, section 3; the
    space patches of BLT): a byte is spacelike unless it is an ASCII letter, an ASCII digit or a
    continuation byte of UTF-8, so the first byte of a character outside ASCII is. The byte that
    ends a patch is where those models run their global blocks. ``whitespace`` ends a patch with
    the last ASCII white space behind a word; white space at the begin is a patch of its own.

    Checked against each rule written as a loop over bytes, for all short strings of eight bytes
    that stand for the kinds of bytes. About 400 MB/s on one core; fixed patches need not even look
    at the bytes.
    """

    Config = BytePatchesConfig
    inputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}
    outputs: Mapping[str, FieldSpec] = {
        "tokens": FieldSpec("uint8", (None,), vocab_size=NUM_BYTES),
        "patch_lengths": FieldSpec("uint32", (None,)),
    }

    def metadata(self) -> Mapping[str, object]:
        """Return the size of the vocabulary."""
        return {"vocab_size": NUM_BYTES}

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize every document."""
        check_no_nulls(batch["text"], self.config.name)
        documents = utf8_bytes(batch["text"])
        if self.config.rule == "fixed":
            lengths = _cut(documents.lengths, self.config.size or DEFAULT_SIZE)
        else:
            find = _spacelike_ends if self.config.rule == "spacelike" else _white_space_ends
            ends = find(documents)
            ends[documents.offsets[1:][documents.lengths > 0] - 1] = True
            stops = np.flatnonzero(ends) + 1
            counts = np.searchsorted(stops, documents.offsets, side="right")
            lengths = Ragged(np.diff(stops, prepend=0), counts)
            if self.config.max_bytes is not None:
                pieces = _cut(lengths.values, self.config.max_bytes)
                lengths = Ragged(pieces.values, pieces.offsets[lengths.offsets])
        return {
            "tokens": documents,
            "patch_lengths": Ragged(lengths.values.astype(np.uint32), lengths.offsets),
        }

    def pieces(self) -> TokenPieces:
        """Return the byte that each id is."""
        return byte_pieces(NUM_BYTES)

    def decode(self, batch: Batch) -> Batch:
        """Return ``text`` of ``tokens``."""
        return {"text": text_of_bytes(batch["tokens"])}


def _cut(lengths: np.ndarray, size: int) -> Ragged:
    """Return each length as a row of pieces of ``size``, the last being what is left."""
    counts = -(-lengths // size)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    pieces = np.full(offsets[-1], size, np.int64)
    last = offsets[1:][counts > 0] - 1
    pieces[last] = (lengths - (counts - 1) * size)[counts > 0]
    return Ragged(pieces, offsets)


def _spacelike_ends(documents: Ragged) -> np.ndarray:
    """Return bool [M]: bytes that are spacelike and follow none that is, in their document."""
    is_spacelike = _SPACELIKE[documents.values]
    follows = np.append(False, is_spacelike[:-1])
    follows[documents.offsets[:-1][documents.lengths > 0]] = False
    ends: np.ndarray = is_spacelike & ~follows
    return ends


def _white_space_ends(documents: Ragged) -> np.ndarray:
    """Return bool [M]: white space before what is none."""
    is_white = _WHITE_SPACE[documents.values]
    ends: np.ndarray = is_white & ~np.append(is_white[1:], True)
    return ends


def _kinds() -> tuple[np.ndarray, np.ndarray]:
    each = np.arange(NUM_BYTES, dtype=np.uint8)
    is_word = np.zeros(NUM_BYTES, bool)
    for first, last in (b"09", b"AZ", b"az", b"\x80\xbf"):
        is_word |= (each >= first) & (each <= last)
    return ~is_word, np.isin(each, list(b" \t\n\v\f\r"))


_SPACELIKE, _WHITE_SPACE = _kinds()
