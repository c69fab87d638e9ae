"""The Hugging Face ``tokenizers`` library: reads every tokenizer.json, and defines its ids."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from operators.base import Ragged
from operators.errors import SetupError
from operators.text.backends.base import Policy, Reference

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class HuggingFace(Reference):
    """A tokenizer.json in its own library; truncation, padding and BPE dropout are switched off.

    One call uses one core: ``TOKENIZERS_PARALLELISM=false`` is set for the process, since there is
    a worker for every core. About 2 MB/s on one core for byte-level BPE.

    Attributes:
        policy: As given.
        digest: SHA-256 of the file.

    Args:
        data: The tokenizer.json.
        policy: How special tokens are treated.
        where: The tokenizer's name, for errors.

    Raises:
        SetupError: it is no tokenizer.json, or the package is missing.
    """

    name = "reference"
    package = "tokenizers"

    def __init__(self, data: bytes, policy: Policy, where: str) -> None:
        self.policy = policy
        self.digest = hashlib.sha256(data).hexdigest()
        self._tokenizer = _load(data, where)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if getattr(self._tokenizer.model, "dropout", None) is not None:
            self._tokenizer.model.dropout = None  # the same text must give the same ids
        # Not part of the file format: it has to be set again after every load.
        self._tokenizer.encode_special_tokens = not policy.parse
        self._model: Mapping[str, Any] = json.loads(data)["model"]

    @cached_property
    def canonical(self) -> str:
        """The tokenizer as its library writes it today, whatever the age of the file."""
        text: str = self._tokenizer.to_str()
        return text

    @cached_property
    def added_tokens(self) -> list[str]:
        """Names of all added tokens, special or not, by id."""
        added = self._tokenizer.get_added_tokens_decoder()
        return [token.content for _, token in sorted(added.items())]

    @property
    def normalizer(self) -> Any:
        """The library's own normalizer; None when there is none."""
        return self._tokenizer.normalizer

    def encode(self, texts: pa.Array) -> Ragged:
        """See ``Backend.encode``."""
        # Read by the library at every call; without it one call would use all cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        encodings = self._tokenizer.encode_batch_fast(
            texts.to_pylist(), add_special_tokens=self.policy.template
        )
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(encoding) for encoding in encodings], out=offsets[1:])
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        return Ragged(np.fromiter(ids, np.uint32, count=int(offsets[-1])), offsets)

    def decode(self, documents: Sequence[Sequence[int]], *, skip_special: bool) -> list[str]:
        """See ``Reference.decode``."""
        texts: list[str] = self._tokenizer.decode_batch(documents, skip_special_tokens=skip_special)
        return texts

    @cached_property
    def vocab_size(self) -> int:
        """See ``Reference.vocab_size``; added tokens count."""
        return int(max(self._tokenizer.get_vocab(with_added_tokens=True).values())) + 1

    @cached_property
    def special_tokens(self) -> Mapping[int, str]:
        """See ``Reference.special_tokens``."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {i: token.content for i, token in sorted(added.items()) if token.special}

    @cached_property
    def unknown_id(self) -> int | None:
        """See ``Reference.unknown_id``."""
        if self._model.get("unk_id") is not None:
            return self.id_of(self._model["vocab"][self._model["unk_id"]][0])
        return self.id_of(self._model.get("unk_token") or "")

    def id_of(self, token: str) -> int | None:
        """See ``Reference.id_of``."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found


def _load(data: bytes, where: str) -> "Tokenizer":
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise SetupError(
            "text_tokenizer: the package tokenizers is not installed",
            hint="pip install 'tokenmill[text]'",
        ) from None
    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing narrower
        raise SetupError(
            f"tokenizer {where!r}: not a tokenizer.json ({error})",
            hint="it is the file that a fast tokenizer of transformers saves; "
            "a vocab.json is another format, and a SentencePiece model ends in .model",
        ) from None
