"""Tokenize text with the vocabulary of any tokenizer.json, by one of seven methods."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from operators.base import Batch, FieldSpec, Operator, Ragged, TokenPieces, smallest_uint
from operators.columns import take
from operators.errors import ContractError, RowErrors, SampleError, SetupError
from operators.extras import import_extra
from operators.keyed_draws import seeds_of_keys
from operators.text.chunks import (
    MAX_REMEMBERED_CHARACTERS,
    MAX_REMEMBERED_CHUNKS,
    check_texts,
)
from operators.text.document_ends import add_ends
from operators.text.method_file import (
    FoundFile,
    MethodFileConfig,
    method_identity,
    read_method_file,
)
from operators.text.text_column import utf8_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from operators.text.algorithms.vocabulary_inference import Method, Vocabulary

MethodName = Literal[
    "longest_prefix",
    "longest_suffix",
    "longest_token",
    "fewest_tokens",
    "bpe_merges",
    "bpe_dropout",
    "most_likely",
]
DEFAULT_DROPOUT = 0.1
MAX_WORD_CHARACTERS = 100
SPACE_MARK = "\u2581"


class VocabularyInferenceConfig(MethodFileConfig):
    """What a job may say about ``vocabulary_inference``."""

    file_name = "tokenizer.json"

    name: Literal["vocabulary_inference"] = "vocabulary_inference"
    method: Annotated[
        MethodName,
        Field(
            description="How a word is cut: longest_prefix from its start, longest_suffix from its "
            "end, longest_token wherever the longest one is; fewest_tokens; bpe_merges and "
            "bpe_dropout in the order of a BPE's merges; most_likely by a Unigram's probabilities."
        ),
    ]
    dropout: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="How often bpe_dropout passes over a merge; 0.1, as the paper, if null.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(ge=0, description="Of bpe_dropout's draws, with each sample's key; 0 if null."),
    ] = None
    lossless: Annotated[
        bool,
        Field(
            description="Put the unknown token (or the bytes, where the vocabulary spells them) in "
            "place of what no token covers, and refuse texts where there is none. false: as the "
            "authors' code, longest_suffix and longest_token leave it out, and longest_prefix "
            "makes the whole word unknown."
        ),
    ] = True
    add_bos: Annotated[
        str | None, Field(description="Token that begins every document, e.g. <s>.")
    ] = None
    add_eos: Annotated[
        str | None, Field(description="Token that ends every document, e.g. <|endoftext|>.")
    ] = None

    @model_validator(mode="after")
    def _check_draws(self) -> Self:
        for option in ("dropout", "seed"):
            value = getattr(self, option)
            if value is not None and self.method != "bpe_dropout":
                raise ValueError(
                    f"{option}={value} has no use with method={self.method!r}, which draws "
                    "nothing; leave it out, or set method: bpe_dropout"
                )
        return self


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of some documents.

    Attributes:
        distinct: uint8 rows, each word once, or as often as it stands there.
        index: int64 [W], which row each word is; None where every row is one word in turn.
        firsts: int64 [N + 1], which word begins each document.
    """

    distinct: Ragged
    index: np.ndarray | None
    firsts: np.ndarray


@dataclass(frozen=True, slots=True)
class _ChunkWords:
    """The words of the different chunks of some documents, which are cut into chunks.

    Attributes:
        words: large_string, of one chunk after another.
        firsts: int64 [D + 1], where those of each different chunk begin.
        chunks: Which of them each chunk of the documents is.
        document_chunks: int64 [N + 1], which chunk begins each document.
    """

    words: pa.Array
    firsts: np.ndarray
    chunks: np.ndarray
    document_chunks: np.ndarray


class VocabularyInference(Operator[VocabularyInferenceConfig]):
    """Map text to tokens of a given vocabulary, by one of the seven methods of one paper.

    "Greed is All You Need: An Evaluation of Tokenizer Inference Methods"
    (https://arxiv.org/abs/2403.01289, section 2). Normalisation and words (pre-tokenization) are as
    the tokenizer.json says; without either, a document is one word. Ties: ``longest_token`` takes
    the leftmost; ``fewest_tokens`` and ``most_likely`` the longest last token, then the one before
    it, and so on. A WordPiece vocabulary's ``##`` tokens match inside words only. Special tokens
    are not found in text, nor are other added tokens that are not in the model's vocabulary.

    Reads ``text``, and ``key`` for ``bpe_dropout``; adds ``tokens`` [T] of the smallest unsigned
    type that holds the vocabulary. ``bpe_merges`` and ``bpe_dropout`` need a BPE,
    ``most_likely`` a Unigram. Draws are of SplitMix64 from the SHA-256 of
    ``<seed>/bpe_dropout/<key>``: the authors' cannot be repeated.

    Checked: every case of the authors' code (14 runs over 23 texts, 28 words), each method
    against its definition on short words, ``bpe_merges`` and ``most_likely`` against the library.
    Speed on one core (a BPE of 32,768 tokens, 12 MB of Python source, GPT-2's words):
    ``longest_prefix`` 50 MB/s, ``longest_suffix`` 45, ``longest_token`` 19, ``fewest_tokens`` 22,
    ``bpe_merges`` and ``bpe_dropout`` 10. Other normalisers and pre-tokenizers are the library's,
    at 2 MB/s; where text can surely be cut (see ``algorithms/safe_cuts.py``) each short chunk is
    given to it once and remembered: 3 MB/s at first, 9 to 13 where chunks come again.

    Where tokens that end words are marked (``end_of_word_suffix``, as CLIP's), every method takes
    those at the ends of words, and only there.

    Raises:
        SetupError: the file is missing or no tokenizer.json, or a package is missing.
        ContractError: the vocabulary is of another kind than the method needs.
    """

    Config = VocabularyInferenceConfig

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """The text, and the key where draws depend on it."""
        text = {"text": FieldSpec("string")}
        return {**text, "key": FieldSpec("string")} if self._draws else text

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The ids; reads the tokenizer when first asked."""
        return {"tokens": FieldSpec(self._dtype, (None,), vocab_size=self._vocab_size)}

    def identity(self) -> Mapping[str, object]:
        """Return the file's digest, its commit and the versions of what cuts words."""
        library = import_extra("tokenizers", extra="text", where=self.config.name)
        found = {
            **method_identity(self.config, self._file),
            "tokenizers_version": library.__version__,
        }
        if self._cuts_like_gpt2:
            found["regex_version"] = version("regex")
        return found

    def metadata(self) -> Mapping[str, object]:
        """Return the size of the vocabulary and the ids of the specials."""
        return {
            "vocab_size": self._vocab_size,
            "special_ids": {name: i for i, name in sorted(self._specials.items())},
            "bos_id": self._end_id("add_bos"),
            "eos_id": self._end_id("add_eos"),
        }

    def setup(self, device: str) -> None:  # noqa: ARG002 - a text tokenizer has no device
        """Read the vocabulary and prepare the method."""
        from operators.text.algorithms.safe_cuts import where_to_cut

        self._ends = self._end_id("add_bos"), self._end_id("add_eos")
        self._method = self._prepared()
        self._cut_before = where_to_cut(self._parts)
        self._remembered: dict[str, list[str]] = {}

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize every document."""
        check_texts(self, batch)
        words = self._words(batch["text"])
        values, cuts = words.distinct.values, words.distinct.offsets
        if self._draws:
            from operators.text.algorithms.vocabulary_inference import Merges, word_seeds

            assert isinstance(self._method, Merges)
            documents = seeds_of_keys(self.config.seed or 0, "bpe_dropout", batch["key"])
            seeds = word_seeds(documents, words.firsts)
            found = self._method.with_dropout(values, cuts, self._dropout, seeds)
        else:
            found = self._method(values, cuts)
        tokens, is_stuck = Ragged(found.ids, found.firsts), found.stuck_at >= 0
        if words.index is not None:
            tokens, is_stuck = take(tokens, words.index), is_stuck[words.index]
        if is_stuck.any():
            raise self._stuck(batch, words, is_stuck)
        rows = Ragged(tokens.values, tokens.offsets[words.firsts])
        return {"tokens": add_ends(rows, *self._ends, self._dtype)}

    def decode(self, batch: Batch) -> Batch:
        """Return ``text`` of ``tokens`` as the tokenizer's decoder writes it, without specials."""
        tokens: Ragged = batch["tokens"]
        documents = [tokens[row].tolist() for row in range(len(tokens))]
        texts = self._tokenizer.decode_batch(documents, skip_special_tokens=True)
        return {"text": pa.array(texts, pa.large_string())}

    def pieces(self) -> TokenPieces:
        """Return the bytes of each id, none for specials."""
        from operators.text.algorithms.token_pieces import pieces_of_tokenizer_json

        return pieces_of_tokenizer_json(self._tokenizer.to_str().encode(), self._vocab_size)

    @property
    def _draws(self) -> bool:
        return self.config.method == "bpe_dropout"

    @property
    def _dropout(self) -> float:
        return DEFAULT_DROPOUT if self.config.dropout is None else self.config.dropout

    @cached_property
    def _file(self) -> FoundFile:
        return read_method_file(self.config, self.model_files)

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        library = import_extra("tokenizers", extra="text", where=self.config.name)
        try:
            found: Tokenizer = library.Tokenizer.from_buffer(self._file.data)
        except ValueError as error:
            raise SetupError(
                f"vocabulary_inference: {self.config.tokenizer!r} is no tokenizer.json: {error}",
                hint="save a fast tokenizer with transformers and give its tokenizer.json",
            ) from None
        return found

    @cached_property
    def _parts(self) -> Mapping[str, Any]:
        """The file as the library writes it: every setting is there."""
        parts: Mapping[str, Any] = json.loads(self._tokenizer.to_str())
        return parts

    @property
    def _model(self) -> Mapping[str, Any]:
        model: Mapping[str, Any] = self._parts["model"]
        return model

    @cached_property
    def _ids(self) -> Mapping[str, int]:
        vocab = self._model["vocab"]
        if isinstance(vocab, list):  # Unigram: pieces with scores
            return {piece: i for i, (piece, _) in enumerate(vocab)}
        return dict(vocab)

    @cached_property
    def _specials(self) -> Mapping[int, str]:
        return {t["id"]: t["content"] for t in self._parts["added_tokens"] if t["special"]}

    @cached_property
    def _vocab_size(self) -> int:
        return int(max(self._tokenizer.get_vocab(with_added_tokens=True).values())) + 1

    @property
    def _dtype(self) -> str:
        return smallest_uint(self._vocab_size)

    @cached_property
    def _is_byte_level(self) -> bool:
        return any(part["type"] == "ByteLevel" for part in _members(self._parts["pre_tokenizer"]))

    @property
    def _suffix(self) -> str:
        """What a token that ends words ends in."""
        return self._model.get("end_of_word_suffix") or ""

    @cached_property
    def _cuts_like_gpt2(self) -> bool:
        if self._suffix:
            return False
        cutter = self._parts["pre_tokenizer"] or {}
        found = [cutter.get(option) for option in ("type", "add_prefix_space", "use_regex")]
        return found == ["ByteLevel", False, True] and self._parts["normalizer"] is None

    @property
    def _unknown(self) -> int | None:
        if self._model["type"] == "Unigram":
            unknown: int | None = self._model["unk_id"]
            return unknown
        return self._ids.get(self._model["unk_token"] or "")

    def _end_id(self, option: Literal["add_bos", "add_eos"]) -> int | None:
        token = getattr(self.config, option)
        if token is None:
            return None
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None:
            raise ContractError(
                f"vocabulary_inference: {option}={token!r} is no token of "
                f"{self.config.tokenizer!r}",
                hint=f"its special tokens are {list(self._specials.values())[:20]}",
            )
        return found

    def _prepared(self) -> "Method":
        from operators.text.algorithms import vocabulary_inference as algorithms

        name, lossless = self.config.method, self.config.lossless
        if self._suffix and (self._model["byte_fallback"] or self._model["ignore_merges"]):
            raise self._unfit(
                "marks the ends of words, and has byte_fallback or ignore_merges, which make no "
                "sense together",
                "another",
            )
        if name == "most_likely" and self._model["type"] != "Unigram":
            raise self._unfit(f"is a {self._model['type']}, which has no probabilities", "Unigram")
        if name in ("bpe_merges", "bpe_dropout"):
            return self._merges()
        if name == "longest_prefix":
            longest = self._model.get("max_input_chars_per_word", MAX_WORD_CHARACTERS)
            vocabulary = self._vocabulary(spells_bytes=lossless)
            return algorithms.LongestPrefix(vocabulary, None if lossless else longest)
        if name in ("longest_suffix", "longest_token"):
            vocabulary = self._vocabulary(spells_bytes=lossless, drops=not lossless)
            if name == "longest_suffix":
                return algorithms.LongestSuffix(vocabulary)
            if not lossless and any(SPACE_MARK in token for token in self._ids):
                raise self._unfit(
                    f"holds {SPACE_MARK!r} in tokens, which the authors' code takes for its own "
                    "mark of text that is done",
                    "another, or lossless: true",
                )
            return algorithms.LongestToken(vocabulary)
        if name == "fewest_tokens":
            scores = np.full(self._vocab_size, -1.0)
        else:
            scores = np.array([score for _, score in self._model["vocab"]], np.float64)
        unknown_score = float(scores.min()) - algorithms.UNKNOWN_PENALTY
        return algorithms.BestPath(self._vocabulary(spells_bytes=True), scores, unknown_score)

    def _merges(self) -> "Method":
        from operators.text.algorithms.vocabulary_inference import Merges

        model = self._model
        if model["type"] != "BPE":
            raise self._unfit(f"is a {model['type']}, which has no merges", "BPE")
        if model["continuing_subword_prefix"]:
            raise self._unfit("is a BPE whose tokens are marked inside words", "BPE without marks")
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        ids = self._ids
        return Merges(
            self._vocabulary(spells_bytes=True, drops=not self.config.lossless),
            [(ids[left], ids[right], ids[left + right]) for left, right in pairs],
            whole_words=model["ignore_merges"],
            fuses_unknown=model["fuse_unk"],
        )

    def _unfit(self, found: str, wanted: str) -> ContractError:
        return ContractError(
            f"vocabulary_inference: method {self.config.method!r}: {self.config.tokenizer!r} "
            f"{found}",
            hint=f"give the tokenizer.json of {wanted}, or choose another method",
        )

    def _vocabulary(self, *, spells_bytes: bool, drops: bool = False) -> "Vocabulary":
        from operators.text.algorithms.vocabulary_inference import DROP, STUCK, Vocabulary

        unknown = self._unknown
        instead = STUCK if unknown is None else unknown
        if drops and (unknown is None or self.config.method.startswith("longest")):
            instead = DROP
        byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
        byte_ids = np.empty(0, np.int32)
        apart = {i for i in (*self._specials, unknown) if i is not None}
        if self._model.get("byte_fallback") and all(name in self._ids for name in byte_names):
            found = [self._ids[name] for name in byte_names]
            apart |= set(found)
            if spells_bytes:
                byte_ids = np.array(found, np.int32)
        names = {token: i for token, i in self._ids.items() if token and i not in apart}
        firsts = dict(self._spelled(names))
        rests = firsts
        mark = self._model.get("continuing_subword_prefix")
        if mark:
            inside = {t.removeprefix(mark): i for t, i in names.items() if t.startswith(mark)}
            inside.pop("", None)
            rests = dict(self._spelled(inside))
        is_bytes = self._is_byte_level and not self._suffix
        return Vocabulary(firsts, rests, instead, byte_ids, is_bytes, self._dtype)

    def _spelled(self, tokens: Mapping[str, int]) -> Iterator[tuple[bytes, int]]:
        """Yield tokens as bytes of text."""
        for token, i in tokens.items():
            if self._suffix:
                base = token.removesuffix(self._suffix)
                if base:
                    yield (_with_marked_end(base) if base != token else token.encode()), i
                continue
            if not self._is_byte_level:
                yield token.encode(), i
                continue
            try:
                yield _bytes_of_letters(token), i
            except UnicodeEncodeError:
                continue  # no spelling of bytes, so no text is like it

    def _words(self, texts: pa.Array) -> _Words:
        documents = utf8_bytes(texts)
        if self._cuts_like_gpt2:
            from operators.text.algorithms.gpt2_words import gpt2_cuts

            cuts = gpt2_cuts(documents.values, documents.offsets)
            firsts = np.searchsorted(cuts, documents.offsets)
            return _Words(Ragged(documents.values, cuts), None, firsts)
        found = self._library_words(documents)
        encoded = found.words.dictionary_encode()
        distinct, index = encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)
        if self._suffix:
            spelled = [_with_marked_end(word) for word in distinct.to_pylist()]
            distinct = pa.array(spelled, pa.large_binary())
        elif self._is_byte_level:
            spelled = [_bytes_of_letters(word) for word in distinct.to_pylist()]
            distinct = pa.array(spelled, pa.large_binary())
        rows = utf8_bytes(distinct)
        of_chunks = take(Ragged(index, found.firsts), found.chunks)
        index, firsts = of_chunks.values, of_chunks.offsets[found.document_chunks]
        if self._draws:  # every word draws for itself
            return _Words(take(rows, index), None, firsts)
        return _Words(rows, index, firsts)

    def _library_words(self, documents: Ragged) -> "_ChunkWords":
        """Have the library cut documents, or each different chunk of them once."""
        from operators.text.algorithms.safe_cuts import cut_before

        cuts = np.unique(documents.offsets)
        if self._cut_before:
            cuts = cut_before(documents.values, documents.offsets, self._cut_before)
        buffers = [None, pa.py_buffer(cuts), pa.py_buffer(documents.values)]
        chunks = pa.Array.from_buffers(pa.large_string(), len(cuts) - 1, buffers)
        encoded = chunks.dictionary_encode()
        words: list[str] = []
        ends = [0]
        for chunk in encoded.dictionary.to_pylist():
            words += self._words_of_chunk(chunk)
            ends.append(len(words))
        return _ChunkWords(
            pa.array(words, pa.large_string()),
            np.array(ends, np.int64),
            encoded.indices.to_numpy(),
            np.searchsorted(cuts, documents.offsets),
        )

    def _words_of_chunk(self, chunk: str) -> list[str]:
        found = self._remembered.get(chunk)
        if found is None:
            normalizer, cutter = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
            plain = chunk if normalizer is None else normalizer.normalize_str(chunk)
            pieces = [(plain, None)] if cutter is None else cutter.pre_tokenize_str(plain)
            found = [word for word, _ in pieces]
            if len(self._remembered) >= MAX_REMEMBERED_CHUNKS:
                self._remembered = {}  # not cleared in place: other threads may be reading it
            if len(chunk) <= MAX_REMEMBERED_CHARACTERS:
                self._remembered[chunk] = found
        return found

    def _stuck(self, batch: Batch, words: _Words, is_stuck: np.ndarray) -> RowErrors:
        errors = {}
        for word in np.flatnonzero(is_stuck)[::-1].tolist():  # the first one of a row is told
            row = int(np.searchsorted(words.firsts, word, side="right")) - 1
            text = words.distinct[word if words.index is None else int(words.index[word])]
            errors[row] = SampleError(
                "vocabulary_inference: no token covers a character of "
                f"{text[:40].tobytes().decode(errors='replace')!r}, and the vocabulary has no "
                "unknown token",
                hint="a vocabulary of byte-level tokens covers every text",
            )
        good = np.setdiff1d(np.arange(len(batch["text"])), list(errors))
        return RowErrors(errors, self({name: take(column, good) for name, column in batch.items()}))


def _members(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield a pre-tokenizer, or those that it is a sequence of."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for member in part["pretokenizers"]:
            yield from _members(member)
    else:
        yield part


def _bytes_of_letters(word: str) -> bytes:
    """Return the bytes that a byte-level spelling stands for.

    Raises:
        UnicodeEncodeError: it is no such spelling.
    """
    from operators.text.algorithms.byte_level import BYTES

    if any(ord(letter) not in BYTES for letter in word):
        raise UnicodeEncodeError("byte-level", word, 0, len(word), "no letter of a byte")
    return word.translate(BYTES).encode("latin-1")


def _with_marked_end(word: str) -> bytes:
    """Return UTF-8 in which the last character is a different one than the same inside a word.

    It has four bytes, the first of them 0xF8 or above, which UTF-8 does not use.
    """
    if not word:
        return b""
    code = ord(word[-1])
    last = [0xF8 | code >> 18, *(0x80 | code >> shift & 0x3F for shift in (12, 6, 0))]
    return word[:-1].encode() + bytes(last)
