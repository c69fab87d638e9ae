"""The trainers bpe and superbpe learn what their authors' code learns."""

import json
from base64 import b64encode
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.text.algorithms.bpe_training import learn_merges
from operators.text.algorithms.byte_level import BYTES, seen_bytes, spelling, tokenizer_json
from operators.text.algorithms.pretokens import count_pieces, splitter
from operators.text.bpe import BPE, BPEConfig, with_fillers
from operators.text.superbpe import SuperBPE, SuperBPEConfig
from operators.text.text_tokenizer import TextTokenizer, TextTokenizerConfig
from tests.text_documents import documents, quiet

GOLDEN = Path(__file__).parents[1] / "golden" / "text"
BPEASY = json.loads((GOLDEN / "bpeasy" / "train.json").read_text())
SUPERBPE = json.loads((GOLDEN / "superbpe" / "train.json").read_text())


def of_spelling(text: str) -> bytes:
    return bytes(BYTES[ord(character)] for character in text)


@pytest.mark.parametrize("run", BPEASY["runs"], ids=lambda run: str(run["regex"]))
def test_bpeasy(run: dict[str, Any]) -> None:
    config = BPEConfig(
        vocab_size=run["vocab_size"],
        pattern=BPEASY["regexes"][run["regex"]],
        unmatched="drop",
        max_token_length=run["max_token_length"],
    )
    files = BPE(config).train(documents(BPEASY["texts"]), quiet)
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    learned = [of_spelling(token).hex() for token, i in vocabulary.items() if i >= 256]
    assert learned == run["learned_hex"]


@pytest.mark.parametrize("case", SUPERBPE["inheritance"], ids=lambda case: str(case["text"][:12]))
def test_second_stage_of_superbpe(case: dict[str, Any]) -> None:
    config = SuperBPEConfig(vocab_size=257, transition_size=1, alphabet="seen")
    trainer = SuperBPE(config.model_copy(update={"vocab_size": case["vocab_size"]}))
    pieces = trainer.pieces(documents([case["text"]]), case["regex"], quiet)
    pairs = [merge.split(" ") for merge in case["inherit"]]
    inherited = [(of_spelling(left), of_spelling(right)) for left, right in pairs]
    learnt = trainer.second_stage(pieces, inherited, quiet)
    assert [spelling(token) for token in learnt.tokens] == case["vocab"]
    merges = [f"{spelling(left)} {spelling(right)}" for left, right in learnt.merges]
    assert merges == case["merges"]


def merges_of(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the merges of tokens in the order of their ids, by doing the earlier ones on each."""
    ranks = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token in tokens[256:]:
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = {
                left + right: i for i, (left, right) in reversed([*enumerate(pairwise(parts))])
            }
            first = pairs[min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))]
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        merges.append((parts[0], parts[1]))
    return merges


def ids_and_texts(
    path: Path, data: bytes, texts: list[str], **options: Any
) -> tuple[list[list[int]], list[str]]:
    path.write_bytes(data)
    op = TextTokenizer(TextTokenizerConfig(tokenizer=str(path), backend="reference", **options))
    op.setup("cpu")
    out = op({"text": pa.array(texts, pa.large_string())})
    ids = [out["tokens"][row].tolist() for row in range(len(texts))]
    return ids, op.decode(out)["text"].to_pylist()


@pytest.mark.parametrize(
    "run", BPEASY["encodings"], ids=lambda run: f"tokens-below-{run['max_token_length']}"
)
def test_ids_of_bpeasy(run: dict[str, Any], tmp_path: Path) -> None:
    tokens = [*(bytes([i]) for i in range(256)), *map(bytes.fromhex, run["learned_hex"])]
    merges = merges_of(tokens)
    recorded = [tuple(map(of_spelling, merge.split(" "))) for merge in run["hf_merges"]]
    assert merges[: len(recorded)] == recorded
    special = with_fillers(["<s>", "</s>"], len(tokens), 8)
    lines = [f"{b64encode(name.encode()).decode()} {i}" for name, i in special.items()]
    tail = [
        line for line in run["tiktoken_tail"] if line and int(line.split(" ")[1]) >= len(tokens)
    ]
    assert lines[-len(tail) :] == tail
    data = tokenizer_json(
        {token: i for i, token in enumerate(tokens)},
        merges,
        BPEASY["regexes"][run["regex"]],
        "drop",
        special,
    )
    texts = [encoding["text"] for encoding in run["encodings"]]
    found = ids_and_texts(tmp_path / "tokenizer.json", data, texts, special_tokens_in_text="parse")
    assert found == ([encoding["ids"] for encoding in run["encodings"]], texts)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("case", SUPERBPE["cases"], ids=lambda case: str(case["name"]))
def test_ids_of_superbpe(case: dict[str, Any], stage: str, tmp_path: Path) -> None:
    model = case[stage]
    pairs = [merge.split(" ") for merge in model["merges"]]
    data = tokenizer_json(
        {of_spelling(token): i for i, token in enumerate(model["vocab"])},
        [(of_spelling(left), of_spelling(right)) for left, right in pairs],
        model["regex"],
        "keep",
        {},
    )
    texts = [encoding["text"] for encoding in case["encodings"]]
    ids, decoded = ids_and_texts(tmp_path / "tokenizer.json", data, texts)
    assert ids == [encoding[stage] for encoding in case["encodings"]]
    if stage == "stage2":  # bytes that the training did not see are lost
        assert decoded == [encoding["decode2"] for encoding in case["encodings"]]


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(
        st.text("ab", min_size=1, max_size=12) | st.text("abcé", max_size=9), max_size=9
    ),
    vocab_size=st.integers(5, 40),
)
def test_merges_are_those_of_tokenizers(words: list[str], vocab_size: int) -> None:
    """Runs of one letter and few letters: overlaps, and spellings that arise twice."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    reference = tokenizers.Tokenizer(models.BPE())
    splits = pre_tokenizers.WhitespaceSplit()
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=0, show_progress=False)
    text = " ".join(words)
    reference.train_from_iterator([text], trainer)
    found = json.loads(reference.to_str())["model"]
    pieces = count_pieces(documents([text]), splitter(r"[^ ]+", "drop"), quiet)
    learnt = learn_merges(pieces, seen_bytes(pieces), vocab_size, quiet)
    assert [spelling(token) for token in learnt.tokens] == list(found["vocab"])
    assert [[spelling(a), spelling(b)] for a, b in learnt.merges] == found["merges"]
