"""text_tokenizer: ids equal to the library's own, special tokens in text, and every broken file."""

import hashlib
import json
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer

from operators.base import FieldSpec, Invertible, Ragged
from operators.errors import ContractError, RowErrors, SetupError
from operators.testing import assert_operator_contract
from operators.text.text_tokenizer import TextTokenizer, TextTokenizerConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "text"
BPE, UNIGRAM = str(GOLDEN / "bytelevel_bpe.json"), str(GOLDEN / "unigram.json")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DOCUMENTS = [
    "The old mill stands where the river bends, and its wheel has not turned for years.",
    "",
    "Mühle 🌾\n\n  def grind():",
    "a literal <|endoftext|> here, and <s> too",
    "<tab>between<tab>",
]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")  # restored after setup() changed it


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def ready(tokenizer: str = BPE, **options: Any) -> TextTokenizer:
    op = TextTokenizer(TextTokenizerConfig(tokenizer=tokenizer, **options))
    op.setup("cpu")
    return op


def rows(tokens: Ragged) -> list[list[int]]:
    return [tokens[i].tolist() for i in range(len(tokens))]


def reference(*, escape: bool) -> Tokenizer:
    tokenizer = Tokenizer.from_file(BPE)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = escape
    return tokenizer


def variant(folder: Path, source: str = BPE, **model: Any) -> str:
    content = json.loads(Path(source).read_text())
    content["model"].update(model)
    path = folder / "variant.json"
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("in_text", ["escape", "parse"])
@pytest.mark.parametrize("template", [False, True])
def test_ids_are_those_of_the_library_document_by_document(in_text: str, template: bool) -> None:
    op = ready(special_tokens_in_text=in_text, add_special_tokens=template)
    out = assert_operator_contract(op, {"text": column(DOCUMENTS)}, rows_alone=5)["tokens"]
    tokenizer = reference(escape=in_text == "escape")
    assert rows(out) == [tokenizer.encode(d, add_special_tokens=template).ids for d in DOCUMENTS]
    assert max(out.lengths) > 8, "the file's truncation is still on"
    assert op.outputs == {"tokens": FieldSpec("uint16", (None,), 400)}


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=5), before=st.integers(0, 2))
def test_any_slice_of_text_comes_back_from_a_byte_level_tokenizer(
    texts: list[str], before: int
) -> None:
    op = ready(add_bos="<s>", add_eos="<|endoftext|>")
    sliced = column(["x"] * before + texts).slice(before)
    out = op({"text": sliced})
    assert op.decode(out)["text"].to_pylist() == texts
    tokenizer = reference(escape=True)
    plain = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert rows(out["tokens"]) == [[0, *ids, 2] for ids in plain]


def test_ids_are_frozen() -> None:
    """The committed tokenizer.json gives these ids with every version of the library."""
    out = ready(add_eos="<|endoftext|>")({"text": column(["The wheel <|endoftext|>", ""])})
    assert rows(out["tokens"]) == [
        [315, 305, 324, 223, 30, 94, 71, 265, 81, 330, 90, 86, 94, 32, 2],
        [2],
    ]


def test_special_token_in_text_is_plain_text_by_default() -> None:
    text = {"text": column(["a<|endoftext|>b"])}
    assert 2 not in rows(ready()(text)["tokens"])[0]
    assert 2 in rows(ready(special_tokens_in_text="parse")(text)["tokens"])[0]


@pytest.mark.parametrize("in_text", ["escape", "parse"])
def test_special_token_in_text_survives_decode(in_text: str) -> None:
    op = ready(special_tokens_in_text=in_text, add_bos="<s>", add_eos="</s>")
    assert isinstance(op, Invertible)
    texts = ["a<|endoftext|>b", "<s>", "</s></s>", ""]
    assert op.decode(op({"text": column(texts)}))["text"].to_pylist() == texts


def test_added_token_that_is_not_special_is_matched_in_text() -> None:
    assert 399 in rows(ready()({"text": column(["a<tab>b"])})["tokens"])[0]


def test_decode_needs_no_setup() -> None:
    tokens = ready()({"text": column(DOCUMENTS)})
    fresh = TextTokenizer(TextTokenizerConfig(tokenizer=BPE))
    assert fresh.decode(tokens)["text"].to_pylist() == DOCUMENTS


def test_special_piece_of_the_model_is_an_error_of_its_row() -> None:
    """A Unigram model holds </s> as a piece and picks it, whatever the library is told."""
    op = ready(UNIGRAM, add_special_tokens=True, add_eos="</s>")
    with pytest.raises(RowErrors) as caught:
        op({"text": column(["mill", "a </s> b", "wheel"])})
    assert list(caught.value.errors) == [1]
    assert "the text holds one of ['</s>']" in str(caught.value.errors[1])
    assert rows(caught.value.good["tokens"]) == [[2, 1, 1], [3, 1, 1]]


def test_unknown_characters_are_no_error() -> None:
    out = ready(UNIGRAM)({"text": column(["mill 🌾"])})["tokens"]
    assert rows(out) == [[2, 4, 0]]


def test_no_rows_give_no_rows() -> None:
    out = ready(add_eos="</s>")({"text": column([])})["tokens"]
    assert out.offsets.tolist() == [0]


def test_threads_get_what_one_thread_gets() -> None:
    op = ready()
    batches = [column([document * 20] * 8) for document in DOCUMENTS] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda texts: rows(op({"text": texts})["tokens"]), batches))
    assert found == [rows(op({"text": texts})["tokens"]) for texts in batches]


def test_setup_keeps_one_call_on_one_core() -> None:
    ready()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_pickled_operator_still_escapes() -> None:
    text = {"text": column(DOCUMENTS)}
    copy = pickle.loads(pickle.dumps(ready()))
    copy.setup("cpu")
    assert rows(copy(text)["tokens"]) == rows(ready()(text)["tokens"])


def test_bpe_dropout_is_switched_off(tmp_path: Path) -> None:
    op = ready(variant(tmp_path, dropout=0.5))
    text = {"text": column(DOCUMENTS)}
    assert rows(op(text)["tokens"]) == rows(ready()(text)["tokens"])


def test_identity_holds_the_digest_of_the_file() -> None:
    assert TextTokenizer(TextTokenizerConfig(tokenizer=BPE)).identity() == {
        "tokenizer_sha256": hashlib.sha256(Path(BPE).read_bytes()).hexdigest(),
        "backend": "fast",
        "library": f"fastokens {version('fastokens')}",
        "reference": f"tokenizers {version('tokenizers')}",
    }


def test_metadata_names_the_special_ids() -> None:
    op = TextTokenizer(TextTokenizerConfig(tokenizer=BPE, add_eos="<|endoftext|>"))
    assert op.metadata() == {
        "vocab_size": 400,
        "special_ids": {"<s>": 0, "</s>": 1, "<|endoftext|>": 2},
        "bos_id": None,
        "eos_id": 2,
        "backend": "fast",
        "backends_refused": {},
    }


def test_null_text_is_a_broken_contract() -> None:
    with pytest.raises(ContractError, match="text_tokenizer: 1 of 2 texts are null"):
        ready()({"text": pa.array(["a", None], pa.large_string())})


def test_text_that_is_no_utf8_is_an_error_of_its_row() -> None:
    data = pa.array([b"good", b"b\xffd", b"fine"], pa.large_binary())
    texts = pa.Array.from_buffers(pa.large_string(), 3, data.buffers())
    op = ready()
    with pytest.raises(RowErrors) as caught:
        op({"text": texts})
    assert list(caught.value.errors) == [1]
    assert "the text is no UTF-8: 'utf-8' codec can't decode byte 0xff" in str(
        caught.value.errors[1]
    )
    assert op.decode(caught.value.good)["text"].to_pylist() == ["good", "fine"]


def test_unknown_end_token_names_those_there_are() -> None:
    op = TextTokenizer(TextTokenizerConfig(tokenizer=BPE, add_eos="<eot>"))
    with pytest.raises(ContractError, match=r"add_eos='<eot>' is no token .*'<\|endoftext\|>'"):
        op.setup("cpu")


def test_missing_file_is_named(tmp_path: Path) -> None:
    op = TextTokenizer(TextTokenizerConfig(tokenizer=str(tmp_path / "none.json")))
    with pytest.raises(SetupError, match=r"none\.json': no such file, expected a tokenizer\.json"):
        op.setup("cpu")


def test_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    op = TextTokenizer(TextTokenizerConfig(tokenizer=str(tmp_path / "folder.json")))
    with pytest.raises(SetupError, match="give the path of the file itself"):
        op.setup("cpu")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"a": 1}', b"\xff\xfe", b'{"the": 0, "a": 1}'])
def test_other_files_are_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vocab.json"
    path.write_bytes(content)
    op = TextTokenizer(TextTokenizerConfig(tokenizer=str(path)))
    with pytest.raises(SetupError, match=r"vocab\.json': not a tokenizer\.json"):
        _ = op.outputs


def test_revision_of_a_file_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"revision='main' belongs to a hub id"):
        TextTokenizerConfig(tokenizer="tok.json", revision="main")


@pytest.mark.parametrize("name", ["", "./folder", "a/b/c", "/abs/folder", "owner/na me"])
def test_neither_path_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"neither a path that ends in \.json or \.model"):
        TextTokenizerConfig(tokenizer=name)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one repository, and no network."""
    from huggingface_hub import constants

    snapshot = tmp_path / "models--mill--grain" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_bytes(Path(BPE).read_bytes())
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.usefixtures("hub_cache")
def test_hub_tokenizer_is_pinned_to_its_commit() -> None:
    identity = TextTokenizer(TextTokenizerConfig(tokenizer="mill/grain")).identity()
    assert identity["commit"] == COMMIT
    assert identity["warning"] == (f"mill/grain: revision 'main' may move; set revision: {COMMIT}")
    text = {"text": column(DOCUMENTS)}
    assert rows(ready("mill/grain")(text)["tokens"]) == rows(ready()(text)["tokens"])


@pytest.mark.usefixtures("hub_cache")
def test_pinned_hub_tokenizer_needs_no_warning() -> None:
    identity = TextTokenizer(
        TextTokenizerConfig(tokenizer="mill/grain", revision=COMMIT)
    ).identity()
    assert identity["commit"] == COMMIT
    assert "warning" not in identity


@pytest.mark.usefixtures("hub_cache")
def test_offline_and_not_cached_says_how_to_get_it() -> None:
    op = TextTokenizer(TextTokenizerConfig(tokenizer="mill/flour"))
    with pytest.raises(SetupError, match=r"hf download mill/flour tokenizer\.json --revision main"):
        op.setup("cpu")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "the repository is gated; accept its terms"),
        ("RepositoryNotFoundError", "no such repository; check the name"),
        ("RevisionNotFoundError", "no revision 'v9'; give a branch"),
        (
            "RemoteEntryNotFoundError",
            r"the repository has no tokenizer\.json and no tokenizer\.model",
        ),
    ],
)
def test_answers_of_the_hub_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: str, message: str
) -> None:
    import huggingface_hub

    def refuse(*args: object, **options: object) -> str:
        response = SimpleNamespace(headers={}, request=None)
        raise getattr(huggingface_hub.errors, error)("no", response=response)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    op = TextTokenizer(TextTokenizerConfig(tokenizer="mill/grain", revision="v9"))
    with pytest.raises(SetupError, match=f"tokenizer 'mill/grain': {message}"):
        op.setup("cpu")


@pytest.mark.parametrize(
    ("package", "tokenizer"), [("tokenizers", BPE), ("huggingface_hub", "mill/grain")]
)
def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, package: str, tokenizer: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    op = TextTokenizer(TextTokenizerConfig(tokenizer=tokenizer))
    with pytest.raises(
        SetupError, match=rf"{package} (is not installed|cannot be imported .*); pip"
    ):
        op.setup("cpu")


def test_values_are_of_the_smallest_type_that_holds_the_vocabulary() -> None:
    assert ready(UNIGRAM)({"text": column(["mill"])})["tokens"].values.dtype == np.uint8
