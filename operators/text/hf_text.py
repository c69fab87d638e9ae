"""Tokenize text with any tokenizer.json, through the Hugging Face ``tokenizers`` library."""

import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

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
from operators.errors import ContractError, RowErrors, SampleError, SetupError
from operators.text.algorithms.token_pieces import pieces_of_tokenizer_json
from operators.text.document_ends import add_ends
from operators.text.text_column import check_no_nulls, utf8_bytes
from operators.text.tokenizer_file import TokenizerFile, is_path, read_tokenizer_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HFTextConfig(OperatorConfig):
    """What a job may say about ``hf_text``."""

    name: Literal["hf_text"] = "hf_text"
    tokenizer: Annotated[
        str,
        Field(
            description="Path or URL of a tokenizer.json (ends in .json), or a hub id owner/name."
        ),
    ]
    revision: Annotated[
        str | None,
        Field(description="Branch, tag or, best, commit of a hub id; its main branch if null."),
    ] = None
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
        if is_path(self.tokenizer):
            if self.revision is not None:
                raise ValueError(
                    f"revision={self.revision!r} belongs to a hub id, "
                    f"but tokenizer={self.tokenizer!r} is a file; leave one out"
                )
        elif not _HUB_ID.fullmatch(self.tokenizer):
            raise ValueError(
                f"tokenizer={self.tokenizer!r} is neither a path that ends in .json "
                "nor a hub id such as owner/name"
            )
        return self


class HFText(Operator[HFTextConfig]):
    """Map text to the ids that ``tokenizers`` gives, document by document.

    Reads ``text``; adds ``tokens`` [T] of the smallest unsigned type that holds the vocabulary,
    whose size is the greatest id + 1 with added tokens. Normalisation and pre-tokenization are as
    the file says; its truncation, padding and BPE dropout are switched off. An empty document
    gives no ids but those of the ends. Added tokens that are not special are matched in text under
    both settings of ``special_tokens_in_text``: they are part of how the tokenizer reads text.

    One call uses one core: ``setup`` sets ``TOKENIZERS_PARALLELISM=false`` for the process, since
    there is a worker for every core.

    Raises:
        SetupError: the file is missing or no tokenizer.json, or a package is missing.
        ContractError: the tokenizer has no token of the name in ``add_bos`` or ``add_eos``.
    """

    Config = HFTextConfig
    inputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The ids; reads the tokenizer when first asked."""
        size = self._vocab_size
        return {"tokens": FieldSpec(smallest_uint(size), (None,), vocab_size=size)}

    def identity(self) -> Mapping[str, object]:
        """Return the file's digest, the hub commit it came from and the library's version."""
        found: dict[str, object] = {
            "tokenizer_sha256": self._file.sha256,
            "tokenizers_version": _library().__version__,
        }
        if self._file.commit is not None:
            found["commit"] = self._file.commit
            if not _COMMIT.fullmatch(self.config.revision or ""):
                found["warning"] = (
                    f"{self.config.tokenizer}: revision {self._revision!r} may move; "
                    f"set revision: {self._file.commit}"
                )
        return found

    def metadata(self) -> Mapping[str, object]:
        """Return the size of the vocabulary and the ids of the specials."""
        return {
            "vocab_size": self._vocab_size,
            "special_ids": {token: i for i, token in self._special_tokens().items()},
            "bos_id": self._end_id("add_bos"),
            "eos_id": self._end_id("add_eos"),
        }

    def setup(self, device: str) -> None:  # noqa: ARG002 - a text tokenizer has no device
        """Load the tokenizer and fix how it treats special tokens."""
        # Read by the library at every call; without it one call would use all cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        # Not part of the file format: it has to be set again after every load or unpickling.
        self._tokenizer.encode_special_tokens = self._escapes
        self._bos, self._eos = self._end_id("add_bos"), self._end_id("add_eos")
        self._is_guarded = self._guarded_ids()
        template = self._tokenizer.encode("", add_special_tokens=self.config.add_special_tokens)
        self._num_guarded_in_template = int(self._is_guarded[template.ids].sum())

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize every document."""
        column = batch["text"]
        check_no_nulls(column, self.config.name)
        try:
            texts = column.to_pylist()
        except UnicodeDecodeError:
            return self._without(_undecodable(column), batch)
        encodings = self._tokenizer.encode_batch_fast(
            texts, add_special_tokens=self.config.add_special_tokens
        )
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(encoding) for encoding in encodings], out=offsets[1:])
        dtype = smallest_uint(self._vocab_size)
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        rows = Ragged(np.fromiter(ids, dtype, count=int(offsets[-1])), offsets)
        leaks = self._leaks(rows) if self._escapes else {}
        if leaks:
            return self._without(leaks, batch)
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
        texts = self._tokenizer.decode_batch(documents, skip_special_tokens=self._escapes)
        return {"text": pa.array(texts, pa.large_string())}

    def pieces(self) -> TokenPieces:
        """Return what each id stands for, by the tokenizer's own decoder."""
        return pieces_of_tokenizer_json(self._file.data, self._vocab_size)

    @property
    def _escapes(self) -> bool:
        return self.config.special_tokens_in_text == "escape"

    @property
    def _revision(self) -> str:
        return self.config.revision or "main"

    @cached_property
    def _file(self) -> TokenizerFile:
        return read_tokenizer_file(self.config.tokenizer, self._revision, self.model_files)

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        try:
            tokenizer: Tokenizer = _library().Tokenizer.from_buffer(self._file.data)
        except Exception as error:  # the library raises nothing narrower
            raise SetupError(
                f"tokenizer {self.config.tokenizer!r}: not a tokenizer.json ({error})",
                hint="it is the file that a fast tokenizer of transformers saves; "
                "a vocab.json or a SentencePiece model is another format",
            ) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None) is not None:
            tokenizer.model.dropout = None  # random merges: the same text must give the same ids
        return tokenizer

    @cached_property
    def _vocab_size(self) -> int:
        return int(max(self._tokenizer.get_vocab(with_added_tokens=True).values())) + 1

    def _end_id(self, option: Literal["add_bos", "add_eos"]) -> int | None:
        token = getattr(self.config, option)
        if token is None:
            return None
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None:
            special = list(self._special_tokens().values())
            raise ContractError(
                f"hf_text: {option}={token!r} is no token of {self.config.tokenizer!r}",
                hint=f"its special tokens are {special[:20]}",
            )
        return found

    def _special_tokens(self) -> dict[int, str]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {i: token.content for i, token in sorted(added.items()) if token.special}

    def _guarded_ids(self) -> np.ndarray:
        """Return bool [vocab_size]: special ids that no text may give under ``escape``."""
        is_guarded = np.zeros(self._vocab_size, bool)
        is_guarded[list(self._special_tokens())] = True
        unknown = self._tokenizer.token_to_id(_unknown_token(json.loads(self._file.data)["model"]))
        if unknown is not None:  # text outside the vocabulary gives it, and rightly
            is_guarded[unknown] = False
        return is_guarded

    def _leaks(self, rows: Ragged) -> dict[int, SampleError]:
        """Return the rows in which text became a special id in spite of ``escape``.

        The library can keep added tokens from being matched, but where the model's own vocabulary
        holds them as pieces (Unigram: T5, XLM-R), the model may still choose them.
        """
        is_guarded = self._is_guarded[rows.values]
        num_before = np.concatenate(([0], np.cumsum(is_guarded)))
        num_guarded = np.diff(num_before[rows.offsets])
        errors = {}
        for row in np.flatnonzero(num_guarded > self._num_guarded_in_template).tolist():
            special = self._special_tokens()
            ids = [i for i in rows[row].tolist() if self._is_guarded[i]]
            errors[row] = SampleError(
                f"hf_text: the text holds one of {sorted({special[i] for i in ids})} and this "
                "tokenizer's model has no other way to encode it than as a special token",
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
            errors[row] = SampleError(f"hf_text: the text is no UTF-8: {error}")
    return errors


def _unknown_token(model: Mapping[str, Any]) -> str:
    """Return the unknown token of a tokenizer.json's ``model``, "" when it has none."""
    if model.get("unk_id") is not None:
        piece: str = model["vocab"][model["unk_id"]][0]
        return piece
    return model.get("unk_token") or ""


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise SetupError(
            "hf_text: the package tokenizers is not installed",
            hint="pip install 'tokenmill[text]'",
        ) from None
    return tokenizers
