"""krbert: the contract, a slow oracle, frozen ids, the authors' unknown words, every mistake."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from operators.base import FieldSpec, Invertible
from operators.errors import ContractError, RowErrors, SetupError
from operators.testing import assert_operator_contract
from operators.text.krbert import SPECIAL_TOKENS, KRBert, KRBertConfig, Vocabulary
from tests.method_files import id_rows, krbert_file, texts, undecodable

FROZEN = [
    [36, 128, 38, 85, 5, 156, 126],
    [],
    [57, 161, 158, 61, 1, 45, 158],
    [124, 97, 149, 144, 1],
]


def ready(folder: Path, tokens: list[str] | None = None, **options: Any) -> KRBert:
    op = KRBert(KRBertConfig(tokenizer=krbert_file(folder, tokens), **options))
    op.setup("cpu")
    return op


def slow_candidate(word: str, tokens: list[str], *, backwards: bool) -> list[int] | None:
    """The definition, by the whole vocabulary at every step."""
    found: list[int] = []
    rest = word
    while rest:
        fits = []
        for i, token in enumerate(tokens):
            piece, inner = token.removeprefix("##"), token.startswith("##")
            if not piece:
                continue
            if backwards and rest.endswith(piece) and inner == (len(piece) < len(rest)):
                fits.append((len(piece), i))
            if not backwards and rest.startswith(piece) and inner == (rest != word):
                fits.append((len(piece), i))
        if not fits:
            return None
        length, i = max(fits)
        found = [i, *found] if backwards else [*found, i]
        rest = rest[:-length] if backwards else rest[length:]
    return found


@pytest.mark.parametrize("seed", range(6))
def test_every_short_word_gets_the_candidate_of_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    pieces = ["".join(p) for n in (1, 2, 3) for p in itertools.product("abc", repeat=n)]
    marked = [mark + piece for piece in pieces for mark in ("", "##")]
    tokens = [*SPECIAL_TOKENS, *rng.sample(marked, 30)]
    vocabulary = Vocabulary(tokens)
    num_known = 0
    for word in ("".join(p) for n in range(1, 7) for p in itertools.product("abc", repeat=n)):
        forwards = slow_candidate(word, tokens, backwards=False)
        backwards = slow_candidate(word, tokens, backwards=True)
        known = [ids for ids in (forwards, backwards) if ids is not None]
        num_known += len(known) == 2
        # Backwards stands last: it wins ties.
        best = min(reversed(known), key=sorted, default=[1])
        assert vocabulary.choose(word, unknown_wins=False) == best
        authors = best if len(known) == 2 else [1]
        assert vocabulary.choose(word, unknown_wins=True) == authors
    assert num_known > 20


def test_contract_and_frozen_ids(tmp_path: Path) -> None:
    """Published shards hold these ids: other ones need a new version."""
    op = ready(tmp_path)
    rows = ["안녕하세요 세계.\n오늘은", "", "unaffable 漢字 unable", "좋은좋은좋은\u00a0매우책을"]
    out = assert_operator_contract(op, {"text": texts(rows)})
    assert op.outputs == {"tokens": FieldSpec("uint8", (None,), 168)}
    assert id_rows(out["tokens"]) == FROZEN
    assert isinstance(op, Invertible)
    assert op.decode(out)["text"].to_pylist() == [
        "안녕하세요 세계 . 오늘은",
        "",
        "unaffable 漢 [UNK] unable",
        "좋은좋은좋은 [UNK]",
    ]


def test_a_word_that_one_direction_covers_is_known(tmp_path: Path) -> None:
    tokens = [*SPECIAL_TOKENS, "ab", "a", "##bc"]
    assert id_rows(ready(tmp_path, tokens)({"text": texts(["abc"])})["tokens"]) == [[6, 7]]
    authors = ready(tmp_path, tokens, unknown_wins=True)
    assert id_rows(authors({"text": texts(["abc"])})["tokens"]) == [[1]]


def test_an_empty_piece_is_never_taken(tmp_path: Path) -> None:
    """The authors' backward matcher would never end with it."""
    op = ready(tmp_path, [*SPECIAL_TOKENS, "##", "a"])
    assert id_rows(op({"text": texts(["ab a"])})["tokens"]) == [[1, 6]]


def test_a_word_of_more_than_200_characters_is_unknown(tmp_path: Path) -> None:
    op = ready(tmp_path, [*SPECIAL_TOKENS, "a", "##a"])
    found = id_rows(op({"text": texts(["a" * 200, "a" * 201])})["tokens"])
    assert found == [[5, *[6] * 199], [1]]


def test_text_is_cleaned_as_bert_does(tmp_path: Path) -> None:
    op = ready(tmp_path, [*SPECIAL_TOKENS, "a", "b", "##b", "."])
    rows = ["a\x00b\u200b", "a\u2003b", "a\u2028b", "a.b", "a\ufffdb"]
    found = id_rows(op({"text": texts(rows)})["tokens"])
    assert found == [[5, 7], [5, 6], [5, 6], [5, 8, 6], [5, 7]]


def test_lower_case_strips_accents(tmp_path: Path) -> None:
    op = ready(tmp_path, [*SPECIAL_TOKENS, "cafe"], lower_case=True)
    assert id_rows(op({"text": texts(["CAFÉ"])})["tokens"]) == [[5]]


def test_sub_characters_come_back_as_syllables(tmp_path: Path) -> None:
    jamo = ["\u1112", "##\u1161", "##\u11ab"]
    op = ready(tmp_path, [*SPECIAL_TOKENS, *jamo], sub_character=True)
    out = op({"text": texts(["한"])})
    assert id_rows(out["tokens"]) == [[5, 6, 7]]
    assert op.decode(out)["text"].to_pylist() == ["한"]


def test_a_missing_file_and_a_file_of_another_kind(tmp_path: Path) -> None:
    missing = KRBert(KRBertConfig(tokenizer=str(tmp_path / "vocab.txt")))
    with pytest.raises(SetupError, match=r"krbert: tokenizer .*vocab.txt.*has no file"):
        missing.identity()
    with pytest.raises(SetupError, match=r"first lines are \['a', 'b'\].*\[PAD\] \[UNK\]"):
        ready(tmp_path, ["a", "b"]).outputs  # noqa: B018 - reads the file
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")
    latin = KRBert(KRBertConfig(tokenizer=str(tmp_path / "latin.txt")))
    with pytest.raises(SetupError, match=r"no vocabulary of this method: it is no UTF-8"):
        latin.outputs  # noqa: B018 - reads the file


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "./a/b.json"}, r"neither a path that ends in .txt nor a hub id"),
        ({"tokenizer": "x.txt", "revision": "main"}, r"revision='main' belongs to a hub id"),
    ],
)
def test_a_wrong_address_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        KRBertConfig.model_validate(options)


def test_text_that_is_no_text_goes_to_the_quarantine(tmp_path: Path) -> None:
    op = ready(tmp_path)
    with pytest.raises(RowErrors) as caught:
        op({"text": undecodable([b"unable", b"\xff", b"\xeb\xa7"])})
    assert sorted(caught.value.errors) == [1, 2]
    assert "krbert: the text is no UTF-8" in str(caught.value.errors[1])
    assert len(caught.value.good["tokens"]) == 1


def test_null_text_is_a_broken_contract(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"krbert: 1 of 2 texts are null"):
        ready(tmp_path)({"text": texts(["a", None])})  # type: ignore[list-item]


def test_identity_is_the_file(tmp_path: Path) -> None:
    first = ready(tmp_path).identity()
    assert ready(tmp_path, [*SPECIAL_TOKENS]).identity() != first
    assert set(first) == {"tokenizer_sha256", "unicode_version"}
