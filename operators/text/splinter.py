"""Rewrite words of Hebrew, Arabic or Malay as root letters and affix letters (SPLINTER)."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from operators.base import Batch, FieldSpec, Operator
from operators.errors import ContractError, SetupError
from operators.text.chunks import (
    MAX_REMEMBERED_CHARACTERS,
    MAX_REMEMBERED_CHUNKS,
    ChunkEncoder,
    check_texts,
    cut_after,
)
from operators.text.method_file import (
    FoundFile,
    MethodFileConfig,
    method_identity,
    read_method_file,
)
from operators.text.text_column import text_of_bytes
from operators.text.training import Documents, Progress, TokenizerTrainer, TrainerConfig

FILE_NAME = "splinter.json"
AUTHORS_FIRST_CODE = 0x5000
SURROGATES = range(0xD800, 0xE000)
MAX_CODE = 0x10FFFF

_SEPARATOR = r'[.\s\-,:"()]'
_WORDS = re.compile(f"({_SEPARATOR}+)")
_SENTENCE_ENDS = re.compile(r"[.\n]")
_CHUNK_ENDS = b'. \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f-,:"()'

LanguageName = Literal["he", "ar", "ms"]


class SplinterConfig(MethodFileConfig):
    """What a job may say about ``splinter``."""

    file_name = FILE_NAME

    name: Literal["splinter"] = "splinter"
    lossless: Annotated[
        bool,
        Field(
            description="Keep punctuation, whitespace and diacritics, so that the text can be had "
            "back. False drops them as the authors' code does."
        ),
    ] = True


class Splinter(Operator[SplinterConfig]):
    """Rewrite text so that a tokenizer trained on it sees roots and templates as pieces.

    SPLINTER (https://arxiv.org/abs/2503.14433): letters are taken out of a word one by
    one, the most probable ones by a map learned for the language, until three are left. The word
    becomes one character for each of these, in order, and then one for each letter that was taken
    out, which says which letter and where, the innermost first. A word with other characters than
    letters gets the characters of its letters only.

    Reads ``text``; adds ``splintered`` (text). The new characters are those of the map, from
    U+E000 (private use) where this project trained it; the authors' are from U+5000, which are
    Chinese characters. ``decode`` turns ``splintered`` back into ``text``.

    ``lossless`` keeps what stands between words and around them: whatever text comes in comes out
    of ``decode``. A word with diacritics counts as one with other characters, and a new character
    that stands in the text itself is escaped by the character after the last new one.
    ``lossless: false`` gives what the authors' code gives: diacritics and ``- , : " ( )`` are
    dropped, words joined by a space, sentences by a line's end.

    ``tokenizer`` is a ``splinter.json`` that the trainer of the same name writes. Train and run any
    tokenizer on ``splintered``.

    Checked: maps, codes and texts of the authors' code (4 runs, 250 texts), a brute-force beam,
    and text -> splintered -> text for any text.
    Speed on one core: 13 MB/s (Hebrew, Malay), 7 MB/s with ``lossless: false``.

    Raises:
        SetupError: the file is missing or no such map.
    """

    Config = SplinterConfig
    inputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}
    outputs: Mapping[str, FieldSpec] = {"splintered": FieldSpec("string")}

    def identity(self) -> Mapping[str, object]:
        """Return the digest of the map."""
        return method_identity(self.config, self._file)

    def metadata(self) -> Mapping[str, object]:
        """Return the language and the first and last of the new characters."""
        codes = self._map["codes"].values()
        return {"language": self._map["language"], "first": min(codes), "last": max(codes)}

    def setup(self, device: str) -> None:  # noqa: ARG002 - a text tokenizer has no device
        """Read the map."""
        from operators.text.algorithms.word_splinters import WordSplinterer

        reductions = {int(n): shares for n, shares in self._map["reductions"].items()}
        self._splinterer = WordSplinterer(reductions)
        self._encoder = ChunkEncoder(self._rewritten_chunk, _CHUNK_ENDS)
        self._remembered_word: Callable[[str], str] = lru_cache(MAX_REMEMBERED_CHUNKS)(
            self._rewritten_word
        )
        diacritics = self._language.diacritics
        self._drop_diacritics = dict.fromkeys(map(ord, diacritics))

    def __call__(self, batch: Batch) -> Batch:
        """Rewrite every document."""
        check_texts(self, batch)
        if self.config.lossless:
            return {"splintered": text_of_bytes(self._encoder(batch["text"]))}
        texts = [self._rewritten_by_authors(text) for text in batch["text"].to_pylist()]
        return {"splintered": pa.array(texts, pa.large_string())}

    def decode(self, batch: Batch) -> Batch:
        """Return ``text`` of ``splintered``."""
        texts = []
        for text in batch["splintered"].to_pylist():
            parts = _WORDS.split(text)
            words = [self._original_word(word) for word in parts[::2]]
            pairs = zip(words, [*parts[1::2], ""], strict=True)
            texts.append("".join(part for pair in pairs for part in pair))
        return {"text": pa.array(texts, pa.large_string())}

    @cached_property
    def _file(self) -> FoundFile:
        return read_method_file(self.config, self.model_files)

    @cached_property
    def _map(self) -> Mapping[str, Any]:
        from operators.text.algorithms.word_splinters import LANGUAGES

        try:
            found: Mapping[str, Any] = json.loads(self._file.data)
            used = {key for shares in found["reductions"].values() for key in shares}
            used.update(LANGUAGES[found["language"]].letters)
            missing = used - set(found["codes"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._unlike(repr(error)) from None
        if missing:
            raise self._unlike(f"it has no codes for {sorted(missing)[:5]}")
        return found

    def _unlike(self, found: str) -> SetupError:
        return SetupError(
            f"splinter: tokenizer {self.config.tokenizer!r} is no map of this method: {found}",
            hint="pipeline train-tokenizer with the trainer `splinter` writes one",
        )

    @cached_property
    def _language(self) -> Any:
        from operators.text.algorithms.word_splinters import LANGUAGES

        return LANGUAGES[self._map["language"]]

    @cached_property
    def _codes(self) -> Mapping[str, str]:
        """Letter or reduction -> the character that stands for it."""
        codes: Mapping[str, str] = self._map["codes"]
        return codes

    @cached_property
    def _units(self) -> Mapping[str, str]:
        """The character that stands for a letter or reduction -> it."""
        return {code: unit for unit, code in self._codes.items()}

    @cached_property
    def _escape(self) -> str:
        return chr(ord(max(self._units)) + 1)

    def _rewritten_chunk(self, chunk: str) -> bytes:
        parts = _WORDS.split(chunk)
        parts[::2] = [self._rewritten_word(word) for word in parts[::2]]
        return "".join(parts).encode()

    def _rewritten_by_authors(self, text: str) -> str:
        lines = []
        for sentence in _SENTENCE_ENDS.split(text.translate(self._drop_diacritics)):
            words = [
                self._remembered_word(word)
                if len(word) <= MAX_REMEMBERED_CHARACTERS
                else self._rewritten_word(word)
                for word in _WORDS.split(sentence)[::2]
                if word
            ]
            if words:
                lines.append(" ".join(words))
        return "\n".join(lines)

    def _rewritten_word(self, word: str) -> str:
        letters, codes = self._language.letters, self._codes
        swapped = self._language.swap_final(word)
        if all(char in letters for char in swapped):
            return "".join(codes[unit] for unit in self._splinterer.take_apart(swapped))
        if self.config.lossless:
            escape = self._escape
            return "".join(
                escape + char if char in self._units or char == escape else codes.get(char, char)
                for char in swapped
            )
        return "".join(codes.get(char, char) for char in swapped)

    def _original_word(self, word: str) -> str:
        from operators.text.algorithms.word_splinters import put_together

        if all(char in self._units for char in word):
            return str(self._language.swap_final(put_together([self._units[c] for c in word])))
        found = []
        is_escaped = False
        for char in word:
            if self.config.lossless and char == self._escape and not is_escaped:
                is_escaped = True
            else:
                found.append(char if is_escaped else self._units.get(char, char))
                is_escaped = False
        return str(self._language.swap_final("".join(found)))


class SplinterTrainerConfig(TrainerConfig):
    """What a job may say about the trainer ``splinter``."""

    name: Literal["splinter"] = "splinter"
    language: Annotated[
        LanguageName, Field(description="Whose letters: Hebrew (he), Arabic (ar) or Malay (ms).")
    ]
    letters: Annotated[
        str | None,
        Field(min_length=1, description="Letters that may be taken out of words; all if null."),
    ] = None
    min_count: Annotated[
        int, Field(ge=1, description="Words that occur less often are not learned from.")
    ] = 10
    first_code: Annotated[
        int,
        Field(
            ge=0x3000,
            le=0x10F000,
            description="Code point of the first new character: U+E000 begins private use; the "
            "authors' code has U+5000, which is Chinese.",
        ),
    ] = 0xE000


class SplinterTrainer(TokenizerTrainer[SplinterTrainerConfig]):
    """Learn which letters are taken out of words, for the operator ``splinter``.

    In two passes over the counted words (https://arxiv.org/abs/2503.14433): how many
    words of each length lose a letter to become another word, and which loss each word prefers, by
    the share of the loss and the frequency of what is left. Words are counted as the authors' code
    does: without diacritics, between whitespace and ``. - , : " ( )``.

    Speed on one core: 8 MB/s.

    Raises:
        ContractError: no word is frequent enough, or the new characters have no room.
    """

    Config = SplinterTrainerConfig

    def train(self, documents: Documents, progress: Progress) -> Mapping[str, bytes]:
        """Return ``splinter.json``."""
        from operators.text.algorithms.word_splinters import LANGUAGES, learn_reductions

        config = self.config
        language = LANGUAGES[config.language]
        counts = self._count(documents, progress)
        kept = language.words(counts, config.min_count)
        if not kept:
            raise ContractError(
                f"splinter: none of {len(counts):,} words has at least {config.min_count} "
                f"occurrences and only letters of {config.language!r}",
                hint="give it more documents, or a smaller min_count",
            )
        progress("reductions", 0, 1)
        reductions = learn_reductions(kept, config.letters)
        progress("reductions", 1, 1)
        codes = codes_of(language.letters, reductions, config.first_code)
        found = {
            "language": config.language,
            "reductions": {str(length): shares for length, shares in reductions.items()},
            "codes": codes,
        }
        return {FILE_NAME: json.dumps(found, ensure_ascii=False, indent=0).encode() + b"\n"}

    def _count(self, documents: Documents, progress: Progress) -> Mapping[str, int]:
        """Return how often each word occurs."""
        from operators.text.algorithms.word_splinters import LANGUAGES

        drop = dict.fromkeys(map(ord, LANGUAGES[self.config.language].diacritics))
        counts: Counter[str] = Counter()
        num_documents = 0
        for texts in documents():
            chunks, _ = cut_after(texts, _CHUNK_ENDS)
            found = chunks.value_counts()
            numbers = np.asarray(found.field("counts"))
            for chunk, number in zip(
                found.field("values").to_pylist(), numbers.tolist(), strict=True
            ):
                for word in _WORDS.split(chunk.translate(drop))[::2]:
                    counts[word] += number
            num_documents += len(texts)
            progress("words", num_documents, 0)
        return counts


def codes_of(
    letters: str, reductions: Mapping[int, Mapping[str, float]], first: int
) -> Mapping[str, str]:
    """Return the characters that stand for letters and reductions, in the order of their names.

    Raises:
        ContractError: there is no room for them, and for the escape after them.
    """
    units = sorted({*letters, *(key for shares in reductions.values() for key in shares)})
    last = first + len(units)  # the escape
    if last > MAX_CODE or (first < SURROGATES.stop and SURROGATES.start <= last):
        raise ContractError(
            f"splinter: first_code {first:#x} leaves no room for {len(units) + 1:,} characters "
            "that are neither surrogates (U+D800..U+DFFF) nor above U+10FFFF",
            hint="first_code: 0xE000",
        )
    return {unit: chr(first + i) for i, unit in enumerate(units)}
