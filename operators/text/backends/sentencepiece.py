"""The library ``sentencepiece``: reads a tokenizer.model, and defines its ids."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import Ragged, TokenPieces
from operators.errors import ContractError, SetupError
from operators.text.backends.base import Policy, Reference

_SPACE_MARK = "\u2581"


class SentencePiece(Reference):
    """A SentencePiece model (Unigram or BPE) in its own library, without sampling.

    Special are its control symbols: text never gives their ids, so there is nothing to escape.
    User-defined symbols are matched in text. Normalisation is what the model holds.

    Args:
        data: The model.
        policy: Text is never parsed for control symbols, and there is no template.
        where: The tokenizer's name, for errors.

    Raises:
        SetupError: it is no SentencePiece model, or the package is missing.
        ContractError: the policy asks for what a model cannot do.
    """

    name = "sentencepiece"
    package = "sentencepiece"

    def __init__(self, data: bytes, policy: Policy, where: str) -> None:
        asked = {
            "special_tokens_in_text: parse": policy.parse,
            "add_special_tokens": policy.template,
        }
        for option, is_asked in asked.items():
            if is_asked:
                raise ContractError(
                    f"text_tokenizer: {option} means nothing to the SentencePiece model {where!r}",
                    hint="its control symbols are never read from text and it has no template: "
                    "leave it out, and use add_bos and add_eos",
                )
        self._processor = _load(data, where)

    def encode(self, texts: pa.Array) -> Ragged:
        """See ``Backend.encode``."""
        rows = self._processor.Encode(texts.to_pylist(), out_type="numpy", num_threads=1)
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate(rows).view(np.uint32) if rows else np.empty(0, np.uint32)
        return Ragged(values, offsets)

    def decode(
        self,
        documents: Sequence[Sequence[int]],
        *,
        skip_special: bool,  # noqa: ARG002 - control symbols have no text
    ) -> list[str]:
        """See ``Reference.decode``."""
        texts: list[str] = [self._processor.Decode(list(ids)) for ids in documents]
        return texts

    @property
    def vocab_size(self) -> int:
        """See ``Reference.vocab_size``."""
        return int(self._processor.GetPieceSize())

    @cached_property
    def special_tokens(self) -> Mapping[int, str]:
        """See ``Reference.special_tokens``: the control symbols."""
        processor = self._processor
        return {i: processor.IdToPiece(i) for i in range(self.vocab_size) if processor.IsControl(i)}

    @property
    def unknown_id(self) -> int | None:
        """See ``Reference.unknown_id``."""
        return int(self._processor.unk_id())

    def pieces(self) -> TokenPieces:
        """Return the bytes that each id stands for; none for control symbols."""
        return TokenPieces(
            pa.array([self._text_of(i) for i in range(self.vocab_size)], pa.large_binary()),
            self.unknown_id,
        )

    def _text_of(self, number: int) -> bytes | None:
        processor, piece = self._processor, self._processor.IdToPiece(number)
        if processor.IsControl(number) or processor.IsUnknown(number) or processor.IsUnused(number):
            return None
        if processor.IsByte(number):  # spelled <0x0A>
            return bytes([int(piece[3:-1], 16)])
        found: bytes = piece.replace(_SPACE_MARK, " ").encode()
        return found

    def id_of(self, token: str) -> int | None:
        """See ``Reference.id_of``."""
        found = int(self._processor.PieceToId(token))
        return found if self._processor.IdToPiece(found) == token else None


def _load(data: bytes, where: str) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise SetupError(
            f"tokenizer {where!r}: the package sentencepiece is not installed",
            hint="pip install 'tokenmill[text]'",
        ) from None
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
    except (RuntimeError, ValueError) as error:
        raise SetupError(
            f"tokenizer {where!r}: not a SentencePiece model ({' '.join(str(error).split())})",
            hint="it is the file that spm_train writes; a tokenizer.json ends in .json",
        ) from None
    return processor
