"""How good text tokenizers are on a corpus: figures of texts and their ids."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import Ragged, TokenPieces
from pipeline.report.histogram import make_counter

REPORT_VERSION = 1

RENYI_ALPHA = 2.5
"""The order that agrees best with how models fare (https://arxiv.org/abs/2306.16842)."""

NUM_LONGEST = 10
NUM_EXAMPLES = 10
MAX_GROUPS = 200
CURVE_POINTS = 60
MAX_LENGTH = 16
"""Longer tokens are counted with those of this many bytes."""

DIGIT_CLASSES = ("1", "2", "3", "4 or more", "with other characters")

CONTEXTS = ("", "a", " ", "1", "\n")
"""What is put before the text of a token, to see whether any text gives it."""

Encode = Callable[[pa.Array], Ragged | None]
"""Texts, large_string [N] -> ids, N rows; None where the tokenizer refuses some of them."""


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """Figures of the documents of one language or domain.

    Attributes:
        documents: Documents.
        bytes: Of their text.
        characters: Of their text.
        words: Of their text, parted by ASCII white space.
        tokens: Without specials.
        fertility: Tokens a word.
        bytes_per_token: Bytes a token.
        characters_per_token: Characters a token.
        tokens_per_document: Tokens a document.
        premium_per_character: Tokens a character, by those of the reference group.
        premium_per_document: Tokens a document, by those of the reference group: what counts
            where the documents of all groups are the same, translated.
    """

    documents: int
    bytes: int
    characters: int
    words: int
    tokens: int
    fertility: float | None
    bytes_per_token: float | None
    characters_per_token: float | None
    tokens_per_document: float | None
    premium_per_character: float | None = None
    premium_per_document: float | None = None


@dataclass(frozen=True, slots=True)
class VocabularyFigures:
    """What can be said of a vocabulary by looking at it.

    Attributes:
        with_text: Ids that stand for text.
        single_byte: Those that stand for one byte.
        partial_utf8: Those that begin or end inside a character.
        digits: Those of digits alone.
        reached: Ids of whole characters that their own text gives, alone or behind others.
        unreachable: Those that it does not: no text of this kind gives them.
        unreachable_examples: The first of them, with their texts.
        longest: The longest tokens.
    """

    with_text: int
    single_byte: int
    partial_utf8: int
    digits: int
    reached: int | None
    unreachable: int | None
    unreachable_examples: Sequence[tuple[int, str]]
    longest: Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Corruption:
    """What happens to the tokens when the text is damaged.

    Attributes:
        tokens: Tokens a byte of the damaged text, by those of the text as it was.
        kept: Share of the ids that stay, in any order: those that both have, by the larger number.
    """

    tokens: float
    kept: float


@dataclass(frozen=True, slots=True)
class TokenizerFigures:
    """Figures of one tokenizer on a sample.

    Attributes:
        label: Its name.
        source: Where the sample comes from.
        text_sha256: Of the sample's texts: figures of the same texts can be compared.
        text_is_decoded: The texts were made of the tokens, since the shards hold no text.
        vocab_size: Size of its vocabulary, V.
        documents: Documents of the sample.
        bytes: Of the text.
        characters: Of the text.
        words: Of the text, parted by ASCII white space.
        tokens: T, without specials.
        special_tokens: Begin and end of documents and the like.
        fertility: Tokens a word.
        whole_words: Share of words that are one token, or a part of one; None where tokens do not
            add up to the text (it was normalised, or pieces are not known).
        bytes_per_token: Bytes a token.
        characters_per_token: Characters a token.
        nsl: Tokens by those of the first tokenizer for the same text (normalised length).
        stored_share: Bytes of the ids in shards by bytes of the text.
        entropy_bits_per_byte: Bits that an ideal code for single ids takes, a byte of the text.
        entropy_bits: H, the entropy of ids.
        shannon_efficiency: H / log2(V).
        renyi_efficiency: The same with the Rényi entropy of order 2.5.
        used: Different ids in the sample.
        used_share: used / V.
        ids_for_90: Most frequent ids that make 90 % of the tokens.
        single_byte_share: Share of tokens that are one byte.
        partial_utf8_share: Share of tokens that begin or end inside a character.
        unknown_share: Share of tokens that are the unknown token.
        digit_shares: Share of ASCII digits that stand in tokens of 1, 2, 3 or more digits alone,
            or with other characters.
        length_shares: Share of tokens of 1, 2, ... bytes.
        longest_used: The longest tokens in the sample.
        curve: Ranks, evenly spaced by their logarithm, each with the share of its id.
        vocabulary: Of the vocabulary, where pieces are known.
        groups: Language or domain -> figures.
        reference_group: The one that premiums refer to.
        robustness: Damage -> what it does.
        refused: Documents that are not in the sample since this tokenizer, or one that is measured
            with it, refuses them.
    """

    label: str
    source: str
    text_sha256: str
    text_is_decoded: bool
    vocab_size: int
    documents: int
    bytes: int
    characters: int
    words: int
    tokens: int
    special_tokens: int
    fertility: float | None
    whole_words: float | None
    bytes_per_token: float | None
    characters_per_token: float | None
    nsl: float | None
    stored_share: float | None
    entropy_bits_per_byte: float | None
    entropy_bits: float | None
    shannon_efficiency: float | None
    renyi_efficiency: float | None
    used: int
    used_share: float
    ids_for_90: int
    single_byte_share: float | None
    partial_utf8_share: float | None
    unknown_share: float | None
    digit_shares: Mapping[str, float] | None
    length_shares: Sequence[float] | None
    longest_used: Sequence[tuple[int, str]]
    curve: Sequence[tuple[int, float]]
    vocabulary: VocabularyFigures | None = None
    groups: Mapping[str, GroupFigures] = field(default_factory=dict)
    reference_group: str | None = None
    robustness: Mapping[str, Corruption] = field(default_factory=dict)
    refused: int = 0


def to_json(tokenizers: Sequence[TokenizerFigures]) -> bytes:
    """Return the figures as JSON."""
    content = {"version": REPORT_VERSION, "tokenizers": [asdict(each) for each in tokenizers]}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


class TokenizerMeter:
    """Adds up what texts and their ids say of a tokenizer. Keeps counts, no texts and no ids.

    Args:
        label: Name of the tokenizer.
        source: Where the texts come from.
        vocab_size: Ids lie below it.
        id_bytes: Bytes of one id in shards.
        special_ids: Ids that are no part of the text.
        pieces: What ids stand for; None when that is not known.
        text_is_decoded: The texts are made of the tokens.
    """

    def __init__(
        self,
        label: str,
        source: str,
        vocab_size: int,
        id_bytes: int,
        special_ids: Sequence[int] = (),
        pieces: TokenPieces | None = None,
        *,
        text_is_decoded: bool = False,
    ) -> None:
        self._label, self._source, self._vocab_size = label, source, vocab_size
        self._id_bytes = id_bytes
        self._text_is_decoded = text_is_decoded
        self._table = None if pieces is None else PieceTable(pieces)
        unknown = None if pieces is None else pieces.unknown_id
        self._specials = np.array([i for i in special_ids if i != unknown], np.int64)
        self._counter = make_counter(vocab_size)
        self._sha256 = hashlib.sha256()
        self._sums = np.zeros(5, np.int64)  # documents, bytes, characters, words, tokens
        self._num_special = 0
        self._num_judged = self._num_whole = 0
        self._groups: dict[str, int] = {}
        self._group_sums = np.zeros((0, 5), np.int64)

    def add(self, texts: pa.Array, ids: Ragged, groups: pa.Array | None = None) -> None:
        """Add N documents.

        Args:
            texts: large_string [N].
            ids: N rows of [T] or [T, streams].
            groups: Languages or domains, large_string [N].
        """
        documents = _bytes_of(texts)
        values = documents.values
        self._sha256.update(documents.lengths.tobytes())
        self._sha256.update(values.tobytes())
        is_word = ~_IS_SPACE[values]
        starts = is_word & ~np.append(False, is_word[:-1])
        starts[documents.offsets[:-1][documents.lengths > 0]] = is_word[
            documents.offsets[:-1][documents.lengths > 0]
        ]
        is_special = self._is_special(ids.values)
        tokens = _sums_of(~is_special, ids.offsets)
        sums_N5 = np.stack(
            [
                np.ones(len(documents), np.int64),
                documents.lengths,
                _sums_of((values & 0xC0) != 0x80, documents.offsets),
                _sums_of(starts, documents.offsets),
                tokens,
            ],
            axis=1,
        )
        self._sums += sums_N5.sum(0)
        self._num_special += int(is_special.sum())
        self._counter.add(ids.values[~is_special].reshape(-1))
        if self._table is not None and ids.values.ndim == 1:
            self._judge_words(documents, starts, is_word, ids, is_special)
        if groups is not None:
            self._add_groups(groups, sums_N5)

    def figures(
        self,
        first: TokenizerFigures | None = None,
        reference: str | None = None,
        encode: Encode | None = None,
        sample: pa.Array | None = None,
    ) -> TokenizerFigures:
        """Return the figures of all that was added.

        Args:
            first: Figures of the first tokenizer, to compare with.
            reference: Group that premiums refer to; the one of fewest tokens a character if None.
            encode: The tokenizer, to try texts that are not in the sample; None tries none.
            sample: Some of the texts, large_string, to damage.
        """
        documents, num_bytes, characters, words, tokens = self._sums.tolist()
        histogram = self._counter.histogram()
        ids, counts = histogram.ids.astype(np.int64), histogram.counts
        ranked = np.sort(counts)[::-1]
        text_sha256 = self._sha256.hexdigest()
        is_same = first is not None and first.text_sha256 == text_sha256
        entropy = renyi_entropy(counts, 1.0)
        most = float(np.log2(self._vocab_size)) if self._vocab_size > 1 else None
        renyi = renyi_entropy(counts, RENYI_ALPHA)
        per_id = self._table
        groups, used_reference = self._group_figures(reference)
        num_ids = int(counts.sum())
        return TokenizerFigures(
            label=self._label,
            source=self._source,
            text_sha256=text_sha256,
            text_is_decoded=self._text_is_decoded,
            vocab_size=self._vocab_size,
            documents=documents,
            bytes=num_bytes,
            characters=characters,
            words=words,
            tokens=tokens,
            special_tokens=self._num_special,
            fertility=_ratio(tokens, words),
            whole_words=_ratio(self._num_whole, self._num_judged),
            bytes_per_token=_ratio(num_bytes, tokens),
            characters_per_token=_ratio(characters, tokens),
            nsl=_ratio(tokens, first.tokens) if first is not None and is_same else None,
            stored_share=_ratio(self._id_bytes * num_ids, num_bytes),
            entropy_bits_per_byte=None if entropy is None else _ratio(entropy * num_ids, num_bytes),
            entropy_bits=entropy,
            shannon_efficiency=None if entropy is None or most is None else entropy / most,
            renyi_efficiency=None if renyi is None or most is None else renyi / most,
            used=len(ids),
            used_share=len(ids) / self._vocab_size,
            ids_for_90=int(np.searchsorted(np.cumsum(ranked), 0.9 * num_ids)) + bool(num_ids),
            single_byte_share=_share(None if per_id is None else per_id.lengths == 1, ids, counts),
            partial_utf8_share=_share(None if per_id is None else per_id.is_partial, ids, counts),
            unknown_share=_share(None if per_id is None else per_id.is_unknown, ids, counts),
            digit_shares=None if per_id is None else per_id.digit_shares(ids, counts),
            length_shares=None if per_id is None else per_id.length_shares(ids, counts),
            longest_used=() if per_id is None else per_id.longest(ids),
            curve=_curve(ranked),
            vocabulary=None if per_id is None else per_id.figures(encode),
            groups=groups,
            reference_group=used_reference,
            robustness={} if encode is None or sample is None else robustness(encode, sample),
        )

    def _is_special(self, values: np.ndarray) -> np.ndarray:
        if not len(self._specials):
            return np.zeros(len(values), bool)
        is_special: np.ndarray = np.isin(values, self._specials)
        return is_special if values.ndim == 1 else np.asarray(is_special.all(1))

    def _judge_words(
        self,
        documents: Ragged,
        starts: np.ndarray,
        is_word: np.ndarray,
        ids: Ragged,
        is_special: np.ndarray,
    ) -> None:
        """Count the words inside which no token begins, in documents whose tokens add up."""
        assert self._table is not None
        lengths = self._table.lengths[ids.values.astype(np.int64)] * ~is_special
        ends = np.concatenate(([0], np.cumsum(lengths)))
        # Many tokenizers put a space before the text: its tokens are then one byte longer.
        excess = np.diff(ends[ids.offsets]) - documents.lengths
        is_equal = (excess == 0) | (excess == 1)
        row_of_token = np.repeat(np.arange(len(ids)), ids.lengths)
        begins = ends[:-1] - (ends[ids.offsets[:-1]] + excess)[row_of_token]
        begins = np.maximum(begins, 0) + documents.offsets[:-1][row_of_token]
        begins = begins[is_equal[row_of_token]]
        is_begin = np.zeros(len(is_word) + 1, bool)
        is_begin[begins] = True
        # A token that begins at a word's first byte does not part it, nor one behind its last.
        inside = is_begin[:-1] & is_word & ~starts
        at = np.flatnonzero(starts)
        row_of_word = np.searchsorted(documents.offsets, at, side="right") - 1
        parted = np.diff(np.append(np.concatenate(([0], np.cumsum(inside)))[at], inside.sum()))
        is_judged = is_equal[row_of_word]
        self._num_judged += int(is_judged.sum())
        self._num_whole += int((is_judged & (parted == 0)).sum())

    def _add_groups(self, groups: pa.Array, sums_N5: np.ndarray) -> None:
        encoded = groups.fill_null("(none)").dictionary_encode()
        places = []
        for name in encoded.dictionary.to_pylist():
            if name not in self._groups and len(self._groups) >= MAX_GROUPS:
                name = f"({MAX_GROUPS} others)"  # noqa: PLW2901 - what is left of them
            places.append(self._groups.setdefault(name, len(self._groups)))
        missing = len(self._groups) - len(self._group_sums)
        self._group_sums = np.pad(self._group_sums, ((0, missing), (0, 0)))
        rows = np.array(places, np.int64)[encoded.indices.to_numpy()]
        np.add.at(self._group_sums, rows, sums_N5)

    def _group_figures(self, reference: str | None) -> tuple[dict[str, GroupFigures], str | None]:
        sums = {name: self._group_sums[place].tolist() for name, place in self._groups.items()}
        usable = {name: each for name, each in sums.items() if each[4] and each[2]}
        if reference not in usable:
            reference = min(
                usable, key=lambda name: usable[name][4] / usable[name][2], default=None
            )
        base = None if reference is None else usable[reference]
        found = {}
        for name, (documents, num_bytes, characters, words, tokens) in sorted(
            sums.items(), key=lambda item: (-item[1][0], item[0])
        ):
            per_character, per_document = _ratio(tokens, characters), _ratio(tokens, documents)
            found[name] = GroupFigures(
                documents=documents,
                bytes=num_bytes,
                characters=characters,
                words=words,
                tokens=tokens,
                fertility=_ratio(tokens, words),
                bytes_per_token=_ratio(num_bytes, tokens),
                characters_per_token=_ratio(characters, tokens),
                tokens_per_document=per_document,
                premium_per_character=None
                if base is None or per_character is None
                else per_character * base[2] / base[4],
                premium_per_document=None
                if base is None or per_document is None
                else per_document * base[0] / base[4],
            )
        return found, reference


class PieceTable:
    """What each id of a vocabulary is.

    Attributes:
        lengths: int64 [V], bytes; 0 for an id without text.
        is_partial: bool [V], it begins or ends inside a character.
        is_unknown: bool [V], it is the unknown token.
    """

    def __init__(self, pieces: TokenPieces) -> None:
        self._has_text = ~pieces.texts.is_null().to_numpy(zero_copy_only=False)
        self._documents = _bytes_of(pieces.texts.fill_null(b""))
        values, offsets = self._documents.values, self._documents.offsets
        self.lengths = self._documents.lengths
        self.is_unknown = np.zeros(len(self.lengths), bool)
        if pieces.unknown_id is not None:
            self.is_unknown[pieces.unknown_id] = True
        self._texts: list[bytes | None] = pieces.texts.to_pylist()
        self.is_partial = np.array(
            [text is not None and not _is_utf8(text) for text in self._texts]
        )
        is_digit = (values >= ord("0")) & (values <= ord("9"))
        self._num_digits = _sums_of(is_digit, offsets)
        is_blank = values == ord(" ")
        leading = np.zeros(len(self.lengths), np.int64)
        leading[self.lengths > 0] = is_blank[offsets[:-1][self.lengths > 0]]
        self._is_number = (self._num_digits > 0) & (self._num_digits + leading == self.lengths)

    def digit_shares(self, ids: np.ndarray, counts: np.ndarray) -> dict[str, float] | None:
        """Return which share of the digits stands in which kind of token."""
        digits = self._num_digits[ids] * counts
        total = int(digits.sum())
        if not total:
            return None
        kinds = np.where(self._is_number[ids], np.minimum(self._num_digits[ids], 4), 5) - 1
        shares = np.bincount(kinds, weights=digits, minlength=len(DIGIT_CLASSES)) / total
        # A token without digits has none to count, in whichever class it comes.
        return dict(zip(DIGIT_CLASSES, shares.tolist(), strict=True))

    def length_shares(self, ids: np.ndarray, counts: np.ndarray) -> list[float]:
        """Return the share of tokens of 1, 2, ... bytes."""
        lengths = np.minimum(self.lengths[ids], MAX_LENGTH)
        sums = np.bincount(lengths, weights=counts, minlength=MAX_LENGTH + 1)[1:]
        shares: list[float] = (sums / max(float(sums.sum()), 1.0)).tolist()
        return shares

    def longest(self, ids: np.ndarray) -> list[tuple[int, str]]:
        """Return the longest of some ids, of equally long ones the lowest first."""
        order = np.lexsort((ids, -self.lengths[ids]))[:NUM_LONGEST]
        return [self._named(i) for i in ids[order].tolist()]

    def figures(self, encode: Encode | None) -> VocabularyFigures:
        """Return the figures of the vocabulary, trying its texts where there is a tokenizer."""
        whole = np.flatnonzero(self._has_text & ~self.is_partial & (self.lengths > 0))
        unreachable = None if encode is None else self._unreachable(whole, encode)
        return VocabularyFigures(
            with_text=int(self._has_text.sum()),
            single_byte=int((self.lengths == 1).sum()),
            partial_utf8=int(self.is_partial.sum()),
            digits=int(self._is_number.sum()),
            reached=None if unreachable is None else len(whole) - len(unreachable),
            unreachable=None if unreachable is None else len(unreachable),
            unreachable_examples=()
            if unreachable is None
            else [self._named(i) for i in unreachable[:NUM_EXAMPLES].tolist()],
            longest=self.longest(np.flatnonzero(self._has_text)),
        )

    def _unreachable(self, ids: np.ndarray, encode: Encode) -> np.ndarray | None:
        """Return the ids that are not among the tokens of their own text, in any context."""
        left = ids
        for before in CONTEXTS:
            if not len(left):
                break
            texts = [before.encode() + (self._texts[i] or b"") for i in left.tolist()]
            found = encode(pa.array(texts, pa.large_binary()).cast(pa.large_string()))
            if found is None or found.values.ndim != 1:
                return None
            rows = np.repeat(np.arange(len(left)), found.lengths)
            is_there = np.zeros(len(left), bool)
            is_there[rows[found.values == left[rows]]] = True
            left = left[~is_there]
        return left

    def _named(self, number: int) -> tuple[int, str]:
        return number, (self._texts[number] or b"").decode(errors="backslashreplace")


def renyi_entropy(counts: np.ndarray, alpha: float) -> float | None:
    """Return the Rényi entropy of order ``alpha`` in bits, for 1 that of Shannon; None of nothing.

    Args:
        counts: int64 [D], at least 1 each.
        alpha: The order.
    """
    if not len(counts):
        return None
    p = counts / counts.sum()
    if alpha == 1.0:
        return max(float(-(p * np.log2(p)).sum()), 0.0)
    return max(float(np.log2((p**alpha).sum()) / (1.0 - alpha)), 0.0)


def robustness(encode: Encode, texts: pa.Array) -> dict[str, Corruption]:
    """Return what damage of several kinds does to the tokens of some texts."""
    before = encode(texts)
    if before is None or not len(before.values):
        return {}
    found = {}
    for name, damage in DAMAGES.items():
        damaged = pa.array([damage(text) for text in texts.to_pylist()], pa.large_string())
        after = encode(damaged)
        if after is None or not len(after.values):
            continue
        size = int(max(before.values.max(), after.values.max())) + 1
        counts = [np.bincount(ids.values.reshape(-1), minlength=size) for ids in (before, after)]
        num_bytes = [max(len(_bytes_of(each).values), 1) for each in (texts, damaged)]
        found[name] = Corruption(
            tokens=(len(after.values) / num_bytes[1]) / (len(before.values) / num_bytes[0]),
            kept=float(np.minimum(*counts).sum() / max(counts[0].sum(), counts[1].sum())),
        )
    return found


def _letters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return code points uint32 [C] of a text, and the positions of about 1 letter in 20."""
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    is_letter = np.fromiter(map(str.isalpha, text), bool, len(text))
    # A letter that begins a word stays, as in most misprints.
    is_inner = is_letter & np.append(False, is_letter[:-1])
    at = np.flatnonzero(is_inner)
    chosen = np.random.default_rng(len(text)).random(len(at)) < DAMAGED_SHARE
    return characters, at[chosen]


def _text(characters: np.ndarray) -> str:
    return characters.astype("<u4").tobytes().decode("utf-32-le")


def _swapped(text: str) -> str:
    characters, at = _letters(text)
    at = at[np.append(True, np.diff(at) > 1)] if len(at) else at
    swapped = characters.copy()
    swapped[at], swapped[at - 1] = characters[at - 1], characters[at]
    return _text(swapped)


def _dropped(text: str) -> str:
    characters, at = _letters(text)
    return _text(np.delete(characters, at))


def _doubled(text: str) -> str:
    characters, at = _letters(text)
    return _text(np.insert(characters, at, characters[at]))


DAMAGED_SHARE = 0.05

DAMAGES: Mapping[str, Callable[[str], str]] = {
    "letters swapped": _swapped,
    "letters dropped": _dropped,
    "letters doubled": _doubled,
    "upper case": str.upper,
}
"""Kinds of damage: the first three happen to 1 in 20 of the letters inside words."""


def _bytes_of(texts: pa.Array) -> Ragged:
    """Return the bytes of N texts without nulls, a view of the column."""
    _, offsets_buffer, data = texts.buffers()
    if len(texts) == 0 or data is None:
        return Ragged(np.empty(0, np.uint8), np.zeros(len(texts) + 1, np.int64))
    offsets = np.frombuffer(offsets_buffer, np.int64)[texts.offset :][: len(texts) + 1]
    values = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    return Ragged(values, offsets - offsets[0])


def _sums_of(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return int64 [N]: how many flags of each row are set."""
    sums: np.ndarray = np.diff(np.concatenate(([0], np.cumsum(flags)))[offsets])
    return sums


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _share(flags: Any, ids: np.ndarray, counts: np.ndarray) -> float | None:
    """Return the share of tokens whose id has its flag set; None where flags are not known."""
    if flags is None or not len(ids):
        return None
    return float(counts[flags[ids]].sum() / counts.sum())


def _curve(ranked: np.ndarray) -> list[tuple[int, float]]:
    if not len(ranked):
        return []
    ranks = np.unique(np.geomspace(1, len(ranked), CURVE_POINTS).round().astype(np.int64))
    shares = ranked[ranks - 1] / ranked.sum()
    return list(zip(ranks.tolist(), shares.tolist(), strict=True))


_IS_SPACE = np.isin(np.arange(256), list(b" \t\n\v\f\r"))
