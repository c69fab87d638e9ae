"""Tokenize text as its UTF-8 bytes: 256 ids, no vocabulary file, nothing unknown."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from operators.base import (
    Batch,
    FieldSpec,
    Operator,
    OperatorConfig,
    Ragged,
    TokenPieces,
    smallest_uint,
)
from operators.text.algorithms.token_pieces import byte_pieces
from operators.text.document_ends import add_ends
from operators.text.text_column import check_no_nulls, text_of_bytes, utf8_bytes

NUM_BYTES = 256


class ByteTextConfig(OperatorConfig):
    """What a job may say about ``byte_text``."""

    name: Literal["byte_text"] = "byte_text"
    add_bos: Annotated[bool, Field(description="Begin every document with the id <bos>.")] = False
    add_eos: Annotated[bool, Field(description="End every document with the id <eos>.")] = False


class ByteText(Operator[ByteTextConfig]):
    """Map text to its UTF-8 bytes, as ByT5 does (https://arxiv.org/abs/2105.13626, section 3).

    Reads ``text``; adds ``tokens`` uint8, or uint16 with specials, [T] where T is the number of
    bytes plus the ends. Ids 0..255 are the bytes; the next ids are ``<bos>`` and ``<eos>``, those
    of the two that are asked for, in this order (ByT5 puts its specials first, at 0..2). Bytes
    stand as they are in the column: nothing is normalised. Without ends the tokens are a view of
    the text.
    """

    Config = ByteTextConfig
    inputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}

    def __init__(self, config: ByteTextConfig) -> None:
        super().__init__(config)
        asked = (("<bos>", config.add_bos), ("<eos>", config.add_eos))
        names = [name for name, wanted in asked if wanted]
        self._special_ids = {name: NUM_BYTES + i for i, name in enumerate(names)}
        self._vocab_size = NUM_BYTES + len(names)

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The ids."""
        dtype = smallest_uint(self._vocab_size)
        return {"tokens": FieldSpec(dtype, (None,), vocab_size=self._vocab_size)}

    def metadata(self) -> Mapping[str, object]:
        """Return the size of the vocabulary and the ids of the specials."""
        return {
            "vocab_size": self._vocab_size,
            "special_ids": self._special_ids,
            "bos_id": self._special_ids.get("<bos>"),
            "eos_id": self._special_ids.get("<eos>"),
        }

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize every document."""
        check_no_nulls(batch["text"], self.config.name)
        special = self._special_ids
        documents = utf8_bytes(batch["text"])
        dtype = smallest_uint(self._vocab_size)
        return {"tokens": add_ends(documents, special.get("<bos>"), special.get("<eos>"), dtype)}

    def pieces(self) -> TokenPieces:
        """Return the byte that each id is."""
        return byte_pieces(self._vocab_size)

    def decode(self, batch: Batch) -> Batch:
        """Return ``text`` of ``tokens``: specials dropped, a character that was cut as U+FFFD."""
        tokens: Ragged = batch["tokens"]
        is_byte = tokens.values < NUM_BYTES
        num_before = np.concatenate(([0], np.cumsum(is_byte)))
        values = tokens.values[is_byte].astype(np.uint8)
        return {"text": text_of_bytes(Ragged(values, num_before[tokens.offsets]))}
