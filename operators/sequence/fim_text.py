"""Move the middle of texts to their end, between characters: plain, or FIM-SE's layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.base import Batch, FieldSpec, Operator, OperatorConfig, Ragged
from operators.columns import take_batch
from operators.errors import RowErrors, SampleError
from operators.keyed_draws import draws_of_keys
from operators.sequence.segments import SegmentPool, rows_of_matrix
from operators.text.text_column import check_no_nulls, text_of_bytes, utf8_bytes

NEWLINE = 10
Token = Annotated[str, Field(min_length=1)]
Rate = Annotated[float, Field(ge=0, le=1)]


class SentinelTexts(BaseModel):
    """What stands in the text between the parts; default: Code Llama's names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefix: Annotated[Token, Field(description="Before the prefix.")] = "<PRE>"
    suffix: Annotated[Token, Field(description="Before the suffix.")] = "<SUF>"
    middle: Annotated[Token, Field(description="Before the middle.")] = "<MID>"
    end_of_text: Annotated[Token, Field(description="After the middle.")] = "<EOT>"
    start: Annotated[Token, Field(description="FIM-SE: before the start of a line.")] = "<START>"
    end: Annotated[Token, Field(description="FIM-SE: before the end of a line.")] = "<END>"


class FimTextConfig(OperatorConfig):
    """What a job may say about ``fim_text``."""

    name: Literal["fim_text"] = "fim_text"
    layout: Annotated[
        Literal["plain", "fim_se"],
        Field(description="plain: PSM and SPM. fim_se: with start and end constraints."),
    ] = "plain"
    rate: Annotated[
        Rate | None,
        Field(description="Share of texts that are rearranged; default 0.5, fim_se 0.9."),
    ] = None
    spm_rate: Annotated[
        Rate | None,
        Field(description="plain: share of these with the suffix first (SPM); default 0.5."),
    ] = None
    seed: Annotated[int, Field(ge=0, description="Of the draws; with it, `key` decides.")] = 0
    draws: Annotated[
        Literal["key", "length"],
        Field(
            description="fim_se: length draws as the authors do, by the text's length alone, so "
            "that texts of one length are cut alike; seed has no say then."
        ),
    ] = "key"
    sentinels: Annotated[SentinelTexts, Field(description="What stands between the parts.")] = (
        SentinelTexts()
    )
    authors_end: Annotated[
        bool,
        Field(
            description="fim_se: write end_of_text in the place of end, as the authors' training "
            "code does; their paper and inference have end."
        ),
    ] = False
    exact_lines: Annotated[
        bool,
        Field(
            description="fim_se: add no line break where the prefix or suffix has none; the "
            "authors' code adds one."
        ),
    ] = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        only_se = {"draws": "key", "authors_end": False, "exact_lines": False}
        for option, default in only_se.items():
            value = getattr(self, option)
            if self.layout == "plain" and value != default:
                raise ValueError(f"{option}={value!r} is for layout fim_se; remove it")
        if self.layout == "fim_se" and self.spm_rate is not None:
            raise ValueError(f"spm_rate={self.spm_rate} is for layout plain; remove it")
        names = self.sentinels.model_dump()
        if len(set(names.values())) < len(names):
            raise ValueError(f"sentinels {names} share a text; give each one of its own")
        return self

    @property
    def share(self) -> float:
        """Of the texts that are rearranged."""
        return self.rate if self.rate is not None else 0.9 if self.layout == "fim_se" else 0.5


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where N texts are cut, and how.

    Attributes:
        is_moved: bool [N].
        places: int64 [N, 2], the cuts, in characters, rising.
        choice: float64 [N] in [0, 1): PSM or SPM, or the constraints that are shown.
    """

    is_moved: np.ndarray
    places: np.ndarray
    choice: np.ndarray


class FimText(Operator[FimTextConfig]):
    """Fill in the middle, on text: cut between characters, with sentinels in the text.

    Reads ``text`` and ``key``; replaces ``text``. Give the result to a text tokenizer that has the
    sentinels as tokens, with ``special_tokens_in_text: parse``. A text that holds one of them is a
    bad row, rearranged or not.

    ``plain`` (https://arxiv.org/abs/2207.14255, character level, as StarCoder): of a share
    ``rate`` of the texts two places between characters, 0 to n, are drawn evenly; the text becomes
    ``<PRE>prefix<SUF>suffix<MID>middle<EOT>``, or, a share ``spm_rate`` of them,
    ``<PRE><SUF>suffix<MID>prefix middle<EOT>`` (without the space).

    ``fim_se`` (https://arxiv.org/abs/2405.17103): lines that a cut goes through leave prefix and
    suffix, and are to be repeated, so that no model has to go on from half a token:
    ``<PRE>R-prefix<SUF>R-suffix<START>L-prefix<END>F-suffix<MID>L-prefix middle F-suffix<EOT>``
    (without spaces). L-prefix is the prefix's last line, F-suffix the suffix's first with its line
    break; of either, both or none of the two nothing is shown after ``<START>`` and ``<END>``, a
    quarter each. Only line feeds break lines. The cuts are two different places 0 to n - 1; texts
    of fewer than 2 characters stay as they are (the authors' code fails on them).

    A character is a code point. The numbers of ``draws_of_keys(seed, "fim_text")`` decide: below
    ``rate`` a text is rearranged; the two places; PSM or SPM, or what is shown.

    With ``draws: length`` and ``authors_end: true`` it gives what the authors'
    code of FIM-SE gives. About 900 MB/s on one core, fim_se 700, texts of 2,000 characters.
    """

    Config = FimTextConfig
    inputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string"), "key": FieldSpec("string")}
    outputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}

    def metadata(self) -> Mapping[str, object]:
        """Return the sentinels."""
        return {"sentinels": self.config.sentinels.model_dump()}

    def __call__(self, batch: Batch) -> Batch:
        """Rearrange the texts.

        Raises:
            RowErrors: a text holds a sentinel.
        """
        column = batch["text"]
        check_no_nulls(column, self.config.name)
        errors = self._texts_with_sentinels(column)
        if errors:
            good = np.setdiff1d(np.arange(len(column)), list(errors))
            raise RowErrors(errors, self(take_batch(batch, good)))
        texts = utf8_bytes(column)
        # A character is its first byte and continuation bytes, 10xxxxxx, which are few as a rule.
        continuations = np.flatnonzero(texts.values.view(np.int8) < -64)
        characters_before = continuations - np.arange(len(continuations))
        first_characters = texts.offsets - np.searchsorted(continuations, texts.offsets)
        cuts = self._cuts(np.diff(first_characters), batch["key"])
        cuts_N2 = first_characters[:-1, None] + cuts.places
        cuts_N2 += np.searchsorted(characters_before, cuts_N2, side="right")
        arrange = self._arrange_se if self.config.layout == "fim_se" else self._arrange_plain
        return {"text": text_of_bytes(arrange(texts, cuts, cuts_N2))}

    def _cuts(self, lengths: np.ndarray, keys: pa.Array) -> Cuts:
        if self.config.draws == "length":
            return _cuts_by_length(lengths, self.config.share)
        draws = draws_of_keys(self.config.seed, "fim_text", keys)
        is_moved = draws[:, 0] < self.config.share
        if self.config.layout == "plain":
            places = np.floor(draws[:, 1:3] * (lengths + 1)[:, None]).astype(np.int64)
            return Cuts(is_moved, np.sort(places, axis=1), draws[:, 3])
        is_moved &= lengths >= 2
        # Two different places: the second counts those that the first left.
        choices = np.column_stack((lengths, lengths - 1))
        places = np.floor(draws[:, 1:3] * choices).astype(np.int64)
        places[:, 1] += places[:, 1] >= places[:, 0]
        places[~is_moved] = 0
        return Cuts(is_moved, np.sort(places, axis=1), draws[:, 3])

    def _texts_with_sentinels(self, column: pa.Array) -> dict[int, SampleError]:
        sentinels = list(self.config.sentinels.model_dump().values())
        # One pass for all of them; written as code points, nothing in them is an operator.
        pattern = "|".join(
            "".join(f"\\x{{{ord(character):x}}}" for character in sentinel)
            for sentinel in sentinels
        )
        found = pc.match_substring_regex(column, pattern).to_numpy(zero_copy_only=False)
        errors = {}
        for row in np.flatnonzero(found).tolist():
            text = column[row].as_py()
            first = next(sentinel for sentinel in sentinels if sentinel in text)
            errors[row] = SampleError(f"fim_text: the text holds {first!r}, a sentinel")
        return errors

    def _arrange_plain(self, texts: Ragged, cuts: Cuts, cuts_N2: np.ndarray) -> Ragged:
        pool = SegmentPool("uint8")
        bounds = np.column_stack((texts.offsets[:-1], cuts_N2)).ravel()
        first = pool.add(texts.values, np.append(bounds, texts.offsets[-1]))
        prefix, middle, suffix = first + np.arange(3 * len(texts)).reshape(-1, 3).T
        nothing = pool.add_literal([])
        named = self._sentinels(pool, cuts.is_moved, nothing)
        spm_rate = 0.5 if self.config.spm_rate is None else self.config.spm_rate
        is_spm = cuts.is_moved & (cuts.choice < spm_rate)
        return rows_of_matrix(
            pool,
            [
                named["prefix"],
                np.where(is_spm, nothing, prefix),
                np.where(cuts.is_moved, nothing, middle),
                named["suffix"],
                suffix,
                named["middle"],
                np.where(is_spm, prefix, nothing),
                np.where(cuts.is_moved, middle, nothing),
                named["end_of_text"],
            ],
        )

    def _arrange_se(self, texts: Ragged, cuts: Cuts, cuts_N2: np.ndarray) -> Ragged:
        starts, stops = texts.offsets[:-1], texts.offsets[1:]
        before, after = cuts_N2.T
        newlines = np.flatnonzero(texts.values == NEWLINE)
        # The prefix's last line begins after the newline before it, or where the text does.
        previous = np.append(newlines, -1)[np.searchsorted(newlines, before) - 1]
        last_line = np.maximum(previous + 1, starts)
        following = np.append(newlines, len(texts.values))[np.searchsorted(newlines, after)]
        rest = np.minimum(following + 1, stops)

        pool = SegmentPool("uint8")
        bounds = np.column_stack((starts, last_line, before, after, rest)).ravel()
        first = pool.add(texts.values, np.append(bounds, texts.offsets[-1]))
        parts = first + np.arange(5 * len(texts)).reshape(-1, 5).T
        r_prefix, l_prefix, middle, f_suffix, r_suffix = parts
        nothing, newline = pool.add_literal([]), pool.add_literal([NEWLINE])
        adds_lines = cuts.is_moved & (not self.config.exact_lines)
        r_prefix_end = np.where(adds_lines & (previous < starts), newline, nothing)
        f_suffix_end = np.where(adds_lines & (following >= stops), newline, nothing)
        # Quarters of the draw: neither is shown, F-suffix alone, L-prefix alone, both.
        is_moved = cuts.is_moved
        shows_l = is_moved & (cuts.choice >= 0.5)
        shows_f = is_moved & (cuts.choice >= 0.25) & ~((cuts.choice >= 0.5) & (cuts.choice < 0.75))
        named = self._sentinels(pool, is_moved, nothing)
        end = named["end_of_text" if self.config.authors_end else "end"]
        return rows_of_matrix(
            pool,
            [
                named["prefix"],
                *(r_prefix, r_prefix_end),
                *(np.where(is_moved, nothing, part) for part in (l_prefix, middle, f_suffix)),
                *(named["suffix"], r_suffix),
                *(named["start"], np.where(shows_l, l_prefix, nothing)),
                *(end, np.where(shows_f, f_suffix, nothing)),
                np.where(shows_f, f_suffix_end, nothing),
                named["middle"],
                *(np.where(is_moved, part, nothing) for part in (l_prefix, middle, f_suffix)),
                *(f_suffix_end, named["end_of_text"]),
            ],
        )

    def _sentinels(
        self, pool: SegmentPool, is_moved: np.ndarray, nothing: int
    ) -> dict[str, np.ndarray]:
        texts = self.config.sentinels.model_dump()
        literals = {name: pool.add_literal(list(text.encode())) for name, text in texts.items()}
        return {name: np.where(is_moved, literal, nothing) for name, literal in literals.items()}


def _cuts_by_length(lengths: np.ndarray, rate: float) -> Cuts:
    """Draw as the authors of FIM-SE do: from a Mersenne twister seeded with the length."""
    is_moved = np.zeros(len(lengths), bool)
    places = np.zeros((len(lengths), 2), np.int64)
    choice = np.zeros(len(lengths))
    for length in np.unique(lengths[lengths >= 2]).tolist():
        random = np.random.RandomState(length)
        if random.binomial(1, rate):
            rows = lengths == length
            is_moved[rows] = True
            places[rows] = np.sort(random.choice(length, 2, replace=False))
            choice[rows] = random.rand()
    return Cuts(is_moved, places, choice)
