"""The trainer wordpiece: against a slow one and the library's, what it writes, its errors."""

import hashlib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from operators import registry
from operators.errors import ContractError
from operators.text.text_tokenizer import TextTokenizer, TextTokenizerConfig
from operators.text.wordpiece import WordPiece, WordPieceConfig

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["the mill, the miller", "", "Mühle! the thither", "mill mill mill"]


def train(texts: list[str], **options: Any) -> dict[str, bytes]:
    columns = [pa.array(texts[:2], pa.large_string()), pa.array(texts[2:], pa.large_string())]
    trainer = WordPiece(WordPieceConfig(**options))
    return dict(trainer.train(lambda: iter(columns), lambda *_: None))


def tokens(files: dict[str, bytes]) -> list[str]:
    return files["vocab.txt"].decode().split("\n")[:-1]


def slowly(words: list[str], size: int) -> list[str]:
    """Merge the most frequent pair, counting all of them anew each time."""
    rows = [[word[0], *(f"##{char}" for char in word[1:])] for word in words]
    names = [*SPECIAL, *sorted(set("".join(words)))]
    names += sorted({symbol for row in rows for symbol in row[1:]})
    while len(names) < size:
        pairs = Counter(pair for row in rows for pair in pairwise(row))
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], names.index(p[0]), names.index(p[1])))
        name = best[0] + best[1].removeprefix("##")
        names += [] if name in names else [name]
        for row in rows:
            at = 0
            while at < len(row) - 1:
                if (row[at], row[at + 1]) == best:
                    row[at : at + 2] = [name]
                at += 1
    return names


@settings(max_examples=100, deadline=None)
@given(
    words=st.lists(st.text("abcd", min_size=1, max_size=7), min_size=1, max_size=12),
    more=st.integers(0, 12),
)
def test_merges_are_those_of_a_slow_trainer(words: list[str], more: int) -> None:
    size = len(slowly(words, 0)) + more
    assert tokens(train([" ".join(words), "", ""], vocab_size=size)) == slowly(words, size)


def test_tokens_are_those_of_the_library_where_nothing_is_a_tie() -> None:
    counts = {"abc": 32, "abd": 17, "bca": 9, "cab": 5, "dab": 3, "abcabd": 70}
    texts = [" ".join([word] * num) for word, num in counts.items()]
    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=False)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    how = trainers.WordPieceTrainer(vocab_size=17, special_tokens=SPECIAL, show_progress=False)
    library.train_from_iterator(texts, how)
    assert sorted(tokens(train(texts, vocab_size=17))) == sorted(library.get_vocab())


def test_what_is_written_is_frozen_and_tokenizes(tmp_path: Path) -> None:
    """Published tokenizers are these bytes: other ones need a new version."""
    files = train(TEXTS, vocab_size=45)
    assert files == train(TEXTS, vocab_size=45)
    assert set(files) == {"tokenizer.json", "vocab.txt"}
    assert hashlib.sha256(files["vocab.txt"]).hexdigest() == (
        "300040fc78025b8d03d6eaf993c194204b1c795b551d115166496949b312def1"
    )
    path = tmp_path / "tokenizer.json"
    path.write_bytes(files["tokenizer.json"])
    library = Tokenizer.from_file(str(path))
    assert [library.id_to_token(i) for i in range(library.get_vocab_size())] == tokens(files)
    op = TextTokenizer(TextTokenizerConfig(tokenizer=str(path)))
    op.setup("cpu")
    ids = op({"text": pa.array(["the mill, MÜ"], pa.large_string())})["tokens"].values.tolist()
    assert [tokens(files)[i] for i in ids] == ["the", "mill", ",", "[UNK]"]


def test_rare_characters_are_left_out() -> None:
    found = tokens(train(["aab aab aac", "", ""], vocab_size=100, max_characters=2))
    assert found[5:7] == ["a", "b"]
    assert not any("c" in token for token in found[5:])
    assert "ü" not in "".join(tokens(train(["Mühle", "", ""], vocab_size=100, lower_case=True)))
    assert "天気" in tokens(train(["天気", "", ""], vocab_size=100, split_ideographs=False))
    assert "天気" not in tokens(train(["天気", "", ""], vocab_size=100))


def test_rare_pairs_end_the_training() -> None:
    assert tokens(train(["ab ab cd", "", ""], vocab_size=100, min_count=2))[-1] == "ab"


def test_samples_that_cannot_do_are_refused() -> None:
    with pytest.raises(ContractError, match="there is no word"):
        train(["", " ", ""])
    with pytest.raises(ContractError, match="alone are 9 tokens, but vocab_size is 8"):
        train(["abab", "", ""], vocab_size=8)


@pytest.mark.parametrize("names", [("[PAD]",), ("[UNK]", "[UNK]")])
def test_special_tokens_are_checked(names: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match=r"expected \[UNK\] among them, and each once"):
        WordPieceConfig(special_tokens=names)


def test_it_is_found_by_name() -> None:
    assert registry.trainer("wordpiece") is WordPiece
    assert set(WordPiece(WordPieceConfig()).identity()) == {"tokenizers_version"}
