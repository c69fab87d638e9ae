"""Train a Unigram tokenizer; ``text_tokenizer`` tokenizes with the result."""

import io
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from operators.errors import ContractError
from operators.extras import import_extra
from operators.text.training import Documents, Progress, TokenizerTrainer, TrainerConfig

UNKNOWN, UNKNOWN_ID = "<unk>", 0
SPACE_MARK = "\u2581"
MAX_LINE_BYTES = 1 << 30


class UnigramConfig(TrainerConfig):
    """What a job may say about the trainer ``unigram``."""

    name: Literal["unigram"] = "unigram"
    vocab_size: Annotated[
        int,
        Field(
            gt=1,
            le=1 << 24,
            description="Tokens in the end, <unk>, the bytes and special tokens among them.",
        ),
    ] = 32_000
    character_coverage: Annotated[
        float,
        Field(gt=0, le=1, description="Share of the sample's characters that are tokens."),
    ] = 0.9995
    byte_fallback: Annotated[
        bool,
        Field(description="Have a token for each byte, which spell all other characters."),
    ] = True
    max_piece_characters: Annotated[
        int, Field(ge=1, le=512, description="Characters of the longest token.")
    ] = 16
    split_digits: Annotated[bool, Field(description="Make every digit a token of its own.")] = False
    split_scripts: Annotated[
        bool, Field(description="Keep letters of different scripts in different tokens.")
    ] = True
    prefix_space: Annotated[bool, Field(description="Put a space before every document.")] = True
    seed_size: Annotated[int, Field(gt=0, description="Candidates that training begins with.")] = (
        1_000_000
    )
    shrinking_factor: Annotated[
        float, Field(gt=0, lt=1, description="Share of the candidates that each step keeps.")
    ] = 0.75
    num_sub_iterations: Annotated[
        int, Field(gt=0, description="Rounds of expectation and maximisation in each step.")
    ] = 2
    special_tokens: Annotated[
        tuple[str, ...], Field(description="Special tokens; their ids follow that of <unk>.")
    ] = ()


class Unigram(TokenizerTrainer[UnigramConfig]):
    """Learn a Unigram tokenizer (https://arxiv.org/abs/1804.10959) through SentencePiece.

    Expectation-maximisation of token probabilities over the lines of the documents, from frequent
    substrings down to the size that is asked for; tokens begin with the space before them. Text is
    not normalised and no space is taken away. One thread, so that the same lines give the same
    bytes (its Hugging Face counterpart goes through hash tables in random order). A line feed is
    never part of a learnt token: ``byte_fallback`` spells it.

    Writes ``tokenizer.json``, and SentencePiece's own ``tokenizer.model`` with the same ids.

    4 MB of Python source, 8,192 tokens: 7 s on one core.

    Checked: ids of both files are the same on random text.
    """

    Config = UnigramConfig

    def train(self, documents: Documents, progress: Progress) -> Mapping[str, bytes]:
        """See ``TokenizerTrainer.train``."""
        sentencepiece = import_extra("sentencepiece", extra="text", where="unigram")
        config = self.config
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=_lines(documents, progress),
                model_writer=model,
                model_type="unigram",
                vocab_size=config.vocab_size,
                character_coverage=config.character_coverage,
                byte_fallback=config.byte_fallback,
                max_sentencepiece_length=config.max_piece_characters,
                split_digits=config.split_digits,
                split_by_unicode_script=config.split_scripts,
                add_dummy_prefix=config.prefix_space,
                seed_sentencepiece_size=config.seed_size,
                shrinking_factor=config.shrinking_factor,
                num_sub_iterations=config.num_sub_iterations,
                control_symbols=list(config.special_tokens),
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                max_sentence_length=MAX_LINE_BYTES,
                unk_id=UNKNOWN_ID,
                unk_piece=UNKNOWN,
                bos_id=-1,
                eos_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2]  # behind the place in its source
            raise ContractError(
                f"unigram: SentencePiece cannot learn from these documents: {reason}",
                hint="take a larger sample, or the vocab_size that it names",
            ) from None
        return {
            "tokenizer.json": self._tokenizer_json(sentencepiece, model.getvalue()),
            "tokenizer.model": model.getvalue(),
        }

    def identity(self) -> Mapping[str, object]:
        """Return the versions of the packages that learn and write."""
        return {
            f"{name}_version": import_extra(name, extra="text", where="unigram").__version__
            for name in ("sentencepiece", "tokenizers")
        }

    def _tokenizer_json(self, sentencepiece: Any, model: bytes) -> bytes:
        """Return the same tokenizer in the other format."""
        library = import_extra("tokenizers", extra="text", where="unigram")
        config = self.config
        learnt = sentencepiece.SentencePieceProcessor(model_proto=model)
        scores = [(learnt.IdToPiece(i), learnt.GetScore(i)) for i in range(learnt.GetPieceSize())]
        tokenizer = library.Tokenizer(
            library.models.Unigram(scores, unk_id=UNKNOWN_ID, byte_fallback=config.byte_fallback)
        )
        decoders = library.decoders
        spaces = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
        if config.prefix_space:
            # Before every document, as SentencePiece does: Metaspace leaves out a second one.
            tokenizer.normalizer = library.normalizers.Prepend(SPACE_MARK)
            spaces.append(decoders.Strip(" ", 1, 0))
        tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(SPACE_MARK, "never")
        tokenizer.decoder = decoders.Sequence(spaces)
        tokenizer.add_special_tokens([UNKNOWN, *config.special_tokens])
        text: str = tokenizer.to_str(pretty=True)
        return text.encode()


def _lines(documents: Documents, progress: Progress) -> Iterator[str]:
    done = 0
    for texts in documents():
        for text in texts.to_pylist():
            yield from text.split("\n")
        done += len(texts)
        progress("reading documents", done, 0)
