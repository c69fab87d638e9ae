"""Tokenize text by dictionaries of roots, suffixes and pieces: a hybrid morphological tokenizer."""

# ruff: noqa: RUF001 - Turkish letters

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from operators.base import Batch, FieldSpec, Operator, OperatorConfig, Ragged, smallest_uint
from operators.errors import ContractError, SetupError
from operators.model_files import ModelFile
from operators.text.chunks import ChunkEncoder, bytes_of_ids, check_texts, ids_of_bytes
from operators.text.method_file import FoundFile, commit_identity, read_file

SPECIAL_IDS = {"<uppercase>": 0, "<unknown>": 1, " ": 2, "<pad>": 5, "<eos>": 6}
UPPERCASE, UNKNOWN, SPACE = 0, 1, 2
NUM_BYTES = 256
MAX_FORMS = 256

Form = tuple[int, int]
"""An id and which of its forms."""


class HybridMorphologyConfig(OperatorConfig):
    """What a job may say about ``hybrid_morphology``."""

    name: Literal["hybrid_morphology"] = "hybrid_morphology"
    dictionaries: Annotated[
        str,
        Field(
            min_length=1, description="Where the three files are: a folder, its URL or a hub id."
        ),
    ]
    revision: Annotated[
        str | None,
        Field(description="Branch, tag or, best, commit of a hub id; its main branch if null."),
    ] = None
    roots: Annotated[
        str, Field(min_length=1, description="File of roots and special tokens: form -> id.")
    ] = "kokler.json"
    suffixes: Annotated[str, Field(min_length=1, description="File of suffixes: form -> id.")] = (
        "ekler.json"
    )
    pieces: Annotated[
        str, Field(min_length=1, description="File of pieces for everything else: form -> id.")
    ] = "bpe_tokenler.json"
    casing: Annotated[
        Literal["turkish", "unicode"],
        Field(description="What letters i and I belong to: i İ and ı I, or i I as elsewhere."),
    ] = "turkish"
    lossless: Annotated[
        bool,
        Field(
            description="Keep all text: unknown characters as bytes, and which form of its id a "
            "token is in the field `forms`. False does what the authors' code does."
        ),
    ] = True


class HybridMorphology(Operator[HybridMorphologyConfig]):
    """Map text to roots, suffixes and pieces, where the forms of one morpheme share one id.

    "Tokens with Meaning" (https://arxiv.org/abs/2508.14292): text is cut at spaces and
    before capitals; a capital becomes ``<uppercase>`` (0) and its small letter. Each part is read
    from its start: the longest root, else the longest suffix, else the longest piece, so that a
    short root goes before a longer suffix. A space between parts is id 2.

    Reads ``text``; adds ``tokens`` [T] of the smallest unsigned type that holds the ids, and, when
    ``lossless``, ``forms`` uint8 [T]: which form of its id each token was, so that ``decode`` gives
    back the text exactly. Then a character that no dictionary holds becomes its UTF-8 bytes, ids
    from the dictionaries' size up; a capital that has no small letter of its own stays as it is;
    and names of special tokens in the text are text.

    ``lossless: false`` gives the ids of the authors' code: an unknown character is ``<unknown>``
    (1), parts of only whitespace vanish, and ``decode`` guesses forms from the sounds around them
    by rules for the Turkish dictionaries, whatever the dictionaries are.

    The dictionaries are JSON files, form -> id, in which the order of the forms of an id counts;
    those of Turkish (kokler.json, ekler.json, bpe_tokenler.json; MIT) are in the authors' package.

    Checked: every case of the authors' code (text and 60 lists of ids to decode, with small
    dictionaries; 17 texts with the published ones), a brute-force reading, and text -> ids -> text
    for any text.
    Speed on one core: 8 MB/s or 2.4 million tokens/s with the published dictionaries.

    Raises:
        SetupError: a file is missing or no such dictionary.
    """

    Config = HybridMorphologyConfig
    inputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The ids and, when lossless, their forms; reads the dictionaries when first asked."""
        tokens = FieldSpec(self._dtype, (None,), vocab_size=self._vocab_size)
        if not self.config.lossless:
            return {"tokens": tokens}
        return {"tokens": tokens, "forms": FieldSpec("uint8", (None,), vocab_size=MAX_FORMS)}

    def identity(self) -> Mapping[str, object]:
        """Return the digests of the dictionaries and the commit they came from."""
        config = self.config
        found: dict[str, object] = {name: file.sha256 for name, file in self._files.items()}
        commit = next(iter(self._files.values())).commit
        return found | dict(commit_identity(commit, config.revision, config.dictionaries))

    def metadata(self) -> Mapping[str, object]:
        """Return the size of the vocabulary, where the bytes begin and the special ids."""
        found: dict[str, object] = {
            "vocab_size": self._vocab_size,
            "special_ids": dict(SPECIAL_IDS),
            "bos_id": None,
            "eos_id": None,
        }
        if self.config.lossless:
            found["first_byte_id"] = self._num_ids
        return found

    def setup(self, device: str) -> None:  # noqa: ARG002 - a text tokenizer has no device
        """Read the dictionaries."""
        self._encoder = ChunkEncoder(self._encode, b" ")
        self._tables = tuple(self._table(name) for name in self._files)

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize every document."""
        check_texts(self, batch)
        pairs = ids_of_bytes(self._encoder(batch["text"]), self._dtype, width=2)
        tokens = Ragged(np.ascontiguousarray(pairs.values[:, 0]), pairs.offsets)
        if not self.config.lossless:
            return {"tokens": tokens}
        return {
            "tokens": tokens,
            "forms": Ragged(pairs.values[:, 1].astype("uint8"), pairs.offsets),
        }

    def decode(self, batch: Batch) -> Batch:
        """Return ``text`` of ``tokens`` (and ``forms``): the text itself, or the rules' guess."""
        from operators.text.algorithms.turkish_forms import text_of_ids

        tokens: Ragged = batch["tokens"]
        if not self.config.lossless:
            ids = [tokens[row].tolist() for row in range(len(tokens))]
            texts = [text_of_ids(document, self._forms) for document in ids]
        else:
            if "forms" not in batch:
                raise ContractError("hybrid_morphology: decode needs `forms` beside `tokens`")
            rows = range(len(tokens))
            texts = [self._joined(tokens[row], batch["forms"][row]) for row in rows]
        return {"text": pa.array(texts, pa.large_string())}

    @cached_property
    def _files(self) -> Mapping[str, FoundFile]:
        config = self.config
        kind = self.model_files.kind_of(config.dictionaries)
        found = {}
        for name in ("roots", "suffixes", "pieces"):
            file = ModelFile(kind, config.dictionaries, getattr(config, name), config.revision)
            found[name] = read_file(file, f"hybrid_morphology: {name}", self.model_files)
        return found

    @cached_property
    def _ids(self) -> Mapping[str, Mapping[str, int]]:
        """Name of a dictionary -> form -> id."""
        found = {}
        for name, file in self._files.items():
            try:
                table = json.loads(file.data)
                good = all(type(i) is int and 0 <= i < 2**31 for i in table.values())
            except (ValueError, AttributeError):
                good = False
            if not good:
                raise SetupError(
                    f"hybrid_morphology: {getattr(self.config, name)} is no dictionary",
                    hint='expected one JSON object of forms and ids, such as {"ev": 2400}',
                )
            found[name] = table
        special = {form: found["roots"].get(form) for form in SPECIAL_IDS}
        if special != SPECIAL_IDS:
            raise SetupError(
                f"hybrid_morphology: {self.config.roots} gives the special tokens {special}",
                hint=f"expected {SPECIAL_IDS}",
            )
        return found

    @cached_property
    def _forms(self) -> Mapping[int, list[str]]:
        """Id -> its forms in the order of the files."""
        found: dict[int, list[str]] = {}
        for table in self._ids.values():
            for form, token in table.items():
                found.setdefault(token, []).append(form)
        most = max(found, key=lambda token: len(found[token]))
        if len(found[most]) > MAX_FORMS:
            raise SetupError(
                f"hybrid_morphology: id {most} has {len(found[most])} forms",
                hint=f"expected at most {MAX_FORMS}",
            )
        return found

    @cached_property
    def _num_ids(self) -> int:
        return max(self._forms) + 1

    @property
    def _vocab_size(self) -> int:
        return self._num_ids + (NUM_BYTES if self.config.lossless else 0)

    @cached_property
    def _dtype(self) -> str:
        return smallest_uint(self._vocab_size)

    def _table(self, name: str) -> tuple[Mapping[str, Form], int]:
        """Return what forms of a dictionary become, and the length of the longest one."""
        names = {"<uppercase>", "<unknown>", "<pad>", "<eos>"} if self.config.lossless else set()
        kept = {form: i for form, i in self._ids[name].items() if form and form not in names}
        found = {form: (i, self._forms[i].index(form)) for form, i in kept.items()}
        return found, max(map(len, found), default=0)

    def _encode(self, chunk: str) -> bytes:
        part = chunk[:-1] if chunk.endswith(" ") else chunk
        found: list[Form] = []
        if self.config.lossless or part.strip():
            for is_upper, segment in self._segments(part):
                if is_upper:
                    found.append((UPPERCASE, 0))
                found += self._read(segment)
        if len(part) < len(chunk):
            found.append((SPACE, self._forms[SPACE].index(" ")))
        return bytes_of_ids([i for form in found for i in form], self._dtype)

    def _segments(self, part: str) -> Iterator[tuple[bool, str]]:
        """Cut before capitals: whether a capital was there, and the text in small letters."""
        is_upper = [self._is_upper(char) for char in part]
        starts = [0, *(i for i in range(1, len(part)) if is_upper[i])]
        for start, end in zip(starts, [*starts[1:], len(part)], strict=True):
            if start == end:
                continue
            text = part[start:end]
            if not self.config.lossless:
                text = self._lower(text)
            elif is_upper[start]:
                text = self._lower(text[0]) + text[1:]
            yield is_upper[start], text

    def _read(self, segment: str) -> list[Form]:
        found: list[Form] = []
        start = 0
        while start < len(segment):
            form, end = self._longest(segment, start)
            if form is not None:
                found.append(form)
            elif self.config.lossless:
                found += [(self._num_ids + byte, 0) for byte in segment[start].encode()]
            else:
                found.append((UNKNOWN, 0))
            start = end
        return found

    def _longest(self, segment: str, start: int) -> tuple[Form | None, int]:
        """Return the form at a position and its end; None, and the next position, without one."""
        for table, longest in self._tables:
            for end in range(min(len(segment), start + longest), start, -1):
                form = table.get(segment[start:end])
                if form is not None:
                    return form, end
        return None, start + 1

    def _joined(self, tokens: np.ndarray, forms: np.ndarray) -> str:
        """Return the text of ids and forms."""
        parts: list[str] = []
        pending = bytearray()
        raise_next = False
        for token, form in [*zip(tokens.tolist(), forms.tolist(), strict=True), (None, 0)]:
            if token is not None and token >= self._num_ids:
                pending.append(token - self._num_ids)
                continue
            texts = [pending.decode(errors="replace")] if pending else []
            pending.clear()
            if token is not None and token != UPPERCASE:
                texts.append(self._forms[token][form])
            for text in texts:
                parts.append(self._upper(text[0]) + text[1:] if raise_next else text)
                raise_next = False
            raise_next = raise_next or token == UPPERCASE
        return "".join(parts)

    def _is_upper(self, char: str) -> bool:
        if not char.isupper():
            return False
        lower = self._lower(char)
        return not self.config.lossless or (len(lower) == 1 and self._upper(lower) == char)

    def _lower(self, text: str) -> str:
        if self.config.casing == "turkish":
            text = text.replace("İ", "i").replace("I", "ı")
        return text.lower()

    def _upper(self, char: str) -> str:
        if self.config.casing == "turkish" and char in "iı":
            return "İ" if char == "i" else "I"
        return char.upper()
