"""Backends of text_tokenizer: equal ids, one choice a run, and every way of not being equal."""

import hashlib
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from huggingface_hub.errors import RemoteEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.base import Ragged
from operators.errors import ContractError, DecisionError, SetupError
from operators.testing import assert_operator_contract
from operators.text.backends import choose as choosing
from operators.text.backends import spot_check
from operators.text.backends.base import Backend, Policy, UnsupportedError
from operators.text.backends.choose import choose, first_difference
from operators.text.backends.fast import Fast
from operators.text.backends.reference import HuggingFace
from operators.text.backends.tiktoken import Tiktoken
from operators.text.text_tokenizer import TextTokenizer, TextTokenizerConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "text"
BPE, NFC, KL3M = (str(GOLDEN / f"{n}.json") for n in ("bytelevel_bpe", "split_nfc", "kl3m"))
UNIGRAM = str(GOLDEN / "unigram.json")
MODELS = [str(GOLDEN / name) for name in ("unigram.model", "bpe.model")]
POLICIES = [Policy(), Policy(parse=True), Policy(template=True)]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons of one test are not those of another; setup() changes the environment."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setattr(choosing, "_compared", {})


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def read(path: str, policy: Policy | None = None) -> HuggingFace:
    return HuggingFace(Path(path).read_bytes(), policy or Policy(), path)


def ready(tokenizer: str = BPE, **options: Any) -> TextTokenizer:
    op = TextTokenizer(TextTokenizerConfig(tokenizer=tokenizer, **options))
    op.setup("cpu")
    return op


def rows(tokens: Ragged) -> list[list[int]]:
    return [tokens[i].tolist() for i in range(len(tokens))]


# Characters that normalisation changes, blanks, contractions, added tokens and their parts.
ALPHABET = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from([*" \n\t'sS1a", "e\u0301", "\u0338", "ﬁ", "\xa0", "½", "\x18", "\u1aeb\u0301"]),
    st.sampled_from(
        ["<tool>", "Mühle", "Mu\u0308hle", "<|endoftext|>", "<|end|>", "    ", "<tab>"]
    ),
)
TEXTS = st.lists(st.lists(ALPHABET, max_size=12).map("".join), min_size=1, max_size=4)

ORACLES = {
    (path, policy): (Fast(reference), reference)
    for path in (BPE, NFC, KL3M)
    for policy in POLICIES
    for reference in [read(path, policy)]
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("path", [BPE, NFC, KL3M], ids=["bpe", "nfc", "kl3m"])
@settings(max_examples=150, deadline=None)
@given(texts=TEXTS)
def test_fast_gives_the_ids_of_the_reference(path: str, policy: Policy, texts: list[str]) -> None:
    backend, reference = ORACLES[path, policy]
    assert first_difference(backend, reference, column(texts)) is None


@settings(max_examples=150, deadline=None)
@given(texts=TEXTS)
def test_tiktoken_gives_the_ids_of_the_reference(texts: list[str]) -> None:
    reference = ORACLES[BPE, Policy()][1]
    assert first_difference(Tiktoken(reference), reference, column(texts)) is None


@pytest.mark.parametrize("path", [BPE, NFC, KL3M], ids=["bpe", "nfc", "kl3m"])
def test_auto_is_fast_where_it_is_exact(path: str) -> None:
    choice = choose(read(path), "auto", path)
    assert (choice.backend.name, choice.refused, choice.warning) == ("fast", {}, None)


def test_auto_is_the_reference_where_nothing_else_reads_the_file() -> None:
    op = ready(UNIGRAM)
    assert op.identity()["backend"] == "reference"
    assert "warning" not in op.identity()
    refused = op.metadata()["backends_refused"]
    assert isinstance(refused, dict)
    assert list(refused) == ["fast", "tiktoken"]
    assert "Metaspace" in refused["fast"]


@pytest.mark.parametrize("name", ["fast", "tiktoken", "reference"])
def test_backends_agree_and_hold_the_contract(name: str) -> None:
    texts = column(["", "The old mill <|endoftext|>", "Mühle 🌾\n\n  def grind():", "<tab>a" * 99])
    op = ready(backend=name, add_eos="</s>")
    out = assert_operator_contract(op, {"text": texts})["tokens"]
    assert rows(out) == rows(ready(backend="reference", add_eos="</s>")({"text": texts})["tokens"])
    assert op.identity()["backend"] == op.metadata()["backend"] == name


def corrupt(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Let fast give another last id for every document that holds ``when``."""
    encode = Fast.encode

    def wrong(self: Fast, texts: pa.Array) -> Ragged:
        found = encode(self, texts)
        values = found.values.copy()
        for row, text in enumerate(texts.to_pylist()):
            if when in text:
                values[found.offsets[row + 1] - 1] ^= 1
        return Ragged(values, found.offsets)

    monkeypatch.setattr(Fast, "encode", wrong)


def test_a_difference_makes_the_reference_the_backend_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = {"text": column(["plain text"])}
    right = rows(ready()(text)["tokens"])
    monkeypatch.setattr(choosing, "_compared", {})
    corrupt(monkeypatch, "'ll")
    identity = ready().identity()
    assert identity["backend"] == "reference"
    assert str(identity["library"]).startswith("tokenizers ")
    assert f"fastokens {version('fastokens')} gives other ids: " in str(identity["warning"])
    assert str(identity["warning"]).endswith(f"{identity['library']} is used")
    assert rows(ready()(text)["tokens"]) == right


def test_a_difference_refuses_a_backend_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt(monkeypatch, "'ll")
    with pytest.raises(ContractError, match=r"fastokens .* gives other ids .*set backend: auto"):
        ready(backend="fast")


def test_a_difference_in_first_documents_asks_for_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corrupt(monkeypatch, "flour mill")
    op = ready()
    assert op.identity()["backend"] == "fast"
    op.look_at_first({"text": column(["the wheel"])})
    with pytest.raises(DecisionError, match=r"in 'a flour mill'; set backend: reference") as caught:
        op.look_at_first({"text": column(["a flour mill"])})
    assert (caught.value.field, caught.value.value) == ("backend", "reference")
    assert "flour" not in caught.value.warning  # it is the same wherever the difference is
    reference = ready(backend="reference")
    reference.look_at_first({"text": column(["a flour mill"])})


def test_long_documents_are_compared_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt(monkeypatch, "flour mill")
    op = ready()
    monkeypatch.setattr(spot_check, "EVERY_BYTES", 16)
    with pytest.raises(DecisionError, match="gives other ids"):
        op({"text": column(["the wheel", "a flour mill, longer than 16 bytes"])})


def test_documents_are_drawn_by_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """About one in so much text, the same ones in any company."""
    reference = read(BPE)
    check = spot_check.SpotCheck(Fast(reference), reference, BPE)
    monkeypatch.setattr(spot_check, "EVERY_BYTES", 1 << 10)
    letters = np.random.default_rng(0).integers(97, 123, 250_000, np.uint8).tobytes().decode()
    texts = ["", *(letters[50 * i : 50 * i + i % 50] for i in range(5_000)), ""]
    drawn = check.drawn(column(texts)).to_pylist()
    expected = sum(map(len, texts)) / (1 << 10)
    assert 0.5 * expected < len(drawn) < 2 * expected
    alone = [text for text in texts if check.drawn(column(["y", text]).slice(1)).to_pylist()]
    assert alone == drawn


def test_spot_check_passes_over_what_is_no_utf8() -> None:
    data = pa.array([b"\xff\xfe"], pa.large_binary())
    broken = pa.Array.from_buffers(pa.large_string(), 1, data.buffers())
    reference = read(BPE)
    spot_check.SpotCheck(Fast(reference), reference, BPE).compare(broken)


@pytest.mark.parametrize(("name", "package"), [("fast", "fastokens"), ("tiktoken", "tiktoken")])
def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SetupError, match=rf"backend: {name}: .*pip install 'tokenmill\[text\]'"):
        ready(backend=name)


def test_auto_without_fastokens_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastokens", None)
    identity = ready().identity()
    assert identity["backend"] == "reference"  # tiktoken cannot be proved equal here
    assert "backend fast is not installed (pip install 'tokenmill[text]')" in str(
        identity["warning"]
    )


def test_auto_takes_tiktoken_where_it_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair that makes a token is listed: <letter><letter> alone."""
    content = json.loads(Path(BPE).read_text())
    letters = [t for t in content["model"]["vocab"] if len(t) == 1]
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    vocab = {**{t: i for t, i in special.items() if t != "<tab>"}}
    for letter in letters:
        vocab[letter] = len(vocab)
    merges = [["a", "b"], ["c", "d"], ["ab", "cd"]]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    content["model"] |= {"vocab": vocab, "merges": merges}
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<tab>"]
    data = json.dumps(content).encode()
    monkeypatch.setitem(sys.modules, "fastokens", None)
    choice = choose(HuggingFace(data, Policy(), "x"), "auto", "x")
    assert choice.backend.name == "tiktoken"
    assert rows(choice.backend.encode(column(["abcd abc"]))) == [
        [vocab["abcd"], vocab["Ġ"], vocab["ab"], vocab["c"]]
    ]


def changed(path: str, **changes: Any) -> HuggingFace:
    content = json.loads(Path(path).read_text())
    for place, value in changes.items():
        *outer, last = place.split("__")
        target = content
        for name in outer:
            target = target[int(name) if isinstance(target, list) else name]
        target[last] = value
    return HuggingFace(json.dumps(content).encode(), Policy(), path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"normalizer": {"type": "NFC"}}, "no normalizer NFC"),
        ({"pre_tokenizer__add_prefix_space": True}, "not ByteLevel without a prefix space"),
        ({"pre_tokenizer": None}, "not ByteLevel without a prefix space"),
        ({"model__byte_fallback": True}, "not plain BPE"),
        ({"added_tokens__3__lstrip": True}, "'<tab>' strips or wants a word"),
    ],
)
def test_tiktoken_says_what_it_cannot_express(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        Tiktoken(changed(BPE, **changes))


def test_tiktoken_adds_no_template() -> None:
    with pytest.raises(ContractError, match=r"cannot express .*it adds no template"):
        ready(backend="tiktoken", add_special_tokens=True)


def test_tiktoken_leaves_to_the_reference_what_its_pattern_does_not_cover() -> None:
    split = {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    parts = [{**split, "invert": False}, {**byte_level, "trim_offsets": True}]
    reference = changed(BPE, pre_tokenizer={"type": "Sequence", "pretokenizers": parts})
    texts = column(["mill", "mill 12 Wheels", ""])
    assert first_difference(Tiktoken(reference), reference, texts) is None


def test_tiktoken_leaves_half_a_million_blanks_to_the_reference() -> None:
    reference = read(BPE)
    texts = column([" " * 1_000_000 + "x"])
    assert first_difference(Tiktoken(reference), reference, texts) is None


def test_ids_do_not_depend_on_the_document_before() -> None:
    """Versions before 0.3.5 of the fast library kept regex matches of a shared beginning."""
    reference = read(NFC)
    backend = Fast(reference)
    start = "the mill " * 600
    runs = [run * 700 for run in (" ", "\n", "a", " \n")]
    ends = ["x and more of it" * 100, "", " ", "\n", "y", "  z"]
    texts = [start + run + end for run in runs for end in ends]
    for before in texts[:3]:
        for text in texts:
            backend.encode(column([before]))
            assert first_difference(backend, reference, column([text])) is None


RUNS = ["a", " ", "\n", "1", "!", "ab", "é", "日", " a", "e\u0301", "🌾", "'s"]


@pytest.mark.parametrize(
    ("build", "path"),
    [(Fast, BPE), (Fast, NFC), (Tiktoken, BPE)],
    ids=["fast-bpe", "fast-nfc", "tiktoken-bpe"],
)
def test_one_repeated_character(build: Callable[[HuggingFace], Backend], path: str) -> None:
    reference = read(path)
    backend = build(reference)
    texts = column([run * (200_000 // len(run)) for run in RUNS])
    assert first_difference(backend, reference, texts) is None


def test_every_plane() -> None:
    reference = read(NFC)
    points = [p for p in range(0, 0x110000, 7) if not 0xD800 <= p < 0xE000]
    texts = ["".join(map(chr, points[i : i + 5_000])) for i in range(0, len(points), 5_000)]
    assert first_difference(Fast(reference), reference, column(texts)) is None


def test_empty_documents_at_the_ends_are_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot_check, "EVERY_BYTES", 1)
    reference = read(BPE)
    check = spot_check.SpotCheck(Fast(reference), reference, BPE)
    assert check.drawn(column(["", "a", ""])).to_pylist() == ["a"]


def test_large_document_beside_empty_ones() -> None:
    reference = read(BPE)
    texts = column(["", PIECE * 20, ""])
    assert first_difference(Fast(reference), reference, texts) is None


PIECE = f" mill {Path(choosing.__file__).read_text()} {'Mühle 日本語 🌾 ' * 20} {' ' * 3_000} wheel"
"""Begins with a blank and a letter, ends with a letter: between two of them words end anyway."""


@pytest.mark.slow
def test_document_of_100_mb() -> None:
    """The reference would take 10 GB for it whole."""
    reference, op = read(BPE), ready()
    once = reference.encode(column([PIECE])).values
    assert np.array_equal(reference.encode(column([PIECE * 3])).values, np.tile(once, 3))
    count = 100_000_000 // len(PIECE.encode()) + 1
    tokens = op({"text": column(["", PIECE * count])})["tokens"]
    assert tokens.lengths.tolist() == [0, len(once) * count]
    assert (tokens.values.reshape(count, -1) == once).all()


@pytest.mark.slow
@pytest.mark.parametrize("run", ["a", " ", "日"])
def test_100_mb_of_one_character(run: str) -> None:
    """Cut where it repeats: a prefix's ids are those of the whole but for its last few."""
    reference, op = read(BPE), ready()
    tokens = op({"text": column([run * (100_000_000 // len(run.encode()))])})["tokens"]
    start = reference.encode(column([run * (3_000_000 // len(run.encode()))]))
    np.testing.assert_array_equal(tokens.values[: len(start.values) - 64], start.values[:-64])
    assert op.decode({"tokens": tokens})["text"][0].as_py() == run * (
        100_000_000 // len(run.encode())
    )


@pytest.mark.parametrize("path", MODELS, ids=["unigram", "bpe"])
def test_sentencepiece_model(path: str) -> None:
    from sentencepiece import SentencePieceProcessor

    texts = ["", "The old mill stands", "ﬁne  blanks ", "<tab>a</s> <s>", "日本 🌾", "x" * 3_000]
    op = ready(path, add_bos="<s>", add_eos="</s>")
    out = assert_operator_contract(op, {"text": column(texts)}, rows_alone=6)["tokens"]
    processor = SentencePieceProcessor(model_file=path)
    assert rows(out) == [[1, *processor.EncodeAsIds(text), 2] for text in texts]
    assert op.metadata() == {
        "vocab_size": 100,
        "special_ids": {"<s>": 1, "</s>": 2},
        "bos_id": 1,
        "eos_id": 2,
        "backend": "sentencepiece",
        "backends_refused": {},
    }
    assert op.identity()["tokenizer_sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    texts_back = op.decode(out := {"tokens": out})["text"].to_pylist()
    assert texts_back[1] == "The old mill stands"
    assert len(out) == 1


def test_sentencepiece_ids_are_frozen() -> None:
    """The committed model gives these ids with every version of the library."""
    out = ready(MODELS[0])({"text": column(["The wheel", ""])})["tokens"]
    assert rows(out) == [[4, 86, 72, 40, 6, 9], []]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"special_tokens_in_text": "parse"}, "special_tokens_in_text: parse means nothing"),
        ({"add_special_tokens": True}, "add_special_tokens means nothing"),
        ({"backend": "fast"}, "backend: fast does not read the SentencePiece model"),
        ({"add_eos": "<eot>"}, "add_eos='<eot>' is no token"),
    ],
)
def test_what_a_sentencepiece_model_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        ready(MODELS[0], **options)


def test_sentencepiece_does_not_read_a_json() -> None:
    with pytest.raises(ContractError, match=r"give a file that ends in \.model"):
        ready(backend="sentencepiece")


def test_other_files_are_no_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(b"no model")
    with pytest.raises(SetupError, match=r"a\.model': not a SentencePiece model"):
        ready(str(tmp_path / "a.model"))
    with pytest.raises(SetupError, match="no such file, expected a SentencePiece model"):
        ready(str(tmp_path / "b.model"))


def test_sentencepiece_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(SetupError, match=r"sentencepiece is not installed; pip"):
        ready(MODELS[0])


def test_repository_with_a_sentencepiece_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.model").write_bytes(Path(MODELS[0]).read_bytes())

    def download(repository: str, name: str, revision: str) -> str:
        if not (snapshot / name).exists():
            response: Any = SimpleNamespace(headers={}, request=None)
            raise RemoteEntryNotFoundError("no", response=response)
        return str(snapshot / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    op = ready("mill/grain", revision=commit)
    assert (op.identity()["backend"], op.identity()["commit"]) == ("sentencepiece", commit)


def test_kl3m_tokenizers_load_and_run() -> None:
    """The layout of kl3m-004-char-4k-cased: NFKC, left padding, special tokens of chat."""
    op = ready(KL3M, add_bos="<|start|>", add_eos="<|end|>")
    texts = ["The mill, ½ ﬁne\xa0day", "a <|mask|> and <|user|> in the text", "", "tab\x18and\x1a"]
    out = assert_operator_contract(op, {"text": column(texts)})
    assert op.identity()["backend"] == "fast"
    plain = read(KL3M).encode(column(texts))
    assert rows(out["tokens"]) == [[0, *ids, 1] for ids in rows(plain)]
    assert op.decode(out)["text"].to_pylist() == [
        "The mill, 1\u20442 fine day",
        "a <|mask|> and <|user|> in the text",
        "",
        "taband",
    ]
    assert op.metadata()["special_ids"] == {
        **{"<|start|>": 0, "<|end|>": 1, "<|pad|>": 2, "<|unk|>": 3, "<|sep|>": 4, "<|cls|>": 5},
        **{"<|mask|>": 6, "<|system|>": 7, "</|system|>": 8, "<|user|>": 9, "</|user|>": 10},
    }
