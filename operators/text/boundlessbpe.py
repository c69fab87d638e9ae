"""Tokenize text with BoundlessBPE, and train it: tokens that span words, or are deleted again."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from operators.base import Batch, FieldSpec, Operator, OperatorConfig, Ragged, smallest_uint
from operators.columns import take
from operators.errors import ContractError, RowErrors, SampleError, SetupError
from operators.model_files import file_at
from operators.text.algorithms.boundless import NEVER, BoundlessModel, model_of_text
from operators.text.algorithms.pretokens import PATTERNS, Split, regex_library, splitter
from operators.text.algorithms.scripts import script_splitter
from operators.text.document_ends import add_ends
from operators.text.text_column import check_no_nulls, text_of_bytes, utf8_bytes
from operators.text.training import Documents, Progress, TokenizerTrainer, TrainerConfig

MAX_KNOWN_WORDS = 1 << 20
"""Words whose ids are remembered from call to call."""

ALWAYS, NOT_AT_ALL = (-1, NEVER, NEVER), (NEVER, NEVER, NEVER)
"""When a word is one token, for merges across words."""


class BoundlessBPEConfig(OperatorConfig):
    """What a job may say about ``boundlessbpe``."""

    name: Literal["boundlessbpe"] = "boundlessbpe"
    tokenizer: Annotated[
        str, Field(min_length=1, description="Path or URL of a model, as the trainer writes it.")
    ]
    add_bos: Annotated[
        str | None, Field(description="Special token that begins every document.")
    ] = None
    add_eos: Annotated[str | None, Field(description="Special token that ends every document.")] = (
        None
    )
    special_tokens_in_text: Annotated[
        Literal["escape", "parse"],
        Field(
            description="A special token's name inside a document: 'escape' encodes it as the "
            "plain text it is, 'parse' turns it into the special token's id."
        ),
    ] = "escape"
    blowup: Annotated[
        bool | None,
        Field(
            description="For models of the authors' older program (word v1), which do not say it: "
            "a deleted token becomes its bytes, or the two tokens that it was made of. null: its "
            "bytes, as their program does unless told otherwise."
        ),
    ] = None


class BoundlessBPE(Operator[BoundlessBPEConfig]):
    """Map text to ids of BoundlessBPE (https://arxiv.org/abs/2504.00178), or of its two relatives.

    Reads ``text``; adds ``tokens`` [T] of the smallest unsigned type that holds the vocabulary and
    its special tokens. A pattern cuts text into words. Inside each the merges of the model are
    done, and its deletions (PickyBPE, https://arxiv.org/abs/2409.04599), in the order in which
    training did them; then neighbouring words that are single tokens are merged, the first merge
    of the model everywhere before the next. The model is the text file, version 2, of
    kensho-technologies/fastboundlessbpe: ``word``, ``boundless`` or ``superbpe``; or that of the
    authors' older program, kensho-technologies/boundlessbpe, which begins with ``word v1``. In the
    latter merges across words have their place among the others, so that words are joined before a
    later deletion takes them apart.

    Text that the pattern does not match is a word of its own; the authors' program loses it. A
    deletion may bring a token back that was itself deleted, and has no id: the authors' program
    then fails, here the token is taken apart further.

    Checked against the authors' Python program: training gives the same files byte for byte (15
    models, with and without deletions, scripts and greedy splitting), and text the same ids; so
    have two models that the older program's authors published, a trained one, and random ones. One
    core tokenizes 3.5 MB of English a second with 16,000 tokens.

    Raises:
        SetupError: there is no such model, or it is another file.
        ContractError: ``add_bos`` or ``add_eos`` is no special token of the model.
    """

    Config = BoundlessBPEConfig
    inputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The ids; reads the model when first asked."""
        size = self._vocab_size
        return {"tokens": FieldSpec(smallest_uint(size), (None,), vocab_size=size)}

    def identity(self) -> Mapping[str, object]:
        """Return the model's digest, and the version of the package that knows Unicode."""
        return {
            "tokenizer_sha256": hashlib.sha256(self._data).hexdigest(),
            "regex_version": version("regex"),
        }

    def metadata(self) -> Mapping[str, object]:
        """Return the size of the vocabulary and the ids of the specials."""
        return {
            "vocab_size": self._vocab_size,
            "special_ids": self._special_ids,
            "bos_id": self._end_id("add_bos"),
            "eos_id": self._end_id("add_eos"),
        }

    def setup(self, device: str) -> None:  # noqa: ARG002 - a text tokenizer has no device
        """Load the model."""
        self._bos, self._eos = self._end_id("add_bos"), self._end_id("add_eos")
        self._split = pretokenizer(self._model.words.settings)
        self._runs = _Runs(self._model)
        self._known: dict[str, _Word] = {}
        names = sorted(self._special_ids, key=len, reverse=True)
        self._special: Any = None
        if names and self.config.special_tokens_in_text == "parse":
            regex = regex_library()
            self._special = regex.compile("|".join(map(regex.escape, names)))

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize every document."""
        column = batch["text"]
        check_no_nulls(column, self.config.name)
        try:
            texts = column.to_pylist()
        except UnicodeDecodeError:
            errors = _undecodable(column)
            good = np.setdiff1d(np.arange(len(column)), list(errors))
            raise RowErrors(errors, self({"text": take(column, good)})) from None
        numbers = _Numbers()
        words = [
            np.fromiter(map(numbers.__getitem__, self._words(text)), np.int64) for text in texts
        ]
        offsets = np.concatenate(([0], np.cumsum(np.fromiter(map(len, words), np.int64))))
        flat = np.concatenate([*words, np.zeros(0, np.int64)])
        found = [self._word(word) for word in numbers]
        ids = np.array([i for word in found for i in word.ids], np.int64)
        lengths = np.array([len(word.ids) for word in found], np.int64)
        symbols = np.array([word.symbol for word in found], np.int64)
        when_whole = np.array([word.when_whole for word in found], np.int64).reshape(-1, 3)
        starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        rows = self._runs.join(Ragged(flat, offsets), symbols, when_whole, Ragged(ids, starts))
        dtype = smallest_uint(self._vocab_size)
        return {"tokens": add_ends(rows, self._bos, self._eos, dtype)}

    def decode(self, batch: Batch) -> Batch:
        """Return ``text`` of ``tokens``, without the ends.

        Under ``escape`` special tokens are dropped, since none of them was text; under ``parse``
        they are written out.
        """
        tokens: Ragged = batch["tokens"]
        special = [name.encode() for name in self._special_ids]
        is_parsed = self.config.special_tokens_in_text == "parse"
        pieces = [*self._model.vocabulary, *(special if is_parsed else [b""] * len(special))]
        bos, eos = self._end_id("add_bos"), self._end_id("add_eos")
        documents = []
        for row in range(len(tokens)):
            ids = tokens[row].tolist()
            start = 1 if bos is not None and ids[:1] == [bos] else 0
            stop = len(ids) - (1 if eos is not None and ids[start:][-1:] == [eos] else 0)
            documents.append(b"".join(pieces[i] for i in ids[start:stop]))
        offsets = np.concatenate(([0], np.cumsum([*map(len, documents)]))).astype(np.int64)
        values = np.frombuffer(b"".join(documents), np.uint8)
        return {"text": text_of_bytes(Ragged(values, offsets))}

    @cached_property
    def _data(self) -> bytes:
        name = self.config.tokenizer
        found = self.model_files.fetch(file_at(name, self.model_files))
        if found is None:
            raise SetupError(
                f"tokenizer {name!r}: no such file",
                hint="give the path of a model that the trainer boundlessbpe wrote",
            )
        return found.path.read_bytes()

    @cached_property
    def _model(self) -> BoundlessModel:
        name, blowup = self.config.tokenizer, self.config.blowup
        try:
            text = self._data.decode()
        except UnicodeDecodeError:
            raise SetupError(f"tokenizer {name!r}: not a text file") from None
        model = model_of_text(text, name)
        if blowup is not None:
            if not model.is_one_pass:
                raise ContractError(
                    f"boundlessbpe: blowup={blowup}, but the model {name!r} says itself what a "
                    f"deleted token becomes (blowup={model.words.settings['blowup']})",
                    hint="leave blowup out",
                )
            model.words.settings["blowup"] = blowup
        return model

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        first = len(self._model.vocabulary)
        return {name: first + i for i, name in enumerate(self._model.special_tokens)}

    @property
    def _vocab_size(self) -> int:
        return len(self._model.vocabulary) + len(self._special_ids)

    def _end_id(self, option: Literal["add_bos", "add_eos"]) -> int | None:
        token = getattr(self.config, option)
        if token is not None and token not in self._special_ids:
            raise ContractError(
                f"boundlessbpe: {option}={token!r} is no special token of "
                f"{self.config.tokenizer!r}",
                hint=f"its special tokens are {list(self._special_ids)}",
            )
        return self._special_ids.get(token)

    def _words(self, text: str) -> Iterator[str | int] | Sequence[str]:
        """Return the words of a text, and the ids of special tokens in it."""
        return self._split(text) if self._special is None else self._parsed(text)

    def _parsed(self, text: str) -> Iterator[str | int]:
        end = 0
        for match in self._special.finditer(text):
            yield from self._split(text[end : match.start()])
            yield self._special_ids[match[0]]
            end = match.end()
        yield from self._split(text[end:])

    def _word(self, word: str | int) -> "_Word":
        if isinstance(word, int):
            return _Word([word], -1, ALWAYS)
        known = self._known.get(word)
        if known is None:
            spelled = word.encode()
            tokens = self._model.tokens_of_word(spelled)
            symbol = self._runs.number(spelled)
            when = ALWAYS if tokens == [spelled] else NOT_AT_ALL
            if symbol >= 0 and self._model.is_one_pass:
                when = self._model.when_whole(spelled)
            ids = [self._model.ids[token] for token in tokens]
            known = _Word(ids, symbol if when != NOT_AT_ALL else -1, when)
            if len(self._known) >= MAX_KNOWN_WORDS:
                self._known = {}
            self._known[word] = known
        return known


class BoundlessBPETrainerConfig(TrainerConfig):
    """What a job may say about the trainer ``boundlessbpe``."""

    name: Literal["boundlessbpe"] = "boundlessbpe"
    vocab_size: Annotated[
        int,
        Field(
            gt=243,
            le=1 << 24,
            description="Tokens of the training inside words, and of the whole model unless its "
            "kind is superbpe.",
        ),
    ] = 131_072
    kind: Annotated[
        Literal["word", "boundless", "superbpe"],
        Field(
            description="word stops before merges across words; boundless mixes them in by their "
            "counts; superbpe adds `num_supers` of them."
        ),
    ] = "boundless"
    num_supers: Annotated[
        int | None, Field(gt=0, description="Tokens across words that superbpe adds.")
    ] = None
    tau: Annotated[
        float,
        Field(
            gt=0,
            description="Delete a token when a merge takes this share of its occurrences (the "
            "papers: 0.9); above 1 none is deleted.",
        ),
    ] = 1.1
    blowup: Annotated[
        bool,
        Field(description="A deleted token becomes its bytes, not the two tokens it was made of."),
    ] = True
    pattern: Annotated[
        str,
        Field(
            description="Words: a pattern of the package regex, or one of "
            f"{', '.join(PATTERNS)}. What lies between its matches are words too."
        ),
    ] = "gpt4o"
    script_pattern: Annotated[
        str | None, Field(description="Words of text in the scripts below; null: as elsewhere.")
    ] = None
    scripts: Annotated[
        tuple[str, ...],
        Field(min_length=1, description="Names in Unicode of the scripts with their own pattern."),
    ] = ("Han", "Hiragana", "Katakana", "Khmer", "Lao", "Myanmar", "Thai")
    merge_pattern: Annotated[
        str, Field(description="Tokens that hold a match of it may be merged across words.")
    ] = r"\p{L}"
    greedy_split: Annotated[
        bool,
        Field(description="Cut runs of words into their longest frequent parts before counting."),
    ] = False
    min_count: Annotated[
        int, Field(ge=1, description="What greedy_split calls frequent, at least.")
    ] = 15
    longest_part: Annotated[
        int, Field(ge=2, description="Words in a part that greedy_split cuts, at most.")
    ] = 30
    special_tokens: Annotated[
        tuple[str, ...], Field(description="Special tokens; they get the ids after the others.")
    ] = ()

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if (self.kind == "superbpe") != (self.num_supers is not None):
            wanted = "is needed for" if self.kind == "superbpe" else "belongs to"
            raise ValueError(f"num_supers {wanted} kind: superbpe; kind is {self.kind!r}")
        return self


class BoundlessBPETrainer(TokenizerTrainer[BoundlessBPETrainerConfig]):
    """Learn BoundlessBPE in two passes (https://arxiv.org/abs/2604.05192), perhaps with deletions.

    The first pass is BPE inside words. With ``tau`` at most 1, a merge may delete the token of its
    side (https://arxiv.org/abs/2409.04599). The second goes through runs of words that are single
    tokens and match ``merge_pattern``, and merges across them: each such merge goes before the next
    one of the first pass when it is strictly more frequent. Of pairs with one count that goes first
    whose bytes come first.

    Writes ``tokenizer.model``, which the operator ``boundlessbpe`` reads, and the authors' program.
    One core trains on 0.7 MB of English a second (16,000 tokens, ``tau`` 0.9).
    """

    Config = BoundlessBPETrainerConfig

    def train(self, documents: Documents, progress: Progress) -> Mapping[str, bytes]:
        """See ``TokenizerTrainer.train``."""
        from operators.text.algorithms import boundless_training as training
        from operators.text.algorithms.pretokens import count_pieces

        config = self.config
        settings = self._settings()
        split = pretokenizer(settings)
        words = count_pieces(documents, split, progress)
        if not words:
            raise ContractError(
                f"boundlessbpe: pattern {config.pattern!r} matches nothing in the documents",
                hint="choose another pattern",
            )
        model = training.train_words(words, config.vocab_size, config.tau, settings, progress)
        if config.kind in ("boundless", "superbpe"):
            eligible = self._eligible(model)
            texts = (text for part in documents() for text in part.to_pylist())
            runs = training.count_runs(map(split, texts), eligible.__contains__)
            if config.greedy_split:
                last = model.words.merges[-1].count if model.words.merges else 0
                least = max(last, config.min_count)
                runs = training.split_at_rare(runs, least, config.longest_part)
            is_super = config.kind == "superbpe"
            changed = {"tau": 1.1, "is_super": True, "superbpe_mode": is_super, "blowup": False}
            model = training.train_runs(
                model, runs, config.kind, config.num_supers or 0, settings | changed, progress
            )
        model.special_tokens = config.special_tokens
        return {"tokenizer.model": model.to_text().encode()}

    def identity(self) -> Mapping[str, object]:
        """Return the version of the package that knows Unicode."""
        return {"regex_version": version("regex")}

    def _settings(self) -> dict[str, Any]:
        config = self.config
        script_pattern = config.script_pattern
        if script_pattern is not None:
            script_pattern = PATTERNS.get(script_pattern, script_pattern)
        return {
            "tau": config.tau,
            "is_super": False,
            "superbpe_mode": False,
            "blowup": config.blowup,
            "main_regex": PATTERNS.get(config.pattern, config.pattern),
            "script_specific_regex": script_pattern,
            "script_specific_scripts": None if script_pattern is None else sorted(config.scripts),
            "merge_pattern": config.merge_pattern,
        }

    def _eligible(self, model: BoundlessModel) -> set[str]:
        """Return the words that may be merged with others."""
        regex = regex_library()
        try:
            wanted = regex.compile(self.config.merge_pattern)
        except regex.error as error:
            raise ContractError(
                f"boundlessbpe: merge_pattern {self.config.merge_pattern!r}: {error}",
                hint="write a pattern of the package regex",
            ) from None
        words = set()
        for token in model.reachable:
            try:
                word = token.decode()
            except UnicodeDecodeError:
                continue
            if wanted.search(word):
                words.add(word)
        return words


def pretokenizer(settings: Mapping[str, Any]) -> Split:
    """Return what cuts text into words, by the settings of a model."""
    main = _whole_text(settings["main_regex"])
    if not settings["script_specific_scripts"]:
        return main
    special = _whole_text(settings["script_specific_regex"])
    return script_splitter(main, special, settings["script_specific_scripts"])


def _whole_text(pattern: str) -> Split:
    """Return what cuts text into matches; what lies between them are pieces of their own."""
    matches, everything = splitter(pattern, "drop"), splitter(pattern, "keep")

    def split(text: str) -> Sequence[str]:
        pieces = matches(text)
        if sum(map(len, pieces)) == len(text):  # as a rule, and several times faster
            return pieces
        return [piece for piece in everything(text) if piece]

    return split


@dataclass(frozen=True, slots=True)
class _Word:
    """What becomes of a word.

    Attributes:
        ids: Its ids where it is not joined with others.
        symbol: Its number among what is merged across words, or -1.
        when_whole: See ``BoundlessModel.when_whole``.
    """

    ids: list[int]
    symbol: int
    when_whole: tuple[int, int, int]


class _Numbers(dict[str | int, int]):
    """Numbers words in the order in which they come up."""

    def __missing__(self, word: str | int) -> int:
        self[word] = len(self)
        return len(self) - 1


class _Runs:
    """Merges across words, as arrays.

    Args:
        model: The model.
    """

    def __init__(self, model: BoundlessModel) -> None:
        self._numbers: dict[bytes, int] = {}
        merges = [] if model.runs is None else model.runs.merges
        ranks: dict[int, tuple[int, int]] = {}
        for merge in merges:
            left, right, both = (
                self._numbers.setdefault(token, len(self._numbers))
                for token in (merge.left, merge.right, merge.left + merge.right)
            )
            ranks.setdefault((left << 32) | right, (merge.index, both))
        self._sides = {side for merge in merges for side in (merge.left, merge.right)}
        self._is_rising = model.is_one_pass
        keys = sorted(ranks)
        self._keys = np.array(keys, np.int64)
        self._ranks = np.array([ranks[key] for key in keys], np.int64).reshape(-1, 2)
        # A side may have been deleted since, and then has no id; it is not the result of a merge.
        self._ids = np.array([model.ids.get(token, -1) for token in self._numbers], np.int64)

    def number(self, token: bytes) -> int:
        """Return the number of a token that is merged with others, else -1."""
        return self._numbers[token] if token in self._sides else -1

    def join(
        self, words: Ragged, symbols: np.ndarray, when_whole: np.ndarray, ids: Ragged
    ) -> Ragged:
        """Return the ids of documents.

        Args:
            words: Numbers of the words of each document.
            symbols: Of each word, what ``number`` says.
            when_whole: int64 [words, 3], when each is one token.
            ids: Of each word.
        """
        from operators.text.algorithms.word_runs import join_words

        values, offsets = join_words(
            words.values,
            words.offsets,
            symbols,
            when_whole,
            ids.values,
            ids.offsets,
            self._keys,
            self._ranks,
            self._ids,
            self._is_rising,
        )
        return Ragged(values, offsets)


def _undecodable(column: pa.Array) -> dict[int, SampleError]:
    documents = utf8_bytes(column)
    errors = {}
    for row in range(len(documents)):
        try:
            documents[row].tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            errors[row] = SampleError(f"boundlessbpe: the text is no UTF-8: {error}")
    return errors
