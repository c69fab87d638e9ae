"""The trainers bpe and superbpe learn what their authors' code learns."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.text.algorithms.bpe_training import learn_merges
from operators.text.algorithms.byte_level import BYTES, seen_bytes, spelling
from operators.text.algorithms.pretokens import count_pieces, splitter
from operators.text.bpe import BPE, BPEConfig
from operators.text.superbpe import SuperBPE, SuperBPEConfig
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
