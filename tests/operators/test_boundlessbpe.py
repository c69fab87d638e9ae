"""boundlessbpe: contract, frozen ids, oracles of its algorithms, and every mistake."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import Ragged
from operators.errors import ContractError, RowErrors, SetupError
from operators.testing import assert_operator_contract
from operators.text.algorithms.boundless import merged, model_of_text
from operators.text.algorithms.boundless_training import split_at_rare
from operators.text.algorithms.counted_pairs import CountedPairs
from operators.text.algorithms.pretokens import splitter
from operators.text.algorithms.scripts import script_splitter
from operators.text.boundlessbpe import (
    BoundlessBPE,
    BoundlessBPEConfig,
    BoundlessBPETrainer,
    BoundlessBPETrainerConfig,
)
from tests.text_documents import documents, quiet, some_texts

TEXTS = some_texts(120)
IDS_SHA256 = "2c675d9990ccd45672bc7e9b38329e8fa322e76f1f6f766352acba793773a544"
OPTIONS: dict[str, Any] = {
    "vocab_size": 360,
    "tau": 0.7,
    "blowup": False,
    "special_tokens": ["<eos>", "<s>"],
}


def trained(**options: Any) -> bytes:
    config = BoundlessBPETrainerConfig.model_validate({**OPTIONS, **options})
    return BoundlessBPETrainer(config).train(documents(TEXTS), quiet)["tokenizer.model"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("boundlessbpe") / "tokenizer.model"
    path.write_bytes(trained())
    return str(path)


def operator(model: str, **options: Any) -> BoundlessBPE:
    made = BoundlessBPE(BoundlessBPEConfig.model_validate({"tokenizer": model, **options}))
    made.setup("cpu")
    return made


def column(texts: Sequence[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def test_contract_and_frozen_ids(model: str) -> None:
    """Published shards hold these ids: a new digest needs a new version."""
    out = assert_operator_contract(operator(model), {"text": column(TEXTS)})
    assert hashlib.sha256(out["tokens"].values.tobytes()).hexdigest() == IDS_SHA256


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=40) | st.text("the of", max_size=60), max_size=4))
def test_every_text_comes_back(texts: list[str], model: str) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    made = operator(model, add_bos="<s>", add_eos="<eos>")
    assert made.decode(made({"text": column(texts)}))["text"].to_pylist() == texts


def test_text_that_the_pattern_leaves_out_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained(pattern=r"\w+"))
    made = operator(str(path))
    assert made.decode(made({"text": column(["a, b!", " "])}))["text"].to_pylist() == ["a, b!", " "]


def test_tokens_span_words(model: str) -> None:
    supers = model_of_text(Path(model).read_text(), model).supers
    assert b" of the" in supers
    made = operator(model)
    ids = made({"text": column(["of the end", "x of the of the"])})["tokens"]
    tokens = list(model_of_text(Path(model).read_text(), model).vocabulary)
    assert b" of the" in [tokens[i] for i in ids[1].tolist()]


def test_specials_and_ends(model: str) -> None:
    made = operator(model, add_bos="<s>", add_eos="<eos>", special_tokens_in_text="parse")
    size = made.outputs["tokens"].vocab_size
    assert size == 362
    assert made.metadata()["special_ids"] == {"<eos>": 360, "<s>": 361}
    out = made({"text": column(["", "a<s>b"])})
    assert out["tokens"][0].tolist() == [361, 360]
    assert out["tokens"][1].tolist() == [361, ord("a"), 361, ord("b"), 360]
    assert made.decode(out)["text"].to_pylist() == ["", "a<s>b"]
    escaped = operator(model)({"text": column(["a<s>b"])})["tokens"]
    assert escaped.values.max() < 360


def test_words_are_forgotten_when_there_are_many(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = operator(model)({"text": column(TEXTS)})["tokens"].values
    monkeypatch.setattr("operators.text.boundlessbpe.MAX_KNOWN_WORDS", 3)
    assert np.array_equal(operator(model)({"text": column(TEXTS)})["tokens"].values, once)


def test_text_that_is_no_utf8(model: str) -> None:
    raw = pa.array([b"ok", b"\xff", b"of the"], pa.large_binary())
    bad = pa.Array.from_buffers(pa.large_string(), 3, raw.buffers())
    with pytest.raises(RowErrors) as raised:
        operator(model)({"text": bad})
    assert list(raised.value.errors) == [1]
    assert "no UTF-8" in str(raised.value.errors[1])
    assert len(raised.value.good["tokens"]) == 2


def test_missing_model(tmp_path: Path) -> None:
    made = BoundlessBPE(BoundlessBPEConfig(tokenizer=str(tmp_path / "no.model")))
    with pytest.raises(SetupError, match=r"no\.model': no such file; give the path of a model"):
        made.identity()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: "{}", r":1: not a model of BoundlessBPE \(it begins with '{}'\)"),
        (lambda text: text.replace("boundless\n", "other\n", 1), "it begins with 'BoundlessBPE v2"),
        (lambda text: text[: len(text) // 2], "not a model of BoundlessBPE"),
        (lambda text: text.replace("\nmerges\n", "\nmerge\n"), "expected 'merges', found 'merge'"),
        (lambda text: text.replace("65 A 0", "65 B 0"), "tokens stand twice in the vocabulary"),
    ],
    ids=["other", "kind", "cut", "heading", "twice"],
)
def test_damaged_model(damage: Any, says: str, model: str, tmp_path: Path) -> None:
    text = Path(model).read_text()
    assert damage(text) != text
    path = tmp_path / "damaged.model"
    path.write_text(damage(text))
    with pytest.raises(SetupError, match=says):
        operator(str(path))


def test_model_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "image.model"
    path.write_bytes(b"\xff\xd8")
    with pytest.raises(SetupError, match=r"image\.model': not a text file"):
        operator(str(path))


def test_unknown_end(model: str) -> None:
    with pytest.raises(ContractError, match=r"add_eos='</s>' is no special token.*\['<eos>', "):
        operator(model, add_eos="</s>")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"vocab_size": 243}, ValidationError, "greater than 243"),
        ({"kind": "superbpe"}, ValidationError, "num_supers is needed for kind: superbpe"),
        ({"num_supers": 3}, ValidationError, "num_supers belongs to kind: superbpe"),
        ({"pattern": "(a"}, ContractError, r"pattern '\(a'"),
        ({"merge_pattern": "(a"}, ContractError, r"merge_pattern '\(a'"),
        ({"script_pattern": ".", "scripts": ["Hann"]}, ContractError, "there is no script 'Hann'"),
    ],
)
def test_wrong_settings(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        trained(**options)


def test_nothing_to_learn_from() -> None:
    trainer = BoundlessBPETrainer(BoundlessBPETrainerConfig(vocab_size=300))
    with pytest.raises(ContractError, match="matches nothing in the documents"):
        trainer.train(documents([""]), quiet)


def test_few_documents_give_a_small_vocabulary() -> None:
    """A merge across words must be more frequent than the next one inside, and displaces it."""
    config = BoundlessBPETrainerConfig(vocab_size=300)
    learnt = []
    for texts in (["ab ab", "ab ab"], ["ab ab", "ab ab", "cd"]):
        data = BoundlessBPETrainer(config).train(documents(texts), quiet)
        learnt.append(list(model_of_text(data["tokenizer.model"].decode(), "").vocabulary)[243:])
    assert learnt == [[b"ab", b" ab"], [b"ab", b" ab", b"ab ab"]]


@settings(max_examples=80, deadline=None)
@given(
    words=st.dictionaries(st.text("ab", min_size=1, max_size=9), st.integers(1, 3), min_size=1)
    | st.dictionaries(st.text("abcd", min_size=1, max_size=6), st.integers(1, 3), min_size=1),
    deleted=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_counts_are_those_of_counting_anew(words: dict[str, int], deleted: list[bool]) -> None:
    """The oracle counts everything before every merge, and goes through all words."""
    rows = [[letter.encode() for letter in word] for word in words]
    weights = list(words.values())
    flat = np.array([row[0][0] for word in rows for row in [[t] for t in word]], np.int32)
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    pairs = CountedPairs(
        Ragged(flat, offsets), np.array(weights), [bytes([byte]) for byte in range(256)]
    )
    ids = {token: i for i, token in enumerate(pairs.tokens)}
    made_of: dict[bytes, tuple[bytes, bytes]] = {}
    for is_deleted in deleted:
        counts = count_anew(rows, weights)
        found = pairs.best()
        if not counts:
            assert found is None
            return
        left, right = min(counts, key=lambda pair: (-counts[pair], pair))
        assert found == (ids[left], ids[right], counts[left, right])
        token = left + right
        made_of.setdefault(token, (left, right))
        new = ids.setdefault(token, len(pairs.tokens))
        is_word = any(row == [left, right] for row in rows)
        assert pairs.merge(ids[left], ids[right], new) == is_word
        rows = [merged(row, left, right) for row in rows]
        if is_deleted and len(left) > 1:
            pairs.split(ids[left], [ids[part] for part in made_of[left]])
            parts = made_of[left]
            rows = [[p for t in row for p in (parts if t == left else (t,))] for row in rows]
        for each, i in ids.items():
            stands = sum(
                row.count(each) * weight for row, weight in zip(rows, weights, strict=True)
            )
            assert pairs.count(i) == stands


def count_anew(
    rows: Sequence[Sequence[bytes]], weights: Sequence[int]
) -> Counter[tuple[bytes, bytes]]:
    """Count a pair as often as it can be merged."""
    counts: Counter[tuple[bytes, bytes]] = Counter()
    for row, weight in zip(rows, weights, strict=True):
        for pair in set(pairwise(row)):
            counts[pair] += weight * (len(row) - len(merged(row, *pair)))
    return counts


RUN = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=2, max_size=7).map(tuple)


@settings(max_examples=60, deadline=None)
@given(runs=st.dictionaries(RUN, st.integers(1, 4), max_size=6), min_count=st.integers(1, 6))
def test_runs_are_cut_into_frequent_parts(
    runs: dict[tuple[bytes, ...], int], min_count: int
) -> None:
    """The oracle counts every part of every run."""
    longest = 4
    counts: Counter[tuple[bytes, ...]] = Counter()
    for run, count in runs.items():
        for start in range(len(run)):
            for stop in range(start + 2, min(len(run), start + longest) + 1):
                counts[run[start:stop]] += count
    expected: Counter[tuple[bytes, ...]] = Counter()
    for run, count in runs.items():
        at = 0
        while at < len(run):
            stops = [n for n in range(at + 2, len(run) + 1) if counts[run[at:n]] >= min_count]
            stop = max(stops, default=at + 1)
            expected[run[at:stop]] += count
            at = stop
    assert split_at_rare(runs, min_count, longest) == expected


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("abc", ["abc"]),
        ("ab漢字cd", ["ab", "漢", "字", "cd"]),
        ("ab, 漢", ["ab", ", 漢"]),
        ("джab", ["дж", "ab"]),
        ("漢, ab", ["漢", ", ab"]),
        ("漢\u0301ab", ["漢", "\u0301", "ab"]),
        ("1漢", ["1", "漢"]),
        ("…", ["…"]),
        ("", [""]),
    ],
)
def test_runs_of_scripts(text: str, pieces: list[str]) -> None:
    everything, letters = splitter("identity", "keep"), splitter(r"\W*\w\W*|.", "drop")
    single = splitter(r", 漢|.", "drop")
    split = script_splitter(everything, single if ", 漢" in text else letters, ["Han"])
    assert list(split(text)) == pieces


ONE_PASS_FILE = """word v1
"[a-z]+|[^a-z]+"
3
0 a
1 b
2 ab
1
3 <eos>
1
0 a b
0
0
0
"""


def test_files_of_the_older_program(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text(ONE_PASS_FILE)
    made = operator(str(path), add_eos="<eos>")
    assert made({"text": column(["abba"])})["tokens"][0].tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("0\n0\n0\n", "0\n0\n1\n1 ab\n"), "it deletes 1 tokens across words"),
        (("2 ab", "5 ab"), "its ids do not follow one another"),
        (("0 a b", "0 ab"), "expected 3 fields, found 2"),
        (("0\n0\n0\n", ""), "invalid literal"),
    ],
)
def test_a_broken_file_of_the_older_program(
    tmp_path: Path, change: tuple[str, str], match: str
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text(ONE_PASS_FILE.replace(*change))
    with pytest.raises(SetupError, match=match):
        operator(str(path))


def test_blowup_is_for_files_that_do_not_say_it(model: str) -> None:
    with pytest.raises(ContractError, match="says itself what a deleted token becomes"):
        operator(model, blowup=True)
