"""Tokenize text by the longest token that comes next; learn which tokens contexts bear to lose."""

import random
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from operators.base import Batch, FieldSpec, Operator, Ragged, TokenPieces, smallest_uint
from operators.columns import concat, take
from operators.errors import ContractError, SetupError
from operators.text.byte_vocabulary import Spelling, hex_lines, parse_hex_lines, rows_of
from operators.text.chunks import check_texts
from operators.text.document_ends import add_ends
from operators.text.method_file import (
    FoundFile,
    MethodFileConfig,
    method_identity,
    read_method_file,
)
from operators.text.text_column import utf8_bytes
from operators.text.training import Documents, Progress, TokenizerTrainer, TrainerConfig

if TYPE_CHECKING:
    from operators.text.algorithms.trie import Trie

NUM_BYTES = 256
SHUFFLE_SEED = 692_653
LINE_FEED = 0x0A

MaxTokenBytes = Annotated[
    int, Field(ge=1, description="Longer tokens of the vocabulary are never taken.")
]


class SageConfig(MethodFileConfig):
    """What a job may say about ``sage``."""

    file_name = "vocab.txt"

    name: Literal["sage"] = "sage"
    max_token_bytes: MaxTokenBytes = 16
    split_lines: Annotated[
        bool,
        Field(
            description="Cut documents after every line feed first, as the vocabulary is trained; "
            "no token reaches across then."
        ),
    ] = False
    add_bos: Annotated[bool, Field(description="Begin every document with the id <bos>.")] = False
    add_eos: Annotated[bool, Field(description="End every document with the id <eos>.")] = False


class Sage(Operator[SageConfig]):
    """Map text to tokens of a SaGe vocabulary: again and again the longest that comes next.

    SaGe ("Incorporating Context into Subword Vocabularies", https://arxiv.org/abs/2210.07095,
    section 3; its trainer is what is new): greedy over the bytes of a document, without words
    before. Reads ``text``; adds ``tokens`` [T] of the smallest unsigned type that holds the
    vocabulary.

    ``tokenizer`` is a ``vocab.txt``: a token's bytes in hexadecimal digits per line, the id is the
    line, counted from 0; of equal lines the last one's id is used. All 256 bytes must be there, so
    that every text can be spelled. ``<bos>`` and ``<eos>``, where asked for, follow the lines.

    Checked: every line of the authors' code (90), and against the definition on short texts.
    Speed on one core (a vocabulary of 32,768 tokens, 12 MB of Python source): 115 MB/s.

    Raises:
        SetupError: the file is missing or no such vocabulary, or a package is missing.
    """

    Config = SageConfig
    inputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The ids; reads the vocabulary when first asked."""
        return {"tokens": FieldSpec(self._dtype, (None,), vocab_size=self._vocab_size)}

    def identity(self) -> Mapping[str, object]:
        """Return the digest of the vocabulary."""
        return method_identity(self.config, self._file)

    def metadata(self) -> Mapping[str, object]:
        """Return the size of the vocabulary and the ids of the specials."""
        return {
            "vocab_size": self._vocab_size,
            "special_ids": self._special_ids,
            "bos_id": self._special_ids.get("<bos>"),
            "eos_id": self._special_ids.get("<eos>"),
        }

    def setup(self, device: str) -> None:  # noqa: ARG002 - a text tokenizer has no device
        """Read the vocabulary."""
        from operators.text.algorithms.trie import build_trie

        self._trie: Trie = build_trie({token: i for i, token in enumerate(self._tokens)})

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize every document."""
        from operators.text.algorithms.byte_segments import longest_prefixes

        check_texts(self, batch)
        documents = utf8_bytes(batch["text"])
        cuts = line_cuts(documents) if self.config.split_lines else np.unique(documents.offsets)
        found = longest_prefixes(
            documents.values, cuts, self._trie, self.config.max_token_bytes, self._dtype
        )
        special = self._special_ids
        rows = rows_of(self, batch, cuts, found)
        ended = add_ends(rows, special.get("<bos>"), special.get("<eos>"), self._dtype)
        return {"tokens": ended}

    def decode(self, batch: Batch) -> Batch:
        """Return ``text`` of ``tokens``, without the ends."""
        tokens: Ragged = batch["tokens"]
        return {"text": self._spelling.text(tokens)}

    def pieces(self) -> TokenPieces:
        """Return the bytes of each id, none for the ends."""
        return self._spelling.pieces()

    @property
    def _spelling(self) -> Spelling:
        return Spelling(dict(enumerate(self._tokens)), self._vocab_size)

    @cached_property
    def _file(self) -> FoundFile:
        return read_method_file(self.config, self.model_files)

    @cached_property
    def _tokens(self) -> list[bytes]:
        where = f"sage: tokenizer {self.config.tokenizer!r}"
        tokens = parse_hex_lines(self._file.data, where)
        num_bytes = len({token for token in tokens if len(token) == 1})
        if num_bytes < NUM_BYTES:
            raise SetupError(
                f"{where}: {num_bytes} of the 256 single bytes are in it, expected all",
                hint="add a line for each of 00 to ff, or train a vocabulary",
            )
        return tokens

    @cached_property
    def _special_ids(self) -> Mapping[str, int]:
        asked = (("<bos>", self.config.add_bos), ("<eos>", self.config.add_eos))
        names = [name for name, wanted in asked if wanted]
        return {name: len(self._tokens) + i for i, name in enumerate(names)}

    @property
    def _vocab_size(self) -> int:
        return len(self._tokens) + len(self._special_ids)

    @property
    def _dtype(self) -> str:
        return smallest_uint(self._vocab_size)


class SageTrainerConfig(TrainerConfig):
    """What a job may say about the trainer of ``sage``."""

    name: Literal["sage"] = "sage"
    schedule: Annotated[
        tuple[int, ...],
        Field(
            min_length=2,
            description="Falling sizes: of the BPE vocabulary in the beginning, of those between, "
            "and of the one in the end.",
        ),
    ] = (65_536, 57_344, 49_152, 40_960, 32_768)
    embedding_sizes: Annotated[
        tuple[int, ...],
        Field(
            description="Sizes of the schedule at which the vectors of tokens are learnt anew; at "
            "the first they always are."
        ),
    ] = (65_536, 49_152)
    moves_vectors: Annotated[
        bool,
        Field(
            description="Let vectors stay with their tokens while they are not learnt anew. false: "
            "as the authors' code, which numbers the tokens that are left anew and leaves the "
            "vectors in their old order."
        ),
    ] = False
    pattern: Annotated[
        str,
        Field(
            description="What cuts words for the BPE vocabulary in the beginning: gpt2, gpt4, "
            "gpt4o, identity, or a pattern of the package regex."
        ),
    ] = "gpt2"
    max_token_bytes: MaxTokenBytes = 16
    max_lines: Annotated[
        int, Field(gt=0, description="Lines that are looked at, drawn from all.")
    ] = 1_000_000
    shuffle_seed: Annotated[int, Field(ge=0, description="Of that draw.")] = SHUFFLE_SEED
    vector_size: Annotated[int, Field(gt=0, le=4096, description="Numbers per token.")] = 50
    window: Annotated[int, Field(gt=0, description="Neighbours to either side, at most.")] = 5
    negative: Annotated[int, Field(gt=0, description="Random tokens for each pair.")] = 15
    rate: Annotated[float, Field(gt=0, description="Of learning vectors, at first.")] = 0.025
    epochs: Annotated[int, Field(gt=0, description="How often vectors see each line.")] = 5
    seed: Annotated[int, Field(ge=0, lt=2**64, description="Of learning vectors.")] = 1

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        sizes = self.schedule
        if list(sizes) != sorted(set(sizes), reverse=True) or sizes[-1] <= NUM_BYTES:
            raise ValueError(
                f"schedule={list(sizes)}: expected falling sizes above {NUM_BYTES}, the bytes"
            )
        if sizes[0] >= 2**21:
            raise ValueError(f"schedule begins with {sizes[0]:,}, expected less than {2**21:,}")
        others = sorted(set(self.embedding_sizes) - set(sizes[:-1]))
        if others:
            raise ValueError(
                f"embedding_sizes {others} are not among the sizes that rounds begin with: "
                f"{list(sizes[:-1])}"
            )
        return self


class SageTrainer(TokenizerTrainer[SageTrainerConfig]):
    """Learn a SaGe vocabulary: drop what contexts bear to lose from a larger one.

    It begins with a byte-level BPE of the first size. In every round each token is left out once
    wherever it stands, the segmentation around it changes, and by skip-gram vectors the pairs of
    neighbours become more or less likely; the tokens whose loss makes them likeliest go. Tokens
    that the lines do not use at all have no such sum, and are not of the result. As the authors'
    second version does (``moves_vectors`` says where it is odd); their code takes the first
    vocabulary from a file and its vectors from another library (LGPL): those here are learnt by the
    same method with the same settings, but are not the same numbers.

    Writes ``vocab.txt``, as many tokens as the last size, and ``vocab_with_unused.txt``, in which
    the unused ones are as well: the authors' ``active_vocab`` and ``sage_vocab``.

    1 MB of Python source, from 16,384 to 8,192 tokens: 27 s on one core.

    Checked: pairs, sums and every round of the authors' code, with their vectors.
    """

    Config = SageTrainerConfig

    def train(self, documents: Documents, progress: Progress) -> Mapping[str, bytes]:
        """Return ``vocab.txt`` and ``vocab_with_unused.txt``."""
        from operators.text.algorithms.bpe_training import learn_merges
        from operators.text.algorithms.pretokens import count_pieces, splitter
        from operators.text.algorithms.sage_training import Lines, shrink
        from operators.text.algorithms.word2vec import SkipGram

        config = self.config
        pieces = count_pieces(documents, splitter(config.pattern, "keep"), progress)
        learnt = learn_merges(pieces, range(NUM_BYTES), config.schedule[0], progress)
        tokens = list(learnt.ids)
        if len(tokens) < config.schedule[0]:
            raise ContractError(
                f"sage: the sample gives a BPE of {len(tokens):,} tokens, but the schedule begins "
                f"with {config.schedule[0]:,}",
                hint="take a larger sample or a smaller schedule",
            )
        lines = self._lines(documents)
        vectors = SkipGram(
            config.vector_size,
            config.window,
            config.negative,
            config.rate,
            config.epochs,
            config.seed,
        )
        rounds = shrink(
            tokens,
            Lines(lines.values, lines.offsets),
            schedule=config.schedule,
            embedding_sizes=config.embedding_sizes,
            max_bytes=config.max_token_bytes,
            embed=lambda _, ids, firsts, size: vectors.learn(ids, firsts, size),
            moves_vectors=config.moves_vectors,
            progress=progress,
        )
        return {
            SageConfig.file_name: hex_lines(rounds[-1].active),
            "vocab_with_unused.txt": hex_lines(rounds[-1].kept),
        }

    def identity(self) -> Mapping[str, object]:
        """Return the version of the package that cuts words."""
        return {"regex_version": version("regex")}

    def _lines(self, documents: Documents) -> Ragged:
        """Return the lines that are looked at, in the order in which they were drawn."""
        parts = []
        for texts in documents():
            rows = utf8_bytes(texts)
            parts.append(Ragged(rows.values, line_cuts(rows)))
        lines: Ragged = concat(parts)
        order = list(range(len(lines)))
        random.Random(self.config.shuffle_seed).shuffle(order)
        drawn: Ragged = take(lines, np.array(order[: self.config.max_lines], np.int64))
        return drawn


def line_cuts(documents: Ragged) -> np.ndarray:
    """Return int64 [L + 1], where lines begin, and where the last one ends.

    Args:
        documents: uint8; a line ends with its line feed, or with the document.
    """
    feeds = np.flatnonzero(documents.values == LINE_FEED) + 1
    cuts: np.ndarray = np.union1d(feeds, documents.offsets)
    return cuts
