"""Tokenize text by a lexicon that was learned by reading: Less-is-Better (LiB)."""

import json
import random
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from operators.base import Batch, FieldSpec, Operator, Ragged, smallest_uint
from operators.columns import take
from operators.errors import ContractError, SetupError
from operators.text.chunks import check_texts
from operators.text.method_file import (
    FoundFile,
    MethodFileConfig,
    method_identity,
    read_method_file,
)
from operators.text.text_column import text_of_bytes, utf8_bytes
from operators.text.training import Documents, Progress, TokenizerTrainer, TrainerConfig

FILE_NAME = "lib.json"
NUM_BYTES = 256
MAX_SENTENCE_CHARACTERS = 1000
_WHITESPACE = r"[\s\x0b\x1c-\x1f\x{85}\p{Z}]+"

Spaces = Literal["keep", "remove"]


class LiBConfig(MethodFileConfig):
    """What a job may say about ``lib``."""

    file_name = FILE_NAME

    name: Literal["lib"] = "lib"
    max_len: Annotated[
        int | None,
        Field(
            ge=1,
            description="Characters of the longest chunk that is used; all if null. The authors' "
            "function has 10.",
        ),
    ] = None
    decompose: Annotated[
        bool,
        Field(
            description="Write a chunk as two of better rank where it can be cut into such, and "
            "these again."
        ),
    ] = False
    unknown: Annotated[
        Literal["bytes", "one_id"],
        Field(
            description="A character that the lexicon lacks: its UTF-8 bytes, or one id for all."
        ),
    ] = "bytes"


class LiB(Operator[LiBConfig]):
    """Map text to chunks of a learned lexicon, the longest that fits at every position.

    Less-is-Better (Yang et al., "Less is Better: A cognitively inspired unsupervised model for
    language segmentation", 2020; "Rethinking Tokenization", 2024): the lexicon holds subwords,
    words and phrases, learned from text without marks by the trainer of the same name.

    Reads ``text``; adds ``tokens`` [T] of the smallest unsigned type that holds the ids. A chunk's
    id is its rank in the lexicon; the next 256 are the bytes of unknown characters (or, with
    ``unknown: one_id``, the next one is any of them), so that ``decode`` gives back the text. Where
    the lexicon was learned without whitespace (``spaces: remove``), text loses it here as well.

    ``tokenizer`` is a ``lib.json`` that the trainer writes: the lexicon, best chunk first.

    Checked: lexicons after every recorded article of the authors' code (3 runs), its readings with
    and without decomposing (180 sentences), a brute-force reading, and text -> ids -> text.
    Speed on one core: 100 MB/s or 30 million tokens/s (source code, 9,900 chunks).

    Raises:
        SetupError: the file is missing or no such lexicon, or numba is missing.
    """

    Config = LiBConfig
    inputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The ids; reads the lexicon when first asked."""
        size = self._vocab_size
        return {"tokens": FieldSpec(smallest_uint(size), (None,), vocab_size=size)}

    def identity(self) -> Mapping[str, object]:
        """Return the digest of the lexicon."""
        return method_identity(self.config, self._file)

    def metadata(self) -> Mapping[str, object]:
        """Return the size of the vocabulary and what follows the lexicon in it."""
        size = len(self._lexicon)
        found: dict[str, object] = {"vocab_size": self._vocab_size, "bos_id": None, "eos_id": None}
        if self.config.unknown == "bytes":
            return {**found, "special_ids": {}, "first_byte_id": size}
        return {**found, "special_ids": {"<unknown>": size}}

    def setup(self, device: str) -> None:  # noqa: ARG002 - a text tokenizer has no device
        """Read the lexicon and compile the reading."""
        from operators.text.algorithms.trie import build_trie

        longest = self.config.max_len
        pieces = {
            chunk.encode(): rank
            for rank, chunk in enumerate(self._lexicon)
            if longest is None or len(chunk) <= longest
        }
        self._nodes = build_trie(pieces).nodes
        self._parts = self._decomposed() if self.config.decompose else None
        self._read(Ragged(np.empty(0, np.uint8), np.zeros(1, np.int64)))

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize every document."""
        check_texts(self, batch)
        column = batch["text"]
        if self._spaces == "remove":
            column = pc.replace_substring_regex(column, pattern=_WHITESPACE, replacement="")
        rows = self._read(utf8_bytes(column))
        if self._parts is not None:
            parts: Ragged = take(self._parts, rows.values)
            rows = Ragged(parts.values, parts.offsets[rows.offsets])
        dtype = smallest_uint(self._vocab_size)
        return {"tokens": Ragged(rows.values.astype(dtype), rows.offsets)}

    def decode(self, batch: Batch) -> Batch:
        """Return ``text`` of ``tokens``; unknown characters of one id come back as U+FFFD."""
        tokens: Ragged = batch["tokens"]
        spelled: Ragged = take(self._spellings, tokens.values.astype(np.int64))
        return {"text": text_of_bytes(Ragged(spelled.values, spelled.offsets[tokens.offsets]))}

    @cached_property
    def _file(self) -> FoundFile:
        return read_method_file(self.config, self.model_files)

    @cached_property
    def _content(self) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = json.loads(self._file.data)
            chunks = found["lexicon"]
            good = found["spaces"] in ("keep", "remove") and len(set(chunks)) == len(chunks) > 0
            good = good and all(isinstance(chunk, str) and chunk for chunk in chunks)
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            raise SetupError(
                f"lib: tokenizer {self.config.tokenizer!r} is no lexicon of this method",
                hint='expected JSON such as {"spaces": "keep", "lexicon": ["the", "a"]}, '
                "no chunk twice; pipeline train-tokenizer with the trainer `lib` writes one",
            )
        return found

    @property
    def _lexicon(self) -> list[str]:
        chunks: list[str] = self._content["lexicon"]
        return chunks

    @property
    def _spaces(self) -> Spaces:
        spaces: Spaces = self._content["spaces"]
        return spaces

    @property
    def _vocab_size(self) -> int:
        return len(self._lexicon) + (NUM_BYTES if self.config.unknown == "bytes" else 1)

    @cached_property
    def _spellings(self) -> Ragged:
        """Id -> its UTF-8."""
        if self.config.unknown == "bytes":
            others = [bytes([byte]) for byte in range(NUM_BYTES)]
        else:
            others = ["\ufffd".encode()]
        spellings = [*(chunk.encode() for chunk in self._lexicon), *others]
        return utf8_bytes(pa.array(spellings, pa.large_binary()))

    def _read(self, rows: Ragged) -> Ragged:
        from operators.text.algorithms.greedy_pieces import read_greedily

        size = len(self._lexicon)
        unknown = size if self.config.unknown == "one_id" else -1
        return Ragged(*read_greedily(rows.values, rows.offsets, self._nodes, size, unknown))

    def _decomposed(self) -> Ragged:
        """Return for each id the ids that stand for it: itself, or two to four of better rank."""
        ranks = {chunk: rank for rank, chunk in enumerate(self._lexicon)}
        halves = [_better_halves(chunk, rank, ranks) for chunk, rank in ranks.items()]
        parts = [[quarter for half in pair for quarter in halves[half]] for pair in halves]
        parts += [[i] for i in range(len(parts), self._vocab_size)]
        offsets = np.cumsum([0, *map(len, parts)])
        return Ragged(np.array([i for part in parts for i in part], np.int64), offsets)


def _better_halves(chunk: str, rank: int, ranks: Mapping[str, int]) -> tuple[int, ...]:
    """Return the ranks of the best two chunks that make up one, or its own if none are better."""
    cuts = ((chunk[:at], chunk[at:]) for at in range(len(chunk) - 1, 0, -1))
    pairs = [(ranks[a], ranks[b]) for a, b in cuts if a in ranks and b in ranks]
    best = min(pairs, default=(rank, rank))
    return best if max(best) < rank else (rank,)


class LiBTrainerConfig(TrainerConfig):
    """What a job may say about the trainer ``lib``."""

    name: Literal["lib"] = "lib"
    spaces: Annotated[
        Spaces,
        Field(
            description="Whitespace is text like any other, or is dropped as in the authors' "
            "experiments, so that words are found without it."
        ),
    ] = "keep"
    passes: Annotated[int, Field(ge=1, le=1000, description="How often all text is read.")] = 1
    article_sentences: Annotated[
        int, Field(ge=1, description="Lines that are read before the lexicon is set in order.")
    ] = 200
    life: Annotated[
        int, Field(ge=1, description="Articles that an unused chunk at the end survives.")
    ] = 10
    max_len: Annotated[int, Field(ge=2, description="Characters of the longest chunk.")] = 12
    memory_in: Annotated[
        float, Field(ge=0, le=1, description="Probability that two neighbours are taken note of.")
    ] = 0.25
    memory_out: Annotated[
        float,
        Field(ge=0, le=1, description="Share of the lexicon's end at risk after each article."),
    ] = 0.0001
    update_rate: Annotated[
        float, Field(ge=0, lt=1, description="Share of its rank by which a chunk is moved.")
    ] = 0.2
    mini_gap: Annotated[
        int, Field(ge=0, description="Characters of the longest unknown string that is learned.")
    ] = 2
    seed: Annotated[int, Field(ge=0, description="Of the random numbers.")] = 0


class LiBTrainer(TokenizerTrainer[LiBTrainerConfig]):
    """Learn a lexicon by reading, for the operator ``lib``.

    The reader of Less-is-Better, as in the authors' code: see
    ``operators.text.algorithms.lexicon_learning``. It begins with the characters of the first
    article, in the order of their code points (the authors' order is not defined). A sentence is a
    line, at most 1,000 characters of it, an article so many sentences, across documents.

    Speed on one core: 0.5 million characters/s at 10,000 chunks.

    Raises:
        ContractError: there is no text.
    """

    Config = LiBTrainerConfig

    def train(self, documents: Documents, progress: Progress) -> Mapping[str, bytes]:
        """Return ``lib.json``."""
        from operators.text.algorithms.lexicon_learning import Habits, Reader

        config = self.config
        habits = Habits(
            life=config.life,
            max_len=config.max_len,
            memory_in=config.memory_in,
            memory_out=config.memory_out,
            update_rate=config.update_rate,
            mini_gap=config.mini_gap,
        )
        reader = Reader(habits, random.Random(config.seed).random)
        num_read = 0
        for _ in range(config.passes):
            for article in self._articles(documents):
                if not num_read:
                    reader.begin(sorted({char for sentence in article for char in sentence}))
                reader.read(article)
                num_read += 1
                progress("articles", num_read, 0)
        if not reader.lexicon:
            raise ContractError("lib: there is no text to learn from", hint="see the job's source")
        found = {"spaces": config.spaces, "lexicon": reader.lexicon}
        return {FILE_NAME: json.dumps(found, ensure_ascii=False, indent=0).encode() + b"\n"}

    def _articles(self, documents: Documents) -> Iterator[list[str]]:
        article: list[str] = []
        for texts in documents():
            for text in texts.to_pylist():
                for sentence in self._sentences(text):
                    article.append(sentence)
                    if len(article) == self.config.article_sentences:
                        yield article
                        article = []
        if article:
            yield article

    def _sentences(self, text: str) -> Iterator[str]:
        for line in text.split("\n"):
            kept = line if self.config.spaces == "keep" else "".join(line.split())
            for start in range(0, len(kept), MAX_SENTENCE_CHARACTERS):
                yield kept[start : start + MAX_SENTENCE_CHARACTERS]
