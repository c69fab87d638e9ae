"""Tokenize text with any tokenizer.json or SentencePiece model, by the fastest exact library."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from operators.base import (
    Batch,
    FieldSpec,
    Operator,
    OperatorConfig,
    Ragged,
    TokenPieces,
    smallest_uint,
)
from operators.columns import take
from operators.errors import ContractError, RowErrors, SampleError
from operators.text.algorithms.token_pieces import pieces_of_tokenizer_json
from operators.text.backends.base import Policy, Reference
from operators.text.backends.choose import BackendName, Choice, choose
from operators.text.backends.reference import HuggingFace
from operators.text.backends.sentencepiece import SentencePiece
from operators.text.backends.spot_check import FIRST_DOCUMENTS, SpotCheck
from operators.text.document_ends import add_ends
from operators.text.id_set import IdSet
from operators.text.text_column import check_no_nulls, utf8_bytes
from operators.text.tokenizer_file import (
    TokenizerFile,
    is_path,
    is_sentencepiece_path,
    read_tokenizer_file,
)

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class TextTokenizerConfig(OperatorConfig):
    """What a job may say about ``text_tokenizer``."""

    name: Literal["text_tokenizer"] = "text_tokenizer"
    tokenizer: Annotated[
        str,
        Field(
            description="Path or URL of a tokenizer.json (ends in .json) or of a SentencePiece "
            "model (ends in .model), or a hub id owner/name."
        ),
    ]
    revision: Annotated[
        str | None,
        Field(description="Branch, tag or, best, commit of a hub id; its main branch if null."),
    ] = None
    backend: Annotated[
        BackendName,
        Field(
            description="Library that encodes: 'fast' (fastokens), 'tiktoken', 'sentencepiece' "
            "(for .model), 'reference' (tokenizers), or 'auto': the fastest that gives the "
            "reference's ids."
        ),
    ] = "auto"
    add_special_tokens: Annotated[
        bool, Field(description="Add what the tokenizer's own template says, e.g. [CLS] [SEP].")
    ] = False
    add_bos: Annotated[
        str | None, Field(description="Token that begins every document, e.g. <s>.")
    ] = None
    add_eos: Annotated[
        str | None, Field(description="Token that ends every document, e.g. <|endoftext|>.")
    ] = None
    special_tokens_in_text: Annotated[
        Literal["escape", "parse"],
        Field(
            description="A special token's name inside a document: 'escape' encodes it as the "
            "plain text it is, 'parse' turns it into the special token's id."
        ),
    ] = "escape"

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if is_path(self.tokenizer) or is_sentencepiece_path(self.tokenizer):
            if self.revision is not None:
                raise ValueError(
                    f"revision={self.revision!r} belongs to a hub id, "
                    f"but tokenizer={self.tokenizer!r} is a file; leave one out"
                )
        elif not _HUB_ID.fullmatch(self.tokenizer):
            raise ValueError(
                f"tokenizer={self.tokenizer!r} is neither a path that ends in .json or .model "
                "nor a hub id such as owner/name"
            )
        return self


class TextTokenizer(Operator[TextTokenizerConfig]):
    """Map text to the ids that a tokenizer's own library gives, document by document.

    Reads ``text``; adds ``tokens`` [T] of the smallest unsigned type that holds the vocabulary,
    whose size is the greatest id + 1 with added tokens. Normalisation and pre-tokenization are as
    the file says; its truncation, padding and BPE dropout are switched off. An empty document
    gives no ids but those of the ends. Added tokens that are not special are matched in text under
    both settings of ``special_tokens_in_text``: they are part of how the tokenizer reads text.
    Documents that are no UTF-8 are errors of their rows.

    The reference is ``tokenizers`` for a tokenizer.json and ``sentencepiece`` for a .model. The
    backend is chosen once, by the driver, in ``identity``: under ``auto`` the first of ``fast``
    and ``tiktoken`` that can express the tokenizer and gives the reference's ids on some 2,000
    built-in strings made to be difficult (code points of every plane beside letters, digits,
    blanks and marks, contractions, long runs, the tokenizer's own added tokens, and random mixtures
    of them). A library that differs is not used, with a warning in log, report and manifest. The
    choice is part of the fingerprint, and workers, who choose again by the same rule, refuse to
    work when they arrive at another backend or version: so all ids of a data set are those of one
    library, for any number of workers and after any resume. As a net below that, the beginnings of
    the first 16 documents of every partition are compared, and of one in every 16 MiB of text,
    drawn by what the documents hold. Where any differs, the whole run takes ``backend: reference``
    instead, with a warning in log, report and manifest, and what was made before is made anew.

    Works with every tokenizer.json of the hub, for example KL3M's (alea-institute/kl3m-001-32k,
    kl3m-003-64k, kl3m-004-128k-cased, kl3m-004-128k-uncased, kl3m-004-char-4k-cased, -8k- and
    -16k-, https://arxiv.org/abs/2503.17247): byte-level BPE whose 004 generation normalises to
    NFKC.

    One call uses one core: the libraries' own threads are switched off, since there is a worker for
    every core. Speed on one core, byte-level BPE of 32,000 ids on source code and its
    documentation: ``fast`` 160 MB/s (25 where no word comes twice, for it remembers words, in
    bounded memory), ``tiktoken`` 7, ``reference`` 2. All take time linear in a document's length
    but for a logarithm, also for one repeated character.

    Raises:
        SetupError: the file is missing or no tokenizer, or a package is missing.
        ContractError: the tokenizer has no token of the name in ``add_bos`` or ``add_eos``, or the
            backend that is asked for cannot express it.
        DecisionError: the backend gives other ids for a document than the reference.
    """

    Config = TextTokenizerConfig
    first_rows = FIRST_DOCUMENTS
    inputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The ids; reads the tokenizer when first asked."""
        size = self._reference.vocab_size
        return {"tokens": FieldSpec(smallest_uint(size), (None,), vocab_size=size)}

    def identity(self) -> Mapping[str, object]:
        """Return the file's digest, the hub commit it came from, and the backend with its version.

        Compares the backend with the reference, which takes a second or two, once a process.
        """
        choice = self._choice
        found: dict[str, object] = {
            "tokenizer_sha256": self._file.sha256,
            "backend": choice.backend.name,
            "library": choice.backend.library,
            "reference": self._reference.library,
        }
        warnings = [choice.warning] if choice.warning else []
        if self._file.commit is not None:
            found["commit"] = self._file.commit
            if not _COMMIT.fullmatch(self.config.revision or ""):
                warnings.append(
                    f"{self.config.tokenizer}: revision {self._revision!r} may move; "
                    f"set revision: {self._file.commit}"
                )
        if warnings:
            found["warning"] = "; ".join(warnings)
        return found

    def metadata(self) -> Mapping[str, object]:
        """Return the size of the vocabulary, the ids of the specials, and who encodes."""
        choice = self._choice
        return {
            "vocab_size": self._reference.vocab_size,
            "special_ids": {name: i for i, name in self._reference.special_tokens.items()},
            "bos_id": self._end_id("add_bos"),
            "eos_id": self._end_id("add_eos"),
            "backend": choice.backend.name,
            "backends_refused": dict(choice.refused),
        }

    def setup(self, device: str) -> None:  # noqa: ARG002 - a text tokenizer has no device
        """Load the tokenizer and fix how it treats special tokens."""
        self._backend = self._choice.backend
        self._bos, self._eos = self._end_id("add_bos"), self._end_id("add_eos")
        self._guarded = self._guarded_ids()
        template = self._reference.encode(pa.array([""], pa.large_string())).values
        self._num_guarded_in_template = len(self._guarded.find(template))
        self._spot_check = None
        if self._backend is not self._reference:
            self._spot_check = SpotCheck(self._backend, self._reference, self.config.tokenizer)

    def __getstate__(self) -> dict[str, object]:
        """Leave out what ``setup`` loads: not every library's tokenizer can be pickled."""
        return {name: self.__dict__[name] for name in ("config", "model_files") & vars(self).keys()}

    def look_at_first(self, batch: Batch) -> None:
        """Compare the backend with the reference on one of a partition's first documents."""
        if self._spot_check is not None:
            self._spot_check.compare(batch["text"])

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize every document."""
        column = batch["text"]
        check_no_nulls(column, self.config.name)
        if self._spot_check is not None:
            self._spot_check.compare(self._spot_check.drawn(column))
        try:
            rows = self._backend.encode(column)
        except UnicodeDecodeError:
            return self._without(_undecodable(column), batch)
        leaks = self._leaks(rows) if self._escapes else {}
        if leaks:
            return self._without(leaks, batch)
        dtype = smallest_uint(self._reference.vocab_size)
        return {"tokens": add_ends(rows, self._bos, self._eos, dtype)}

    def decode(self, batch: Batch) -> Batch:
        """Return ``text`` of ``tokens`` as the tokenizer's decoder writes it, without the ends.

        Under ``escape`` special tokens are dropped, since none of them was text; under ``parse``
        they are written out.
        """
        tokens: Ragged = batch["tokens"]
        bos, eos = self._end_id("add_bos"), self._end_id("add_eos")
        documents = []
        for row in range(len(tokens)):
            ids = tokens[row].tolist()
            start = 1 if ids[:1] == [bos] else 0
            stop = len(ids) - (1 if ids[start:][-1:] == [eos] else 0)
            documents.append(ids[start:stop])
        texts = self._reference.decode(documents, skip_special=self._escapes)
        return {"text": pa.array(texts, pa.large_string())}

    def pieces(self) -> TokenPieces:
        """Return what each id stands for, by the tokenizer's own decoder."""
        if isinstance(self._reference, SentencePiece):
            return self._reference.pieces()
        return pieces_of_tokenizer_json(self._file.data, self._reference.vocab_size)

    @property
    def _escapes(self) -> bool:
        return self.config.special_tokens_in_text == "escape"

    @property
    def _revision(self) -> str:
        return self.config.revision or "main"

    @cached_property
    def _file(self) -> TokenizerFile:
        return read_tokenizer_file(
            self.config.tokenizer, self._revision, self.model_files, sentencepiece=True
        )

    @cached_property
    def _reference(self) -> Reference:
        policy = Policy(parse=not self._escapes, template=self.config.add_special_tokens)
        read = SentencePiece if self._file.is_sentencepiece else HuggingFace
        return read(self._file.data, policy, self.config.tokenizer)

    @cached_property
    def _choice(self) -> Choice:
        return choose(self._reference, self.config.backend, self.config.tokenizer)

    def _end_id(self, option: Literal["add_bos", "add_eos"]) -> int | None:
        token = getattr(self.config, option)
        if token is None:
            return None
        found = self._reference.id_of(token)
        if found is None:
            special = list(self._reference.special_tokens.values())
            raise ContractError(
                f"text_tokenizer: {option}={token!r} is no token of {self.config.tokenizer!r}",
                hint=f"its special tokens are {special[:20]}",
            )
        return found

    def _guarded_ids(self) -> IdSet:
        """Return the special ids that no text may give under ``escape``."""
        unknown = self._reference.unknown_id  # text outside the vocabulary gives it, and rightly
        return IdSet(set(self._reference.special_tokens) - {unknown})

    def _leaks(self, rows: Ragged) -> dict[int, SampleError]:
        """Return the rows in which text became a special id in spite of ``escape``.

        The library can keep added tokens from being matched, but where the model's own vocabulary
        holds them as pieces (Unigram: T5, XLM-R), the model may still choose them.
        """
        positions = self._guarded.find(rows.values)
        if not len(positions):
            return {}
        num_guarded = np.diff(np.searchsorted(positions, rows.offsets))
        errors = {}
        for row in np.flatnonzero(num_guarded > self._num_guarded_in_template).tolist():
            special = self._reference.special_tokens
            ids = rows[row][self._guarded.find(rows[row])].tolist()
            errors[row] = SampleError(
                f"text_tokenizer: the text holds one of {sorted({special[i] for i in ids})} and "
                "this tokenizer's model has no other way to encode it than as a special token",
                hint="special_tokens_in_text: parse accepts that",
            )
        return errors

    def _without(self, errors: Mapping[int, SampleError], batch: Batch) -> Batch:
        good = np.setdiff1d(np.arange(len(batch["text"])), list(errors))
        raise RowErrors(errors, self({"text": take(batch["text"], good)}))


def _undecodable(column: pa.Array) -> dict[int, SampleError]:
    documents = utf8_bytes(column)
    errors = {}
    for row in range(len(documents)):
        try:
            documents[row].tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            errors[row] = SampleError(f"text_tokenizer: the text is no UTF-8: {error}")
    return errors
