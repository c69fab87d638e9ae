"""hybrid_morphology: the contract, text -> ids -> text, a slow oracle, every mistake."""

# ruff: noqa: RUF001 - Turkish letters

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from operators.base import FieldSpec, Invertible
from operators.errors import ContractError, RowErrors, SetupError
from operators.testing import assert_operator_contract
from operators.text.hybrid_morphology import HybridMorphology, HybridMorphologyConfig
from tests.method_files import golden, hybrid_folder, id_rows, texts, undecodable

TINY = golden("turkish_hybrid/tokenize")["tiny"]
ROWS = ["Kitaplarım ağaçta", "", "  EVLER\n\tgöztü 😀", "İstanbul'da IŞIK <pad>"]
TURKISH = st.text(st.sampled_from("kitaplerığaçevgözIİEiı \n\tÉǅẞß<>"), max_size=30)
ANY = st.one_of(TURKISH, st.text(max_size=12), st.sampled_from([*TINY["suffixes"], "<uppercase>"]))


def ready(folder: Path, tables: dict[str, dict[str, int]] | None = None, **options: Any) -> Any:
    found = hybrid_folder(folder, **(tables or {}))
    op = HybridMorphology(HybridMorphologyConfig(dictionaries=found, **options))
    op.setup("cpu")
    return op


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dictionaries")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(rows=["<unknown> <uppercase>kitap İIiı ẞ ǅ é É \u2028 \x1c ﬁ"], casing="turkish")
@example(rows=["İ I i ı"], casing="unicode")
@given(rows=st.lists(ANY, min_size=1, max_size=4), casing=st.sampled_from(["turkish", "unicode"]))
def test_any_text_comes_back(folder: Path, rows: list[str], casing: str) -> None:
    op = ready(folder, casing=casing)
    assert op.decode(op({"text": texts(rows)}))["text"].to_pylist() == rows


def slow_reading(segment: str) -> list[int]:
    """The definition: all prefixes of all tables, in the order of preference."""
    found = []
    while segment:
        fits = [
            (len(TINY) - order, len(form), token)
            for order, table in enumerate(("roots", "suffixes", "bpe"))
            for form, token in TINY[table].items()
            if segment.startswith(form)
        ]
        _, length, token = max(fits, default=(0, 1, 1))
        found.append(token)
        segment = segment[length:]
    return found


@settings(max_examples=150, deadline=None)
@given(word=st.text(st.sampled_from("kitaplermyoğçdnbgözq"), min_size=1, max_size=14))
def test_small_letters_are_read_as_defined(folder: Path, word: str) -> None:
    out = ready(folder, lossless=False)({"text": texts([word])})
    assert id_rows(out["tokens"]) == [slow_reading(word)]


@pytest.mark.parametrize("lossless", [True, False])
def test_contract(tmp_path: Path, lossless: bool) -> None:
    op = ready(tmp_path, lossless=lossless)
    assert_operator_contract(op, {"text": texts(ROWS)})
    size = 20_262 + (256 if lossless else 0)
    assert op.outputs["tokens"] == FieldSpec("uint16", (None,), size)
    assert op.metadata()["vocab_size"] == size
    assert ("forms" in op.outputs) == lossless
    assert isinstance(op, Invertible)


def test_ids_are_frozen(tmp_path: Path) -> None:
    """Published shards hold these ids: other ones need a new version."""
    out = ready(tmp_path)({"text": texts(["Kitaplar göztü", " é"])})
    assert id_rows(out["tokens"]) == [[0, 100, 20000, 2, 2403, 20026], [2, 20457, 20431]]
    assert id_rows(out["forms"]) == [[0, 0, 0, 0, 0, 7], [0, 0, 0]]


def test_a_short_root_goes_before_a_longer_suffix(tmp_path: Path) -> None:
    tables = {"roots": {**TINY["roots"], "l": 90}}
    op = ready(tmp_path, tables, lossless=False)
    assert id_rows(op({"text": texts(["lar"])})["tokens"]) == [[90, 20259, 1]]


def test_names_of_special_tokens_are_text_unless_authors_are_followed(tmp_path: Path) -> None:
    text = {"text": texts(["<pad>"])}
    assert 5 not in id_rows(ready(tmp_path)(text)["tokens"])[0]
    assert id_rows(ready(tmp_path, lossless=False)(text)["tokens"]) == [[5]]


def test_decode_needs_the_forms(tmp_path: Path) -> None:
    op = ready(tmp_path)
    out = op({"text": texts(["ev"])})
    with pytest.raises(ContractError, match=r"decode needs `forms` beside `tokens`"):
        op.decode({"tokens": out["tokens"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", r"kokler.json is no dictionary; expected one JSON object"),
        ('{"ev": -1}', r"kokler.json is no dictionary"),
        ("{", r"kokler.json is no dictionary"),
        ('{"ev": 2400}', r"gives the special tokens \{'<uppercase>': None.*expected"),
    ],
)
def test_a_file_that_is_no_dictionary(tmp_path: Path, content: str, message: str) -> None:
    op = HybridMorphology(HybridMorphologyConfig(dictionaries=hybrid_folder(tmp_path)))
    (tmp_path / "kokler.json").write_text(content)
    with pytest.raises(SetupError, match=message):
        op.setup("cpu")


def test_too_many_forms_of_one_id(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"id 7 has 257 forms; expected at most 256"):
        ready(tmp_path, {"bpe": {f"x{i}": 7 for i in range(257)}})


def test_a_missing_dictionary(tmp_path: Path) -> None:
    op = HybridMorphology(HybridMorphologyConfig(dictionaries=hybrid_folder(tmp_path)))
    (tmp_path / "ekler.json").unlink()
    with pytest.raises(SetupError, match=r"suffixes: .* has no file ekler.json"):
        op.identity()


def test_identity_follows_each_dictionary(tmp_path: Path) -> None:
    first = ready(tmp_path).identity()
    assert set(first) == {"roots", "suffixes", "pieces"}
    changed = ready(tmp_path, {"bpe": {**TINY["bpe"], "q": 20_270}}).identity()
    assert [name for name in first if first[name] != changed[name]] == ["pieces"]


def test_text_that_is_no_text_goes_to_the_quarantine(tmp_path: Path) -> None:
    with pytest.raises(RowErrors) as caught:
        ready(tmp_path)({"text": undecodable([b"ev", b"\xff"])})
    assert list(caught.value.errors) == [1]
    assert id_rows(caught.value.good["tokens"]) == [[2400]]


def test_dictionaries_may_have_other_names(tmp_path: Path) -> None:
    folder = Path(hybrid_folder(tmp_path))
    (folder / "kokler.json").rename(folder / "roots.json")
    op = ready_named(folder)
    assert json.dumps(dict(op.metadata()))


def ready_named(folder: Path) -> HybridMorphology:
    op = HybridMorphology(HybridMorphologyConfig(dictionaries=str(folder), roots="roots.json"))
    op.setup("cpu")
    return op
