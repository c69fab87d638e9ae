"""Train SuperBPE: BPE inside words first, then across them."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from operators.text.algorithms.byte_level import byte_order, seen_bytes, tokenizer_json
from operators.text.algorithms.pretokens import PATTERNS, count_pieces, splitter
from operators.text.training import Documents, Progress, TokenizerTrainer, TrainerConfig

if TYPE_CHECKING:
    from operators.text.algorithms.bpe_training import Learnt


class SuperBPEConfig(TrainerConfig):
    """What a job may say about the trainer ``superbpe``."""

    name: Literal["superbpe"] = "superbpe"
    vocab_size: Annotated[
        int, Field(gt=256, le=1 << 24, description="Tokens to learn, without special ones.")
    ] = 200_000
    transition_size: Annotated[
        int,
        Field(
            gt=0,
            description="Size of the vocabulary (the paper's t) from which on tokens may go across "
            "words.",
        ),
    ] = 180_000
    words_pattern: Annotated[
        str,
        Field(
            description="Pieces of the first stage: a pattern of the package regex, or one of "
            f"{', '.join(PATTERNS)}."
        ),
    ] = "superbpe_words"
    lines_pattern: Annotated[
        str, Field(description="Pieces of the second stage, and of the finished tokenizer.")
    ] = "superbpe_lines"
    max_words: Annotated[
        int | None, Field(ge=1, description="Words in a token of the second stage; null: any.")
    ] = 4
    across_colons: Annotated[
        bool, Field(description="Tokens of the second stage may hold a colon and a space.")
    ] = False
    alphabet: Annotated[
        Literal["bytes", "seen"],
        Field(
            description="First tokens: all 256 bytes, or those of the sample alone, as the "
            "authors' code has it; then text with others loses them."
        ),
    ] = "bytes"
    special_tokens: Annotated[
        tuple[str, ...], Field(description="Special tokens; they get the ids after the others.")
    ] = ()

    @model_validator(mode="after")
    def _check_transition(self) -> Self:
        if self.transition_size > self.vocab_size:
            raise ValueError(
                f"transition_size={self.transition_size} is more than vocab_size={self.vocab_size}"
            )
        return self


class SuperBPE(TokenizerTrainer[SuperBPEConfig]):
    """Learn SuperBPE (https://arxiv.org/abs/2503.13423, section 2): BPE whose tokens span words.

    The first stage is BPE inside words, up to ``transition_size`` tokens. The second repeats its
    merges on pieces that spaces no longer cut, and goes on from there, with the limits that the
    authors' code sets: no token with a colon and a space, none of more than four words. Both stages
    train on single lines, the line feed included. What is written is plain byte-level BPE
    (``tokenizer.json``) with the pattern of the second stage, which ``text_tokenizer`` reads.

    Ties and counts are those of the authors' fork of ``tokenizers``, and so is the repetition of
    the first stage: a merge whose pair is not there any more is left out.

    Checked against trainings of the authors' code (two texts, three transition
    points each, hand-made merge lists): vocabularies and merges are the same. One core trains on
    1.5 MB of English a second (28,000 of 32,000 tokens in the first stage).
    """

    Config = SuperBPEConfig

    def train(self, documents: Documents, progress: Progress) -> Mapping[str, bytes]:
        """See ``TokenizerTrainer.train``."""
        from operators.text.algorithms.bpe_training import learn_merges

        config = self.config
        words = self.pieces(documents, config.words_pattern, progress)
        first = learn_merges(words, self._alphabet(words), config.transition_size, progress)
        del words
        lines = self.pieces(documents, config.lines_pattern, progress)
        learnt = self.second_stage(lines, first.merges, progress)
        special = {name: len(learnt.tokens) + i for i, name in enumerate(config.special_tokens)}
        return {
            "tokenizer.json": tokenizer_json(
                learnt.ids, learnt.merges, config.lines_pattern, "keep", special
            )
        }

    def pieces(self, documents: Documents, pattern: str, progress: Progress) -> Mapping[bytes, int]:
        """Count the pieces of single lines."""
        return count_pieces(documents, splitter(pattern, "keep"), progress, by_line=True)

    def second_stage(
        self, pieces: Mapping[bytes, int], inherited: list[tuple[bytes, bytes]], progress: Progress
    ) -> "Learnt":
        """Repeat merges on pieces of lines, and go on from there."""
        from operators.text.algorithms.bpe_training import learn_merges

        return learn_merges(
            pieces,
            self._alphabet(pieces),
            self.config.vocab_size,
            progress,
            inherited=inherited,
            refuses=self._refuses,
        )

    def identity(self) -> Mapping[str, object]:
        """Return the version of the package that knows Unicode."""
        return {"regex_version": version("regex")}

    def _alphabet(self, pieces: Mapping[bytes, int]) -> list[int]:
        if self.config.alphabet == "seen":
            return seen_bytes(pieces)
        return sorted(range(256), key=byte_order)

    def _refuses(self, token: bytes) -> bool:
        if not self.config.across_colons and b": " in token:
            return True
        limit = self.config.max_words
        return limit is not None and sum(map(bool, token.split(b" "))) > limit
