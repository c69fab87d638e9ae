"""The bytes that the ids of a tokenizer stand for."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from operators.base import TokenPieces
from operators.text.algorithms.byte_level import BYTES

_NUM_BYTES = 256
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"


def byte_pieces(vocab_size: int) -> TokenPieces:
    """Return pieces of ids that are bytes, with those from 256 on standing for no text."""
    texts = [bytes([i]) for i in range(_NUM_BYTES)] + [None] * (vocab_size - _NUM_BYTES)
    return TokenPieces(pa.array(texts, pa.large_binary()))


def pieces_of_tokenizer_json(data: bytes, vocab_size: int) -> TokenPieces:
    """Return the pieces of a tokenizer.json.

    Bytes that the file spells as letters (ByteLevel), as ``<0x0A>`` (ByteFallback) and spaces that
    it marks (Metaspace) are given as they are in text; the mark of a piece inside a word
    (WordPiece) and of the end of a word are left out. Special tokens stand for no text.

    Args:
        data: The file.
        vocab_size: Ids below it are asked for.
    """
    raw = json.loads(data)
    model = raw["model"]
    parts = {part["type"] for part in _parts(raw.get("decoder"))}
    parts |= {part["type"] for part in _parts(raw.get("pre_tokenizer"))}
    spell = _speller(model, parts)
    texts: list[bytes | None] = [None] * vocab_size
    for piece, number in _vocabulary(model).items():
        texts[number] = spell(piece)
    for token in raw.get("added_tokens") or ():
        texts[token["id"]] = None if token.get("special") else token["content"].encode()
    unknown = model.get("unk_id")
    if unknown is None:
        unknown = _vocabulary(model).get(model.get("unk_token") or "")
    if unknown is not None:
        texts[unknown] = None
    return TokenPieces(pa.array(texts, pa.large_binary()), unknown)


def _vocabulary(model: Mapping[str, Any]) -> Mapping[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pieces with scores, by id
        return {piece: number for number, (piece, _) in enumerate(vocabulary)}
    found: Mapping[str, int] = vocabulary
    return found


def _parts(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield a decoder or pre-tokenizer, or those that it is a sequence of."""
    if part is None:
        return
    members = part.get("decoders") or part.get("pretokenizers")
    if members is None:
        yield part
        return
    for member in members:
        yield from _parts(member)


def _speller(model: Mapping[str, Any], parts: set[str]) -> Callable[[str], bytes]:
    inside = model.get("continuing_subword_prefix") or ""
    end = model.get("end_of_word_suffix") or ""
    byte_of = BYTES if "ByteLevel" in parts else {}
    marks_spaces = bool({"Metaspace", "Replace"} & parts)
    spells_bytes = "ByteFallback" in parts or bool(model.get("byte_fallback"))

    def spell(piece: str) -> bytes:
        piece = piece.removeprefix(inside) if piece != inside else piece
        piece = piece.removesuffix(end) if piece != end else piece
        if byte_of and all(ord(letter) in byte_of for letter in piece):
            return bytes(byte_of[ord(letter)] for letter in piece)
        if spells_bytes and (found := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(found[1], 16)])
        return (piece.replace(_SPACE_MARK, " ") if marks_spaces else piece).encode()

    return spell
