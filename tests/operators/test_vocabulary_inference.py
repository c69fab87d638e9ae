"""vocabulary_inference: every method against its definition and the library, and its errors."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from operators.base import HasPieces, Invertible, Ragged
from operators.errors import ContractError, RowErrors, SetupError
from operators.testing import assert_operator_contract
from operators.text.algorithms.gpt2_words import gpt2_cuts
from operators.text.algorithms.pretokens import PATTERNS
from operators.text.algorithms.vocabulary_inference import (
    DROP,
    STUCK,
    BestPath,
    LongestPrefix,
    LongestSuffix,
    LongestToken,
    Merges,
    Method,
    Vocabulary,
)
from operators.text.text_column import utf8_bytes
from operators.text.vocabulary_inference import VocabularyInference, VocabularyInferenceConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "text"
BPE, UNIGRAM = str(GOLDEN / "bytelevel_bpe.json"), str(GOLDEN / "unigram.json")
TEXTS = ["The old mill's wheel", "", "Mühle 🌾\n\n  def grind(): 12345", "x" * 60, "don't  stop"]
ANY_VOCABULARY = ["longest_prefix", "longest_suffix", "longest_token", "fewest_tokens"]

LETTERS = "aéb"
TOKENS = st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=8, unique=True)
WORDS = st.lists(st.text(LETTERS, max_size=9), min_size=1, max_size=4)
UNKNOWN = 99


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def ready(tokenizer: str, method: str, **options: Any) -> VocabularyInference:
    config = {"tokenizer": tokenizer, "method": method, **options}
    op = VocabularyInference(VocabularyInferenceConfig.model_validate(config))
    op.setup("cpu")
    return op


def rows(tokens: Ragged) -> list[list[int]]:
    return [tokens[i].tolist() for i in range(len(tokens))]


def utf8(names: list[str], unknown: int, rests: list[str] | None = None) -> Vocabulary:
    firsts = {name.encode(): i for i, name in enumerate(names)}
    inside = firsts if rests is None else {r.encode(): 50 + i for i, r in enumerate(rests)}
    return Vocabulary(firsts, inside, unknown, np.empty(0, np.int32), False, "uint8")


def run(method: Method, words: list[str]) -> list[list[int] | None]:
    """Return ids of every word, None for one that is stuck."""
    encoded = [word.encode() for word in words]
    values, cuts = np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)])
    found = method(values, cuts)
    ids = rows(Ragged(found.ids, found.firsts))
    return [None if at >= 0 else row for at, row in zip(found.stuck_at, ids, strict=True)]


Ids = Callable[[str, int], int | None]


def ids_of(names: list[str], rests: list[str] | None) -> Ids:
    """Return token and place -> id."""

    def find(token: str, at: int) -> int | None:
        if at and rests is not None:
            return 50 + rests.index(token) if token in rests else None
        return names.index(token) if token in names else None

    return find


def by_prefix(word: str, find: Ids) -> list[int]:
    ids, at = [], 0
    while at < len(word):
        for end in range(len(word), at, -1):
            if (found := find(word[at:end], at)) is not None:
                ids.append(found)
                at = end
                break
        else:
            ids.append(UNKNOWN)
            at += 1
    return ids


def by_suffix(word: str, find: Ids, *, drops: bool) -> list[int]:
    ids, end = [], len(word)
    while end:
        for at in range(end):
            if (found := find(word[at:end], at)) is not None:
                ids.append(found)
                end = at
                break
        else:
            if drops:
                break
            ids.append(UNKNOWN)
            end -= 1
    return ids[::-1]


def by_longest(word: str, find: Ids, *, drops: bool) -> list[int]:
    done: dict[int, tuple[int, int]] = {}
    free = [True] * len(word)
    for size in range(len(word), 0, -1):
        for at in range(len(word) - size + 1):
            found = find(word[at : at + size], at)
            if found is not None and all(free[at : at + size]):
                done[at] = found, size
                free[at : at + size] = [False] * size
    left = {} if drops else {at: (UNKNOWN, 1) for at, is_free in enumerate(free) if is_free}
    return [token for _, (token, _) in sorted((done | left).items())]


@settings(max_examples=120, deadline=None)
@given(names=TOKENS, rests=st.none() | TOKENS, words=WORDS)
def test_greedy_methods_do_as_defined(
    names: list[str], rests: list[str] | None, words: list[str]
) -> None:
    find = ids_of(names, rests)
    kept, dropped = utf8(names, UNKNOWN, rests), utf8(names, DROP, rests)
    assert run(LongestPrefix(kept, None), words) == [by_prefix(w, find) for w in words]
    whole = [by_prefix(w, find) for w in words]
    want = [
        [UNKNOWN] if UNKNOWN in ids or len(word) > 5 else ids
        for word, ids in zip(words, whole, strict=True)
    ]
    assert run(LongestPrefix(kept, 5), words) == want
    for vocabulary, drops in ((kept, False), (dropped, True)):
        by = [by_suffix(w, find, drops=drops) for w in words]
        assert run(LongestSuffix(vocabulary), words) == by
        by = [by_longest(w, find, drops=drops) for w in words]
        assert run(LongestToken(vocabulary), words) == by
    stuck = utf8(names, STUCK, rests)
    for method in (LongestPrefix(stuck, None), LongestSuffix(stuck), LongestToken(stuck)):
        same = run(
            type(method)(kept, None) if isinstance(method, LongestPrefix) else type(method)(kept),
            words,
        )
        want_stuck = [None if UNKNOWN in (ids or []) else ids for ids in same]
        assert run(method, words) == want_stuck


def paths(word: str, find: Ids, at: int = 0) -> Iterator[list[tuple[int, int]]]:
    """Yield every segmentation: id (-1 for a character that is no token) and size."""
    if at == len(word):
        yield []
    for end in range(at + 1, len(word) + 1):
        found = find(word[at:end], at)
        if found is None and end == at + 1:
            found = -1
        if found is not None:
            for rest in paths(word, find, end):
                yield [(found, end - at), *rest]


@settings(max_examples=120, deadline=None)
@given(data=st.data(), names=TOKENS, rests=st.none() | TOKENS, words=WORDS)
def test_no_path_is_better(
    data: st.DataObject, names: list[str], rests: list[str] | None, words: list[str]
) -> None:
    find = ids_of(names, rests)
    scores = np.array(data.draw(st.lists(st.integers(-9, -1), min_size=100, max_size=100)), float)
    found = run(BestPath(utf8(names, UNKNOWN, rests), scores, -20.0), words)
    fewest = run(BestPath(utf8(names, UNKNOWN, rests), np.full(100, -1.0), -20.0), words)
    for word, ids, short in zip(words, found, fewest, strict=True):
        every = list(paths(word, find))
        assert ids == best(every, scores)
        assert short == best(every, np.full(100, -1.0))


def best(every: list[list[tuple[int, int]]], scores: np.ndarray) -> list[int]:
    """Return the ids of the best path; of equals that with the longest last token, and so on."""

    def worth(path: list[tuple[int, int]]) -> tuple[float, list[int]]:
        total = sum(-20.0 if token < 0 else scores[token] for token, _ in path)
        return total, [size for _, size in path[::-1]]

    ids: list[int] = []
    is_unknown = False
    for token, _ in max(every, key=worth):
        if token >= 0 or not is_unknown:
            ids.append(UNKNOWN if token < 0 else token)
        is_unknown = token < 0
    return ids


@settings(max_examples=120, deadline=None)
@given(data=st.data(), words=WORDS, fuses=st.booleans(), whole=st.booleans())
def test_merges_are_those_of_the_library(
    data: st.DataObject, words: list[str], fuses: bool, whole: bool
) -> None:
    names = ["?", "a", "b"]  # é is unknown
    merges: list[tuple[str, str]] = []
    for _ in range(data.draw(st.integers(0, 8))):
        pair = data.draw(st.tuples(st.sampled_from(names[1:]), st.sampled_from(names[1:])))
        if pair not in merges:
            merges.append(pair)
            names += [] if "".join(pair) in names else ["".join(pair)]
    ids = {name: i for i, name in enumerate(names)}
    vocabulary = utf8(names, 0)
    del vocabulary.firsts[b"?"]  # type: ignore[attr-defined]
    ranked = [(ids[left], ids[right], ids[left + right]) for left, right in merges]
    found = run(Merges(vocabulary, ranked, whole_words=whole, fuses_unknown=fuses), words)
    model = models.BPE(ids, merges, unk_token="?", fuse_unk=fuses, ignore_merges=whole)
    library = Tokenizer(model)
    assert found == [library.encode(word).ids for word in words]


def test_dropout_is_as_often_as_it_says() -> None:
    names = ["a", "aa"]
    method = Merges(utf8(names, STUCK), [(0, 0, 1)], whole_words=False, fuses_unknown=False)
    num = 4000
    values, cuts = np.frombuffer(b"aa" * num, np.uint8), np.arange(num + 1) * 2
    seeds = np.random.default_rng(0).integers(0, 2**64, num, np.uint64)
    found = method.with_dropout(values, cuts, 0.3, seeds)
    assert abs((found.ids == 1).sum() / num - 0.7) < 0.03
    assert (method.with_dropout(values, cuts, 1.0, seeds).ids == 0).all()
    assert (method.with_dropout(values, cuts, 0.0, seeds).ids == 1).all()


def test_draws_follow_seed_and_key() -> None:
    texts = column(["the wheel of the old mill"] * 3)

    def drawn(keys: list[str], **options: Any) -> list[list[int]]:
        op = ready(BPE, "bpe_dropout", dropout=0.5, **options)
        return rows(op({"text": texts, "key": column(keys)})["tokens"])

    first = drawn(["a", "b", "a"])
    assert first[0] == first[2] != first[1]
    assert drawn(["b", "a", "c"])[:2] == [first[1], first[0]]
    assert drawn(["a", "b", "a"], seed=1) != first
    merged = rows(ready(BPE, "bpe_merges")({"text": texts})["tokens"])
    assert rows(ready(BPE, "bpe_dropout", dropout=0)({"text": texts, "key": texts})["tokens"]) == (
        merged
    )


@settings(max_examples=75, deadline=None)
@given(text=st.text(st.characters(codec="utf-8")) | st.text("a '\n\té1.x日s"))
def test_words_are_those_of_the_library(text: str) -> None:
    assert cut(text) == library_words(text)


def test_words_of_every_character_are_those_of_the_library() -> None:
    """Of the planes without any assigned letter or digit, some characters stand for the others."""
    planes = [range(plane << 16, (plane + 1) << 16) for plane in range(17)]
    codes = [code for i, plane in enumerate(planes) for code in plane[:: 1 if i < 4 else 61]]
    every = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    text = "a1.".join(every)
    assert cut(text) == library_words(text)


def cut(text: str) -> list[bytes]:
    values = np.frombuffer(text.encode(), np.uint8)
    cuts = gpt2_cuts(values, np.array([0, len(values)]))
    return [values[begin:end].tobytes() for begin, end in pairwise(cuts)]


def library_words(text: str) -> list[bytes]:
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spans = [span for _, span in cutter.pre_tokenize_str(text)]
    return [text[begin:end].encode() for begin, end in spans]


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=4))
def test_published_methods_give_the_ids_of_the_library(texts: list[str]) -> None:
    for path, method in ((BPE, "bpe_merges"), (UNIGRAM, "most_likely")):
        library = Tokenizer.from_file(path)
        library.no_truncation()
        library.encode_special_tokens = True
        found = rows(READY[method]({"text": column(texts)})["tokens"])
        assert found == [library.encode(text, add_special_tokens=False).ids for text in texts]


READY = {"bpe_merges": ready(BPE, "bpe_merges"), "most_likely": ready(UNIGRAM, "most_likely")}


@pytest.mark.parametrize("method", [*ANY_VOCABULARY, "bpe_merges", "bpe_dropout"])
def test_contract_and_round_trip(method: str) -> None:
    op = ready(BPE, method)
    keys = {"key": column(list("abcde"))} if method == "bpe_dropout" else {}
    out = assert_operator_contract(op, {"text": column(TEXTS), **keys})
    assert isinstance(op, Invertible)
    assert op.decode(out)["text"].to_pylist() == TEXTS


@pytest.mark.parametrize("method", [*ANY_VOCABULARY, "most_likely"])
def test_contract_of_words_that_the_library_cuts(method: str) -> None:
    assert_operator_contract(ready(UNIGRAM, method), {"text": column(TEXTS)})


def test_ids_are_frozen() -> None:
    """Published shards hold these ids: other ones need a new version."""
    digest = hashlib.sha256()
    for method in (*ANY_VOCABULARY, "bpe_dropout"):
        op = ready(BPE, method)
        keys = {"key": column(list("abcde"))} if method == "bpe_dropout" else {}
        out = op({"text": column(TEXTS), **keys})["tokens"]
        digest.update(out.values.tobytes() + out.offsets.tobytes())
    assert digest.hexdigest() == "b524a638d7e59104aaed5acd9f84147c61ebf4152a110738ae98d4eb7233da17"


def save(folder: Path, tok: Tokenizer) -> str:
    path = folder / "tokenizer.json"
    tok.save(str(path))
    return str(path)


def test_lossless_puts_unknowns_where_the_authors_drop_text(tmp_path: Path) -> None:
    names = ["[UNK]", "mi", "##ll", "##i", "m"]
    model = models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    tok = Tokenizer(model)
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    path = save(tmp_path, tok)
    text = {"text": column(["mixll x mi"])}
    found = {
        (method, lossless): rows(ready(path, method, lossless=lossless)(text)["tokens"])[0]
        for method in ANY_VOCABULARY[:3]
        for lossless in (True, False)
    }
    assert found == {
        ("longest_prefix", True): [1, 0, 2, 0, 1],
        ("longest_prefix", False): [0, 0, 1],
        ("longest_suffix", True): [1, 0, 2, 0, 1],
        ("longest_suffix", False): [2, 1],
        ("longest_token", True): [1, 0, 2, 0, 1],
        ("longest_token", False): [1, 2, 1],
    }


def test_bytes_spell_what_is_unknown(tmp_path: Path) -> None:
    names = ["?", *[f"<0x{byte:02X}>" for byte in range(256)], "a", "b", "ab"]
    ids = {name: i for i, name in enumerate(names)}
    tok = Tokenizer(models.BPE(ids, [("a", "b")], unk_token="?", byte_fallback=True))
    tok.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    path = save(tmp_path, tok)
    text = "abé<0x41>ab🌾"
    for method in (*ANY_VOCABULARY, "bpe_merges"):
        op = ready(path, method)
        out = op({"text": column([text])})
        assert out["tokens"].values.tolist() == tok.encode(text).ids, method
        assert op.decode(out)["text"].to_pylist() == [text]


def test_without_an_unknown_token_such_texts_are_told_apart(tmp_path: Path) -> None:
    tok = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = save(tmp_path, tok)
    texts = column(["ab a", "ab xy", "b"])
    for method in (*ANY_VOCABULARY, "bpe_merges"):
        with pytest.raises(RowErrors) as caught:
            ready(path, method)({"text": texts})
        assert list(caught.value.errors) == [1]
        assert "'xy'" in caught.value.errors[1].message
        assert rows(caught.value.good["tokens"]) == [[2, 0], [1]]
    assert rows(ready(path, "bpe_merges", lossless=False)({"text": texts})["tokens"])[1] == [2]


def test_long_words_take_linear_time_and_agree() -> None:
    text = column(["x" * 200_000])
    for method in (*ANY_VOCABULARY, "bpe_merges"):
        op = ready(BPE, method)
        assert op.decode(op({"text": text}))["text"].to_pylist() == text.to_pylist()


def test_ends_are_added_and_must_exist() -> None:
    op = ready(BPE, "fewest_tokens", add_bos="<s>", add_eos="<|endoftext|>")
    out = rows(op({"text": column(["", "a"])})["tokens"])
    ids = op.metadata()["special_ids"]
    assert isinstance(ids, dict)
    assert [row[0] for row in out] == [ids["<s>"]] * 2
    assert [row[-1] for row in out] == [ids["<|endoftext|>"]] * 2
    with pytest.raises(ContractError, match=r"add_bos='<no>' is no token"):
        ready(BPE, "fewest_tokens", add_bos="<no>")


def test_pieces_join_to_the_text() -> None:
    op = ready(BPE, "longest_suffix")
    assert isinstance(op, HasPieces)
    texts = op.pieces().texts.to_pylist()
    assert texts[op.metadata()["special_ids"]["<s>"]] is None  # type: ignore[index]
    for row, text in zip(rows(op({"text": column(TEXTS)})["tokens"]), TEXTS, strict=True):
        assert b"".join(texts[i] for i in row).decode() == text


def test_identity_names_what_cuts_words() -> None:
    common = {"tokenizer_sha256", "tokenizers_version"}
    assert set(ready(BPE, "longest_prefix").identity()) == common | {"regex_version"}
    assert set(ready(UNIGRAM, "longest_prefix").identity()) == common


def test_special_tokens_in_text_are_text() -> None:
    op = ready(BPE, "longest_prefix")
    out = op({"text": column(["<|endoftext|>"])})
    ids = op.metadata()["special_ids"]
    assert isinstance(ids, dict)
    assert ids["<|endoftext|>"] not in out["tokens"].values
    assert op.decode(out)["text"].to_pylist() == ["<|endoftext|>"]


@pytest.mark.parametrize(
    ("path", "method", "found"),
    [
        (BPE, "most_likely", "is a BPE, which has no probabilities"),
        (UNIGRAM, "bpe_merges", "is a Unigram, which has no merges"),
    ],
)
def test_a_method_needs_its_kind_of_vocabulary(path: str, method: str, found: str) -> None:
    with pytest.raises(ContractError, match=found):
        ready(path, method)


def test_marks_that_the_methods_do_not_know_are_refused(tmp_path: Path) -> None:
    ends = Tokenizer(
        models.BPE({"a": 0, "a</w>": 1}, [], end_of_word_suffix="</w>", ignore_merges=True)
    )
    with pytest.raises(ContractError, match="marks the ends of words, and has"):
        ready(save(tmp_path, ends), "longest_prefix")
    inside = Tokenizer(models.BPE({"a": 0, "##a": 1}, [], continuing_subword_prefix="##"))
    with pytest.raises(ContractError, match="tokens are marked inside words"):
        ready(save(tmp_path, inside), "bpe_merges")
    with pytest.raises(ContractError, match="takes for its own mark"):
        ready(UNIGRAM, "longest_token", lossless=False)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(SetupError, match=r"is no tokenizer\.json"):
        ready(str(path), "longest_prefix")


@pytest.mark.parametrize("option", [{"dropout": 0.1}, {"seed": 1}])
def test_an_option_without_use_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="has no use with method='bpe_merges'"):
        VocabularyInferenceConfig(tokenizer="tokenizer.json", method="bpe_merges", **option)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), texts=st.lists(st.text("ab é"), min_size=1, max_size=4))
def test_marked_ends_of_words_are_those_of_the_library(
    data: st.DataObject, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = ["?", "a", "b", "a</w>", "b</w>"]  # é is unknown
    merges: list[tuple[str, str]] = []
    for _ in range(data.draw(st.integers(0, 6))):
        left = data.draw(st.sampled_from([n for n in names[1:] if not n.endswith("</w>")]))
        pair = left, data.draw(st.sampled_from(names[1:]))
        if pair not in merges:
            merges.append(pair)
            names += [] if "".join(pair) in names else ["".join(pair)]
    ids = {name: i for i, name in enumerate(names)}
    tok = Tokenizer(models.BPE(ids, merges, unk_token="?", end_of_word_suffix="</w>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = save(tmp_path_factory.mktemp("ends"), tok)
    found = rows(ready(path, "bpe_merges")({"text": column(texts)})["tokens"])
    assert found == [tok.encode(text).ids for text in texts]


def test_greedy_methods_take_marked_tokens_at_the_ends_of_words_alone(tmp_path: Path) -> None:
    names = ["?", "m", "mi", "ll", "l</w>", "ill</w>", "m</w>", "</w>", "<", "w"]
    ids = {name: i for i, name in enumerate(names)}
    tok = Tokenizer(models.BPE(ids, [], unk_token="?", end_of_word_suffix="</w>"))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    path = save(tmp_path, tok)
    text = {"text": column(["mill", "m", "ll", "", "mi"])}
    spelled = {
        method: [[names[i] for i in row] for row in rows(ready(path, method)(text)["tokens"])]
        for method in ANY_VOCABULARY
    }
    others = [["m</w>"], ["?", "l</w>"], [], ["m", "?"]]
    assert spelled == {
        "longest_prefix": [["mi", "?", "l</w>"], *others],
        "longest_suffix": [["m", "ill</w>"], *others],
        "longest_token": [["m", "ill</w>"], *others],
        "fewest_tokens": [["m", "ill</w>"], *others],
    }


LIBRARY_RULES = [
    (normalizers.NFC(), pre_tokenizers.Whitespace()),
    (normalizers.Lowercase(), pre_tokenizers.Metaspace()),
    (None, pre_tokenizers.Metaspace(prepend_scheme="first")),
    (normalizers.NFKC(), pre_tokenizers.ByteLevel(add_prefix_space=True)),
    (normalizers.NFKC(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
    (normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    (normalizers.Replace(Regex(" {2,}"), " "), pre_tokenizers.WhitespaceSplit()),
    (normalizers.Replace("a", "b"), pre_tokenizers.WhitespaceSplit()),
    (normalizers.Prepend("_"), pre_tokenizers.WhitespaceSplit()),
    (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])),
    (
        None,
        pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation("merged_with_next"), *[pre_tokenizers.ByteLevel(False)]]
        ),
    ),
    *[
        (None, pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated"))
        for name in ("gpt2", "gpt4", "gpt4o", "bpeasy", "superbpe_words", "superbpe_lines")
    ],
    (None, pre_tokenizers.Split(Regex(PATTERNS["gpt4o"]), "merged_with_next")),
    (None, pre_tokenizers.Split(Regex(PATTERNS["gpt4"]), "removed", invert=True)),
    (None, pre_tokenizers.Split(" ", "isolated")),
]


@pytest.mark.parametrize("rule", range(len(LIBRARY_RULES)))
@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("aB1 '.(_,\n\t\u0301é日\u00a0\r")), max_size=4))
def test_chunks_have_the_words_of_whole_texts(rule: int, texts: list[str]) -> None:
    op, normalizer, cutter = with_rule(rule)
    documents = utf8_bytes(column(texts))
    found = op._library_words(documents)
    words, firsts = found.words.to_pylist(), found.firsts.tolist()
    of_chunks = [words[firsts[chunk] : firsts[chunk + 1]] for chunk in found.chunks.tolist()]
    for row, text in enumerate(texts):
        begin, end = found.document_chunks[row : row + 2]
        plain = text if normalizer is None else normalizer.normalize_str(text)
        want = [word for word, _ in cutter.pre_tokenize_str(plain)]
        assert [word for chunk in of_chunks[begin:end] for word in chunk] == want


@cache
def with_rule(rule: int) -> tuple[VocabularyInference, Any, Any]:
    tok = Tokenizer(models.BPE({"a": 0}, []))
    normalizer, cutter = LIBRARY_RULES[rule]
    tok.pre_tokenizer = cutter
    if normalizer is not None:
        tok.normalizer = normalizer
    with tempfile.TemporaryDirectory() as folder:
        return ready(save(Path(folder), tok), "longest_prefix"), normalizer, cutter
