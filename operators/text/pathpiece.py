"""Tokenize text into as few tokens of a vocabulary as can be; learn such a vocabulary."""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from operators.base import Batch, FieldSpec, Operator, Ragged, TokenPieces, smallest_uint
from operators.errors import ContractError
from operators.text.byte_vocabulary import (
    Pretokenization,
    Spelling,
    cuts_of,
    hex_lines,
    parse_hex_lines,
    rows_of,
)
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
from operators.text.unigram import SPACE_MARK, UNKNOWN, Unigram, UnigramConfig

if TYPE_CHECKING:
    from operators.text.algorithms.trie import Trie

SPECIAL_ID = 0
NUM_BYTES = 256
DEFAULT_SEED = 42

_PRETOKENIZATION = (
    "Where tokens may not reach across: nowhere ('none'), before every space ('first_space'), or "
    "before and after every space ('space'). "
)
_SPLIT_DIGITS = "Make every digit 0..9 a token of its own. "


class PathPieceConfig(MethodFileConfig):
    """What a job may say about ``pathpiece``."""

    file_name = "vocab.txt"

    name: Literal["pathpiece"] = "pathpiece"
    segmentation: Annotated[
        Literal["longest", "random", "greedy"],
        Field(
            description="'longest' and 'random' give the fewest tokens; among equally few the last "
            "token is the longest, or is drawn. 'greedy' takes the longest token that comes next."
        ),
    ] = "longest"
    seed: Annotated[
        int | None,
        Field(
            ge=0,
            lt=2**64,
            description="Of the draws of segmentation 'random', which begin anew with every piece; "
            "42, as the authors' code, if null.",
        ),
    ] = None
    pretokenization: Annotated[
        Pretokenization, Field(description=_PRETOKENIZATION + "As the vocabulary was trained.")
    ] = "none"
    split_digits: Annotated[
        bool, Field(description=_SPLIT_DIGITS + "As the vocabulary was trained.")
    ] = False
    special_token: Annotated[
        str, Field(min_length=1, description="The name of id 0, which is in no line of the file.")
    ] = "<|endoftext|>"
    special_tokens_in_text: Annotated[
        Literal["escape", "parse"],
        Field(
            description="The special token's name inside a document: 'escape' spells it with other "
            "tokens, 'parse' (the authors' code) lets it become id 0."
        ),
    ] = "escape"
    add_bos: Annotated[bool, Field(description="Begin every document with id 0.")] = False
    add_eos: Annotated[bool, Field(description="End every document with id 0.")] = False

    @model_validator(mode="after")
    def _check_seed(self) -> Self:
        if self.seed is not None and self.segmentation != "random":
            raise ValueError(
                f"seed={self.seed} has no use with segmentation={self.segmentation!r}, which draws "
                "nothing; leave it out, or set segmentation: random"
            )
        return self


class PathPiece(Operator[PathPieceConfig]):
    """Map text to the fewest tokens that spell it.

    PathPiece ("Tokenization Is More Than Compression", https://arxiv.org/abs/2402.18376,
    section 3.1): a shortest path over the bytes of a document, or of each of its pieces (see
    ``pretokenization``; the authors' library cuts nothing, their experiments do). Reads ``text``;
    adds ``tokens`` [T] of the smallest unsigned type that holds the vocabulary.

    ``tokenizer`` is a ``vocab.txt``: a token's bytes in hexadecimal digits per line. Id 0 is the
    special token, the lines follow from 1; of equal lines the last one's id is used, and a line
    that holds the special token's name does not count. A text that the tokens cannot spell is
    unusable; no vocabulary that holds all 256 bytes has such texts.

    Checked: every case of the authors' code (58 texts, 5 vocabularies, 3 segmentations), and
    against the exhaustive list of segmentations of short strings. Draws are those of the authors'
    generator (ChaCha12).
    Speed on one core (a vocabulary of 32,768 tokens, 12 MB of Python source): ``longest`` 33 MB/s,
    ``random`` 7 MB/s, ``greedy`` 100 MB/s.

    Raises:
        SetupError: the file is missing or no such vocabulary, or a package is missing.
    """

    Config = PathPieceConfig
    inputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The ids; reads the vocabulary when first asked."""
        return {"tokens": FieldSpec(self._dtype, (None,), vocab_size=self._vocab_size)}

    def identity(self) -> Mapping[str, object]:
        """Return the digest of the vocabulary."""
        return method_identity(self.config, self._file)

    def metadata(self) -> Mapping[str, object]:
        """Return the size of the vocabulary and the id of the special token."""
        return {
            "vocab_size": self._vocab_size,
            "special_ids": {self.config.special_token: SPECIAL_ID},
            "bos_id": self._bos,
            "eos_id": self._eos,
        }

    def setup(self, device: str) -> None:  # noqa: ARG002 - a text tokenizer has no device
        """Read the vocabulary."""
        from operators.text.algorithms.trie import build_trie

        ids = {token: i for i, token in sorted(self._tokens.items())}
        if self.config.special_tokens_in_text == "parse":
            ids[self.config.special_token.encode()] = SPECIAL_ID
        self._widths = np.zeros(self._vocab_size, np.int32)
        for token, i in ids.items():
            self._widths[i] = len(token)
        is_greedy = self.config.segmentation == "greedy"
        self._trie: Trie = build_trie(ids, is_reversed=not is_greedy)

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize every document."""
        from operators.text.algorithms.byte_segments import fewest_tokens, longest_prefixes

        check_texts(self, batch)
        config, trie = self.config, self._trie
        documents = utf8_bytes(batch["text"])
        cuts = cuts_of(documents, config.pretokenization, split_digits=config.split_digits)
        if config.segmentation == "greedy":
            found = longest_prefixes(documents.values, cuts, trie, trie.longest, self._dtype)
        else:
            seed = None
            if config.segmentation == "random":
                seed = DEFAULT_SEED if config.seed is None else config.seed
            found = fewest_tokens(documents.values, cuts, trie, self._widths, self._dtype, seed)
        rows = rows_of(self, batch, cuts, found)
        return {"tokens": add_ends(rows, self._bos, self._eos, self._dtype)}

    def decode(self, batch: Batch) -> Batch:
        """Return ``text`` of ``tokens``; id 0 is written out only under ``parse``."""
        tokens: Ragged = batch["tokens"]
        bytes_of = dict(self._tokens)
        if self.config.special_tokens_in_text == "parse":
            bytes_of[SPECIAL_ID] = self.config.special_token.encode()
        return {"text": Spelling(bytes_of, self._vocab_size).text(tokens)}

    def pieces(self) -> TokenPieces:
        """Return the bytes of each id, none for the special token."""
        return Spelling(self._tokens, self._vocab_size).pieces()

    @property
    def _bos(self) -> int | None:
        return SPECIAL_ID if self.config.add_bos else None

    @property
    def _eos(self) -> int | None:
        return SPECIAL_ID if self.config.add_eos else None

    @cached_property
    def _file(self) -> FoundFile:
        return read_method_file(self.config, self.model_files)

    @cached_property
    def _tokens(self) -> Mapping[int, bytes]:
        where = f"pathpiece: tokenizer {self.config.tokenizer!r}"
        special = self.config.special_token.encode()
        lines = parse_hex_lines(self._file.data, where)
        return dict(enumerate((line for line in lines if line != special), start=SPECIAL_ID + 1))

    @property
    def _vocab_size(self) -> int:
        return len(self._tokens) + 1

    @property
    def _dtype(self) -> str:
        return smallest_uint(self._vocab_size)


class PathPieceTrainerConfig(TrainerConfig):
    """What a job may say about the trainer of ``pathpiece``."""

    name: Literal["pathpiece"] = "pathpiece"
    vocab_size: Annotated[
        int,
        Field(
            gt=NUM_BYTES + 1,
            le=2**24,
            description="Tokens in the end, the 256 bytes and the special token among them.",
        ),
    ] = 32_768
    initial_size: Annotated[
        int,
        Field(
            gt=NUM_BYTES + 1,
            le=2**24,
            description="Tokens in the beginning, the 256 bytes among them.",
        ),
    ] = 262_144
    initial_tokens: Annotated[
        Literal["frequent", "bpe", "unigram"],
        Field(
            description="What they are: the most frequent strings of bytes, or the tokens of a BPE "
            "or a Unigram model of that size, learnt from the same documents."
        ),
    ] = "frequent"
    max_token_bytes: Annotated[
        int, Field(ge=2, le=255, description="Bytes of the longest token.")
    ] = 16
    drop_share: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="Share of the tokens that one step drops, the least useful ones; small "
            "shares notice more often that tokens stand in for each other, and take longer.",
        ),
    ] = 0.1
    ties: Annotated[
        Literal["longest", "random"],
        Field(description="Among equally few tokens the last is the longest, or is drawn."),
    ] = "longest"
    pretokenization: Annotated[Pretokenization, Field(description=_PRETOKENIZATION.strip())] = (
        "none"
    )
    split_digits: Annotated[bool, Field(description=_SPLIT_DIGITS.strip())] = False

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.initial_size < self.vocab_size:
            raise ValueError(
                f"initial_size={self.initial_size:,} is below vocab_size={self.vocab_size:,}, but "
                "tokens are only dropped; start from several times as many as are wanted"
            )
        return self


class PathPieceTrainer(TokenizerTrainer[PathPieceTrainerConfig]):
    """Learn the vocabulary of ``pathpiece`` from the top down.

    As the paper says (section 3.2; the authors' program is not published): it starts from the most
    frequent strings of bytes inside pieces, or from the tokens of a BPE on the same pieces or of a
    Unigram model (SentencePiece's, which cuts words at spaces by itself). Again and again it cuts
    the documents into the fewest tokens, sums for every token how many more there would be without
    it, and drops those with the smallest sum. Of equal sums the rarer token goes first, then the
    one whose bytes come first.
    The 256 bytes stay. Documents are held in memory as distinct pieces with their counts: with
    ``pretokenization: none`` that is the whole sample.

    Writes ``vocab.txt``, the more useful tokens first after the bytes. 4 MB of Python source, cut
    before spaces, from 65,536 to 8,192 tokens: 15 s on one core.

    Checked: every cost that the authors' segmentation gives (120 tokens), and costs against the
    exhaustive list of segmentations of short strings.
    """

    Config = PathPieceTrainerConfig

    def train(self, documents: Documents, progress: Progress) -> Mapping[str, bytes]:
        """Return ``vocab.txt``."""
        from operators.text.algorithms import pathpiece_training as training

        config = self.config
        pieces = training.count_pieces(
            documents,
            lambda rows: cuts_of(rows, config.pretokenization, split_digits=config.split_digits),
            progress,
        )
        num_strings, longest = config.initial_size - 1 - NUM_BYTES, config.max_token_bytes
        if config.initial_tokens == "bpe":
            strings = training.merged_strings(pieces, num_strings, longest, progress)
        elif config.initial_tokens == "unigram":
            strings = self._unigram_strings(documents, progress)
        else:
            strings = training.frequent_strings(pieces, num_strings, longest)
        tokens = training.learn(
            pieces,
            strings=strings,
            size=config.vocab_size - 1,
            drop_share=config.drop_share,
            seed=DEFAULT_SEED if config.ties == "random" else None,
            progress=progress,
        )
        return {PathPieceConfig.file_name: hex_lines(tokens)}

    def identity(self) -> Mapping[str, object]:
        """Return the versions of the packages that learn the tokens to begin with."""
        if self.config.initial_tokens == "unigram":
            return Unigram(self._unigram_config).identity()
        return {}

    @property
    def _unigram_config(self) -> UnigramConfig:
        return UnigramConfig(
            vocab_size=self.config.initial_size - 1 - NUM_BYTES,
            byte_fallback=False,
            prefix_space=False,
            max_piece_characters=self.config.max_token_bytes,
        )

    def _unigram_strings(self, documents: Documents, progress: Progress) -> list[bytes]:
        config = self.config
        try:
            files = Unigram(self._unigram_config).train(documents, progress)
        except ContractError as error:
            raise ContractError(
                f"pathpiece: initial_tokens: unigram: {error}",
                hint=f"initial_size={config.initial_size:,} asks for "
                f"{self._unigram_config.vocab_size:,} tokens of the model",
            ) from None
        pieces = [piece for piece, _ in json.loads(files["tokenizer.json"])["model"]["vocab"]]
        spelled = {piece.replace(SPACE_MARK, " ").encode() for piece in pieces if piece != UNKNOWN}
        return sorted(token for token in spelled if 2 <= len(token) <= config.max_token_bytes)
