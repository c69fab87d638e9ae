"""Tokenize text by Factorizer: three ids for each subword."""

import struct
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from operators.base import Batch, FieldSpec, Operator, Ragged
from operators.columns import take
from operators.errors import SetupError
from operators.keyed_draws import seeds_of_keys
from operators.text.chunks import check_texts, cut_after
from operators.text.method_file import (
    FoundFile,
    MethodFileConfig,
    method_identity,
    read_method_file,
)
from operators.text.text_column import utf8_bytes

SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[SOS]", "[EOS]", "[SPECIAL]")
STREAMS = ("first", "second", "third")
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
NO_SEEDS = np.empty(0, np.uint64)
WORD_ENDS = b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"


class FactorizerConfig(MethodFileConfig):
    """What a job may say about ``factorizer``."""

    file_name = "factorizer.dawg"

    name: Literal["factorizer"] = "factorizer"
    alpha: Annotated[
        float,
        Field(ge=0, le=1000, description="What each piece costs: more gives fewer, longer pieces."),
    ] = 0.1
    merge_unknown: Annotated[
        bool,
        Field(description="A word with a piece that holds [unk] becomes one unknown, not a part."),
    ] = True
    sigma: Annotated[
        float,
        Field(
            ge=0,
            le=1000,
            description="Draw how words are cut: each piece costs more by sigma, times its bytes, "
            "times exp of a normal number. 0 takes the cheapest pieces.",
        ),
    ] = 0.0
    sample_records: Annotated[
        bool,
        Field(
            description="Draw which record of a piece is taken, in proportion to 1 / -score, "
            "instead of the best."
        ),
    ] = False
    seed: Annotated[
        int | None,
        Field(ge=0, description="Of all draws, with each sample's key; 0 if null."),
    ] = None

    @model_validator(mode="after")
    def _check_seed(self) -> Self:
        if self.seed is not None and not self.draws:
            raise ValueError(
                f"seed={self.seed} has no use where nothing is drawn; leave it out, or set sigma "
                "or sample_records"
            )
        return self

    @property
    def draws(self) -> bool:
        """Whether the same text may be cut in other ways under another key."""
        return self.sigma > 0 or self.sample_records


class Factorizer(Operator[FactorizerConfig]):
    """Map text to subwords of three ids each, as a VQ-VAE over subwords has learned them.

    Factorizer (https://arxiv.org/abs/2306.07764): text is split at whitespace; a word
    is marked at both ends and cut into the pieces of the dictionary with the lowest sum of
    ``alpha`` - score, a score being a log-probability. Of a piece's records the best is taken.

    ``sigma`` and ``sample_records`` draw, so that training sees a text in many ways. A word is
    drawn again, up to 16 times, while a mark stands in two pieces; after that it is cut as without
    draws (the authors' code then looks the bare word up, which mostly loses it). Draws are of
    SplitMix64, from the SHA-256 of ``<seed>/factorizer/<key>``, the word's place in the document,
    and where the piece begins and ends in the word: the authors' cannot be repeated.

    Reads ``text``, and ``key`` where it draws; adds ``tokens`` uint16 [T, 3], streams ``first``,
    ``second``, ``third``, ids below 264 each: an index 0..255 of that codebook + 8. Below 8 are the
    special tokens, which are (k, 3, 3); a word that no pieces make up is ``[UNK]``, (0, 3, 3), and
    so is a word ``[UNK]`` in the text. ``decode`` puts one space between words; whitespace itself
    is not kept.

    ``tokenizer`` is one of the authors' ``.dawg`` files (english.dawg and six others, release
    v1.0.0) or another of that format: keys and records of ``fBBB``.

    Checked: all 120 cases of the authors' code (alpha 0 to 3), a brute force over all ways to cut
    short words (with draws too), a slow search with a sorted list for ties, and all 71,499 records
    of a dictionary that the library of the authors' files (dawg2) wrote.
    Speed on one core: 6 MB/s or 6 million subwords/s (random words, a small dictionary), 15 MB/s
    on source code, where words come again, and 4 MB/s with ``sigma``.

    Raises:
        SetupError: the file is missing or no such dictionary, or numba is missing.
    """

    Config = FactorizerConfig
    outputs: Mapping[str, FieldSpec] = {
        "tokens": FieldSpec("uint16", (None, len(STREAMS)), vocab_size=VOCAB_SIZE)
    }

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """The text, and the key where draws depend on it."""
        text = {"text": FieldSpec("string")}
        return {**text, "key": FieldSpec("string")} if self.config.draws else text

    def identity(self) -> Mapping[str, object]:
        """Return the digest of the dictionary."""
        return method_identity(self.config, self._file)

    def metadata(self) -> Mapping[str, object]:
        """Return what the streams are and the ids of the specials."""
        return {
            "vocab_size": VOCAB_SIZE,
            "streams": list(STREAMS),
            "codebook_sizes": [VOCAB_SIZE] * len(STREAMS),
            "special_ids": {name: [i, 3, 3] for i, name in enumerate(SPECIAL_TOKENS)},
            "bos_id": None,
            "eos_id": None,
        }

    def setup(self, device: str) -> None:  # noqa: ARG002 - a text tokenizer has no device
        """Read the dictionary and compile the search."""
        blank = utf8_bytes(pa.array([" "], pa.large_string()))
        self._encode(blank.values, blank.offsets, NO_SEEDS)

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize every document."""
        check_texts(self, batch)
        if self.config.draws:  # every word for itself
            documents = utf8_bytes(batch["text"])
            seeds = seeds_of_keys(self.config.seed or 0, self.config.name, batch["key"])
            return {"tokens": self._encode(documents.values, documents.offsets, seeds)}
        chunks, firsts = cut_after(batch["text"], WORD_ENDS)
        encoded = chunks.dictionary_encode()
        words = utf8_bytes(encoded.dictionary)
        joined: Ragged = take(
            self._encode(words.values, words.offsets, NO_SEEDS), encoded.indices.to_numpy()
        )
        return {"tokens": Ragged(joined.values, joined.offsets[firsts])}

    def decode(self, batch: Batch) -> Batch:
        """Return ``text`` of ``tokens``: specials by name, a triple without a subword as [UNK]."""
        from operators.text.algorithms.factorized_subwords import BEGIN_MARK, END_MARK

        tokens: Ragged = batch["tokens"]
        texts = []
        for row in range(len(tokens)):
            pieces = [self._piece(*triple) for triple in tokens[row].tolist()]
            text = b"".join(pieces).decode("utf-8", errors="replace")
            texts.append(" ".join(text.replace(BEGIN_MARK, " ").replace(END_MARK, " ").split()))
        return {"text": pa.array(texts, pa.large_string())}

    @cached_property
    def _file(self) -> FoundFile:
        return read_method_file(self.config, self.model_files)

    @cached_property
    def _dictionary(self) -> tuple[np.ndarray, np.ndarray]:
        """The graph's units uint32 [U] and its guide uint8 [U, 2]."""
        data = self._file.data
        size = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
        guide_at = 4 + 4 * size
        is_whole = size > 0 and len(data) == guide_at + 4 + 2 * size
        if not is_whole or struct.unpack_from("<I", data, guide_at)[0] != size:
            raise SetupError(
                f"factorizer: {self.config.tokenizer!r} is no dictionary of this method "
                f"({len(data):,} bytes)",
                hint="expected a .dawg file of the authors' release, whole",
            )
        units = np.frombuffer(data, "<u4", size, 4)
        return units, np.frombuffer(data, np.uint8, 2 * size, guide_at + 4).reshape(size, 2)

    @cached_property
    def _subwords(self) -> Mapping[tuple[int, int, int], bytes]:
        """Indices -> subword; of several with the same indices the last."""
        from operators.text.algorithms.factorized_subwords import list_records

        keys, ends, indices = list_records(*self._dictionary)
        text, bounds = keys.tobytes(), [0, *ends.tolist()]
        return {
            (value >> 16, value >> 8 & 0xFF, value & 0xFF): text[bounds[i] : bounds[i + 1]]
            for i, value in enumerate(indices.tolist())
        }

    def _encode(self, text: np.ndarray, offsets: np.ndarray, seeds: np.ndarray) -> Ragged:
        from operators.text.algorithms.factorized_subwords import encode_rows, stretches

        config = self.config
        units, guide = self._dictionary
        options = config.alpha, config.merge_unknown, config.sigma, config.sample_records
        return Ragged(*encode_rows(units, guide, text, offsets, *options, seeds, stretches()))

    def _piece(self, first: int, second: int, third: int) -> bytes:
        num_special = len(SPECIAL_TOKENS)
        if first < num_special:
            return f" {SPECIAL_TOKENS[first]} ".encode()
        key = self._subwords.get((first - num_special, second - num_special, third - num_special))
        return b" [UNK] " if key is None else _text_of_key(key)


def _text_of_key(key: bytes) -> bytes:
    """Return the text that a key of the dictionary's alphabet stands for."""
    found = bytearray()
    pair: int | None = None
    for byte in key:
        if byte < 0x80:
            found.append(byte)
        elif pair is None:
            pair = byte
        else:
            found.append((pair << 3 & 0xFF) | (byte & 7))
            pair = None
    return bytes(found)
