"""The bytes that ids stand for, of every kind of tokenizer.json, against what decoders write."""

import json
from pathlib import Path
from typing import Any

import pytest

from operators.base import HasPieces
from operators.text.algorithms.token_pieces import pieces_of_tokenizer_json
from operators.text.byte_patches import BytePatches, BytePatchesConfig
from operators.text.byte_text import ByteText, ByteTextConfig
from operators.text.hat_words import HATWords, HATWordsConfig
from operators.text.text_tokenizer import TextTokenizer, TextTokenizerConfig

GOLDEN = Path(__file__).parents[1] / "golden/text"


def pieces(model: dict[str, Any], size: int, **more: Any) -> tuple[list[bytes | None], int | None]:
    found = pieces_of_tokenizer_json(json.dumps({"model": model, **more}).encode(), size)
    return found.texts.to_pylist(), found.unknown_id


def test_bytes_spelled_as_letters() -> None:
    vocabulary = {"Ġthe": 0, "Ċ": 1, "Ã©": 2, "<|end|>": 3, "<new>": 4, "日": 5}
    model = {"type": "BPE", "vocab": vocabulary}
    added = [
        {"id": 3, "content": "<|end|>", "special": True},
        {"id": 4, "content": "<new>", "special": False},
    ]
    for place in ("decoder", "pre_tokenizer"):
        parts = {place: {"type": "ByteLevel"}}
        found = pieces(model, 7, added_tokens=added, **parts)
        # The last is spelled in no letters of bytes: it can only be itself.
        assert found == ([b" the", b"\n", "é".encode(), None, b"<new>", "日".encode(), None], None)


def test_marked_spaces_and_bytes_in_brackets() -> None:
    vocabulary = [["<unk>", 0.0], ["▁a", -1.0], ["<0x0A>", -2.0], ["<0xFF>", -2.0]]
    model = {"type": "Unigram", "vocab": vocabulary, "unk_id": 0, "byte_fallback": True}
    decoder = {"type": "Sequence", "decoders": [{"type": "Metaspace"}, {"type": "Fuse"}]}
    assert pieces(model, 4, decoder=decoder) == ([None, b" a", b"\n", b"\xff"], 0)


def test_pieces_inside_and_at_the_end_of_words() -> None:
    model = {
        "type": "WordPiece",
        "vocab": {"[UNK]": 0, "un": 1, "##able": 2, "##": 3},
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
    }
    assert pieces(model, 4) == ([None, b"un", b"able", b"##"], 0)
    model = {"type": "BPE", "vocab": {"cat</w>": 0, "c": 1}, "end_of_word_suffix": "</w>"}
    assert pieces(model, 2) == ([b"cat", b"c"], None)


@pytest.mark.parametrize(
    "name", ["bytelevel_bpe.json", "unigram.json", "bpe.model", "unigram.model"]
)
def test_pieces_are_what_the_decoder_writes(name: str) -> None:
    op = TextTokenizer(TextTokenizerConfig(tokenizer=str(GOLDEN / name)))
    op.setup("cpu")
    found = op.pieces().texts.to_pylist()
    assert len(found) == op.outputs["tokens"].vocab_size
    for number, text in enumerate(found):
        if text is not None:
            (written,) = op._reference.decode([[number]], skip_special=False)
            assert written in (text.decode(errors="replace"), text.decode(errors="replace").strip())


def test_operators_of_bytes() -> None:
    byte = [bytes([i]) for i in range(256)]
    for op in (HATWords(HATWordsConfig()), BytePatches(BytePatchesConfig())):
        assert isinstance(op, HasPieces)
        assert op.pieces().texts.to_pylist() == byte
    assert ByteText(ByteTextConfig(add_bos=True)).pieces().texts.to_pylist() == [*byte, None]
