"""The trainer unigram: both files give the same ids, training repeats, the errors."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from operators import registry
from operators.errors import ContractError
from operators.text.text_tokenizer import TextTokenizer, TextTokenizerConfig
from operators.text.unigram import Unigram, UnigramConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "text"
SAMPLE = json.loads((GOLDEN / "inference_methods" / "segment.json").read_text())["texts"]
SAMPLE += json.loads((GOLDEN / "sage" / "ablation.json").read_text())["lines"]
SAMPLE = [text for text in SAMPLE if text.isascii()]
TEXTS = st.text(st.sampled_from("themilr  \n\té1日🌾,")) | st.text(st.characters(codec="utf-8"))


def train(texts: list[str], **options: Any) -> dict[str, bytes]:
    columns = [pa.array(texts[:2], pa.large_string()), pa.array(texts[2:], pa.large_string())]
    trainer = Unigram(UnigramConfig(**options))
    return dict(trainer.train(lambda: iter(columns), lambda *_: None))


@cache
def trained(prefix_space: bool) -> dict[str, bytes]:
    options: dict[str, Any] = {"vocab_size": 480, "special_tokens": ("<pad>",)}
    return train(SAMPLE, prefix_space=prefix_space, **options)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, prefix_space=st.booleans())
def test_both_files_give_the_same_ids_and_the_text_back(text: str, prefix_space: bool) -> None:
    files = trained(prefix_space)
    model = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    library = Tokenizer.from_buffer(files["tokenizer.json"])
    ids = library.encode(text).ids
    assert ids == model.EncodeAsIds(text)
    # SentencePiece spells spaces by this mark.
    assert library.decode(ids) == text.replace("\u2581", " ")


def test_training_repeats_and_keeps_to_the_size() -> None:
    files = trained(True)
    assert files == train(SAMPLE, vocab_size=480, special_tokens=("<pad>",))
    assert set(files) == {"tokenizer.json", "tokenizer.model"}
    library = Tokenizer.from_buffer(files["tokenizer.json"])
    assert library.get_vocab_size() == 480
    assert [library.token_to_id(name) for name in ("<unk>", "<pad>", "<0x00>")] == [0, 1, 2]
    assert library.token_to_id("\u2581the") is not None


def test_options_do_what_they_say() -> None:
    split = Tokenizer.from_buffer(
        train(SAMPLE, vocab_size=480, split_digits=True)["tokenizer.json"]
    )
    digits = [name for name in split.get_vocab() if any(map(str.isdigit, name))]
    assert max(len(name) for name in digits if not name.startswith("<0x")) == 1
    short = train(SAMPLE, vocab_size=450, max_piece_characters=2)["tokenizer.json"]
    names = Tokenizer.from_buffer(short).get_vocab()
    assert max(len(name) for name in names if not name.startswith("<")) == 2
    plain = train(SAMPLE, vocab_size=400, byte_fallback=False)["tokenizer.json"]
    assert "<0x00>" not in Tokenizer.from_buffer(plain).get_vocab()


def test_long_lines_are_not_left_out() -> None:
    words = "ab" * 4000 + " " + "ab " * 4000
    vocab = Tokenizer.from_buffer(train([words, "", ""], vocab_size=262)["tokenizer.json"])
    assert "a" in "".join(vocab.get_vocab())


def test_the_operator_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(trained(True)["tokenizer.json"])
    op = TextTokenizer(TextTokenizerConfig(tokenizer=str(path)))
    op.setup("cpu")
    out = op({"text": pa.array(SAMPLE, pa.large_string())})
    assert op.decode(out)["text"].to_pylist() == SAMPLE


def test_a_sample_that_is_too_small_is_refused() -> None:
    with pytest.raises(
        ContractError, match=r"cannot learn from these documents: Vocabulary size too high"
    ):
        train(["ab ab", "", ""], vocab_size=3000)


def test_it_is_found_by_name() -> None:
    assert registry.trainer("unigram") is Unigram
    assert set(Unigram(UnigramConfig()).identity()) == {
        "sentencepiece_version",
        "tokenizers_version",
    }
