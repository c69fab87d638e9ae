"""Interleave token fields and special tokens into one sequence of ids."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from operators.base import Batch, FieldSpec, Operator, OperatorConfig, Ragged, smallest_uint
from operators.columns import num_rows, take_batch
from operators.errors import ContractError, RowErrors, SampleError
from operators.keyed_draws import draws_of_keys
from operators.sequence.segments import SegmentPool, Units, once, picks_in_turn, units_of
from operators.sequence.vocabulary import (
    ANY_INTEGERS,
    ID_DTYPES,
    DeclaredVocabulary,
    OneKey,
    VocabularyLayout,
    ids_out_of_range,
)


class Drop(BaseModel):
    """Leave an entry out of some samples, as classifier-free guidance is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: Annotated[float, Field(gt=0, le=1, description="Share of samples.")]
    instead: Annotated[
        list[str], Field(description="Special tokens that stand there then; default none.")
    ] = []
    seed: Annotated[int, Field(ge=0, description="Of the draws; with it, `key` decides.")] = 0
    draw: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Entries that share a draw are dropped from the same samples; "
            "default: the field, a draw of its own.",
        ),
    ] = None


class FieldEntry(BaseModel):
    """An entry of a template that says more of a field than its modality."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    field: Annotated[str, Field(min_length=1, description="The job's field.")]
    modality: Annotated[str, Field(description="Range of the vocabulary that its ids lie in.")]
    before: Annotated[
        list[str],
        Field(description="Special tokens before the ids; before each image, where there are more"),
    ] = []
    after: Annotated[list[str], Field(description="Special tokens after them, likewise.")] = []
    drop: Annotated[Drop | None, Field(description="Leave it out of some samples.")] = None
    check: Annotated[
        Literal["vocabulary", "rows"],
        Field(
            description="`vocabulary`: the field must be known to have ids of the range only. "
            "`rows`: any integers are taken, and a sample with others than these is bad."
        ),
    ] = "vocabulary"


def _kind(entry: Any) -> str:
    if isinstance(entry, FieldEntry):
        return "entry"
    if not isinstance(entry, dict):
        return "token"
    return "entry" if {"field", "modality"} & set(entry) else "field"


TemplateEntry = Annotated[
    Annotated[str, Tag("token")]
    | Annotated[dict[str, str], OneKey, Tag("field")]
    | Annotated[FieldEntry, Tag("entry")],
    Discriminator(_kind),
]


class SequenceConfig(OperatorConfig):
    """What a job may say about ``sequence``.

    Example:
        >>> config = SequenceConfig(
        ...     vocabulary=[{"special": ["<bos>", "<boi>"]}, {"text": 256}, {"image": 64_000}],
        ...     template=["<bos>", {"text": "caption"}, "<boi>", {"image": "codes"}],
        ... )
        >>> config.layout().size
        64258
    """

    name: Literal["sequence"] = "sequence"
    vocabulary: DeclaredVocabulary
    template: Annotated[
        list[TemplateEntry],
        Field(
            min_length=1,
            description="What a sequence is made of, in order: a special token, "
            "`modality: field` for all ids of a field, or `field`, `modality` and more.",
        ),
    ]
    loss_on: Annotated[
        list[str] | None,
        Field(
            min_length=1,
            description="Special tokens and fields of the template that a model is to learn; adds "
            "`loss_mask`, 1 for their ids and 0 for others. Default: no mask.",
        ),
    ] = None

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        layout = self.layout()
        fields: set[str] = set()
        for position, item in enumerate(self.template):
            where = f"template[{position}]"
            if isinstance(item, str):
                layout.check_special(item, where)
                continue
            entry = entry_of(item)
            layout.check_modality(entry.modality, entry.field, where)
            for token in (*entry.before, *entry.after, *(entry.drop.instead if entry.drop else ())):
                layout.check_special(token, f"{where} ({entry.field})")
            if entry.field in fields:
                raise ValueError(f"{where}: field {entry.field!r} stands twice; use a field once")
            if entry.field == "key" or entry.field in layout.special_ids:
                raise ValueError(
                    f"{where}: field {entry.field!r} has the name of "
                    f"{'what names a sample' if entry.field == 'key' else 'a special token'}; "
                    "rename it where it is made"
                )
            fields.add(entry.field)
        if not fields:
            raise ValueError(f"template: {self.template} names no field; add a `modality: field`")
        self._check_draws()
        there = [*(item for item in self.template if isinstance(item, str)), *sorted(fields)]
        for name in self.loss_on or ():
            if name not in there:
                raise ValueError(
                    f"loss_on: {name!r} is no special token or field of the template's own, "
                    f"which has {list(dict.fromkeys(there))}"
                )
        return self

    def _check_draws(self) -> None:
        seen: dict[str, tuple[str, Drop]] = {}
        for entry in self.entries().values():
            if entry.drop is None:
                continue
            draw = entry.drop.draw or entry.field
            other, drop = seen.setdefault(draw, (entry.field, entry.drop))
            if (drop.rate, drop.seed) != (entry.drop.rate, entry.drop.seed):
                raise ValueError(
                    f"template: fields {other!r} and {entry.field!r} share the draw {draw!r}, "
                    "but differ in rate or seed; make them equal"
                )

    def layout(self) -> VocabularyLayout:
        """Return the vocabulary with its ids."""
        return VocabularyLayout.of(self.vocabulary)

    def entries(self) -> dict[int, FieldEntry]:
        """Return position in the template -> the field that stands there."""
        items = enumerate(self.template)
        return {i: entry_of(item) for i, item in items if not isinstance(item, str)}


def entry_of(item: dict[str, str] | FieldEntry) -> FieldEntry:
    """Return a field of a template in its long form."""
    if isinstance(item, FieldEntry):
        return item
    [(modality, field)] = item.items()
    return FieldEntry(field=field, modality=modality)


class Sequence(Operator[SequenceConfig]):
    """Join the fields of a template, each shifted into its modality's range of one vocabulary.

    Reads the fields that the template names; adds ``sequence`` [T] of the smallest unsigned type
    that holds all ranges, and, where ``loss_on`` is given, ``loss_mask`` uint8 [T], whose place t
    says whether a model is to learn the id at t. Id i of a field stands as ``range start + i``. An
    empty field leaves nothing behind but special tokens.

    A field has one dimension, ragged or dense, or two: several images of a sample, [V, T], or any
    number of them with T ids each. They stand one after another, each between ``before`` and
    ``after``. These, like ``instead``, belong to their field in ``loss_on``. (Positions with
    several ids, [T, S], come out position by position; give those no ``before`` or ``after``.)

    ``drop`` leaves a field out of a share of the samples, with its ``before`` and ``after``:
    classifier-free guidance (https://arxiv.org/abs/2207.12598, section 3.2) drops captions from
    10 to 20 % of them. A sample's key and the seed decide, so every run drops the same ones: those
    whose first number of ``draws_of_keys(seed, "drop/<draw>")`` is below the rate.

    About 700 million ids/s on one core, a caption of 50 and an image of 256 ids a sample; 300
    with captions dropped and a mask.
    """

    Config = SequenceConfig

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config)
        self._layout = config.layout()
        self._dtype = smallest_uint(self._layout.size)
        self._entries = config.entries()
        self._dimensions: dict[str, int] = {}

    def bind(self, fields: Mapping[str, FieldSpec]) -> None:
        """Note which fields hold several images a sample."""
        self._dimensions = {
            name: 2 for name, spec in fields.items() if name != "key" and len(spec.shape) == 2
        }

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """The fields of the template, and ``key`` where some are dropped."""
        found = {entry.field: self._spec_of(entry) for entry in self._entries.values()}
        if any(entry.drop for entry in self._entries.values()):
            found["key"] = FieldSpec("string")
        return found

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The joined ids, and what to learn of them."""
        found = {"sequence": FieldSpec(self._dtype, (None,), vocab_size=self._layout.size)}
        if self.config.loss_on is not None:
            found["loss_mask"] = FieldSpec("uint8", (None,))
        return found

    def metadata(self) -> Mapping[str, object]:
        """Return the vocabulary's ranges and special ids, its size, and the template."""
        found: dict[str, object] = {
            "vocabulary": self._layout.as_json(),
            "size": self._layout.size,
            "template": [
                item.model_dump(exclude_defaults=True) if isinstance(item, FieldEntry) else item
                for item in self.config.template
            ],
        }
        if self.config.loss_on is not None:
            found["loss_on"] = self.config.loss_on
        return found

    def __call__(self, batch: Batch) -> Batch:
        """Join every row.

        Raises:
            RowErrors: a field holds an id outside its modality's range.
        """
        units = {entry.field: units_of(batch[entry.field]) for entry in self._entries.values()}
        errors = self._out_of_range(units)
        if errors:
            good = np.setdiff1d(np.arange(num_rows(next(iter(batch.values())))), list(errors))
            raise RowErrors(errors, self(take_batch(batch, good)))
        return self._join(units, batch)

    def decode(self, batch: Batch) -> Batch:
        """Return the template's fields of ``sequence``; as ``split``."""
        return self.split(batch["sequence"])

    def split(self, sequence: Ragged) -> dict[str, Ragged]:
        """Take sequences apart into the fields they were made of; the inverse of a call.

        Args:
            sequence: Whole rows, as a call returned them.

        Returns:
            Field -> ids without the range's start, of the smallest type that holds the range.

        Images of one sample come back as one row of ids, and what was dropped as an empty row.

        Raises:
            ContractError: two fields of one modality stand in the template with no special token
                between them, so where one ends cannot be seen; or a field has special tokens that
                do not stand in every row, or stand in it more than once.
            SampleError: a row does not follow the template.
        """
        template = self._plain_template()
        items = self._items_of_ids(sequence, template)
        fields = {}
        for item, content in enumerate(template):
            if isinstance(content, str):
                continue
            is_field = items == item
            num_before = np.concatenate(([0], np.cumsum(is_field)))
            vocabulary_range = self._layout[content.modality]
            ids = sequence.values[is_field] - vocabulary_range.start
            dtype = smallest_uint(vocabulary_range.size)
            fields[content.field] = Ragged(ids.astype(dtype), num_before[sequence.offsets])
        return fields

    def _spec_of(self, entry: FieldEntry) -> FieldSpec:
        shape = (None,) * self._dimensions.get(entry.field, 1)
        if entry.check == "rows":
            return FieldSpec(ANY_INTEGERS, shape)
        return FieldSpec(ID_DTYPES, shape, vocab_size=self._layout[entry.modality].size)

    def _out_of_range(self, units: Mapping[str, Units]) -> dict[int, SampleError]:
        errors: dict[int, SampleError] = {}
        for entry in self._entries.values():
            size = self._layout[entry.modality].size
            found = units[entry.field]
            for row, value in ids_out_of_range(found.values, found.row_bounds, size).items():
                errors.setdefault(
                    row,
                    SampleError(
                        f"sequence: field {entry.field!r} holds id {value}, "
                        f"but {entry.modality!r} has {size:,} ids"
                    ),
                )
        return errors

    def _join(self, units: Mapping[str, Units], batch: Batch) -> Batch:
        size = num_rows(next(iter(batch.values())))
        pool = SegmentPool(self._dtype)
        columns = []
        for position, item in enumerate(self.config.template):
            if isinstance(item, str):
                columns.append(once(size, pool.add_literal([self._layout.special_id(item)])))
                continue
            entry = self._entries[position]
            columns.append(self._picks_of_field(pool, entry, units[entry.field], batch))
        picks = picks_in_turn(columns, size)
        sequence, lengths = picks.rows(pool)
        if self.config.loss_on is None:
            return {"sequence": sequence}
        names = [
            item if isinstance(item, str) else self._entries[position].field
            for position, item in enumerate(self.config.template)
        ]
        is_learnt = np.array([name in self.config.loss_on for name in names], np.uint8)
        mask = Ragged(np.repeat(is_learnt[picks.columns], lengths), sequence.offsets)
        return {"sequence": sequence, "loss_mask": mask}

    def _picks_of_field(
        self, pool: SegmentPool, entry: FieldEntry, units: Units, batch: Batch
    ) -> tuple[np.ndarray, np.ndarray]:
        first = pool.add(units.values, units.bounds, self._layout[entry.modality].start)
        parts = [first + np.arange(len(units.bounds) - 1)]
        if entry.before or entry.after:
            before, after = (
                np.full(len(parts[0]), pool.add_literal([*map(self._layout.special_id, tokens)]))
                for tokens in (entry.before, entry.after)
            )
            parts = [before, *parts, after]
        picks_UP = np.stack(parts, axis=1)  # U units, P segments for each
        counts = units.counts * len(parts)
        if entry.drop is None:
            return counts, picks_UP.ravel()
        draw = entry.drop.draw or entry.field
        drawn = draws_of_keys(entry.drop.seed, f"drop/{draw}", batch["key"])[:, 0]
        is_dropped = drawn < entry.drop.rate
        kept = picks_UP[np.repeat(~is_dropped, units.counts)].ravel()
        instead = pool.add_literal([*map(self._layout.special_id, entry.drop.instead)])
        # Of the two columns a row has picks in one: what it keeps, or what stands instead.
        chosen = picks_in_turn(
            [
                (np.where(is_dropped, 0, counts), kept),
                (is_dropped.astype(np.int64), np.full(int(is_dropped.sum()), instead)),
            ],
            len(is_dropped),
        )
        return np.diff(chosen.row_bounds), chosen.segments

    def _plain_template(self) -> list[str | FieldEntry]:
        """Return the template with the special tokens of fields as entries of their own."""
        plain: list[str | FieldEntry] = []
        for position, item in enumerate(self.config.template):
            if isinstance(item, str):
                plain.append(item)
                continue
            entry = self._entries[position]
            has_tokens = bool(entry.before or entry.after)
            if entry.drop is not None and (has_tokens or entry.drop.instead):
                raise ContractError(
                    f"sequence: field {entry.field!r} is dropped from some rows with its special "
                    "tokens, so the rows cannot be taken apart again",
                    hint="write the field itself to the shards, beside the sequence",
                )
            if self._dimensions.get(entry.field) == 2 and has_tokens:
                raise ContractError(
                    f"sequence: field {entry.field!r} is several images, each between special "
                    "tokens, so the rows cannot be taken apart again",
                    hint="write the field itself to the shards, beside the sequence",
                )
            plain += [*entry.before, entry, *entry.after]
        return plain

    def _items_of_ids(self, sequence: Ragged, template: list[str | FieldEntry]) -> np.ndarray:
        """Return int64 [M], the template item that each id came from.

        Special tokens occur only where the template has them. So counting them tells in which
        stretch between two special tokens an id is, and there its range tells the field.
        """
        item_of_GR = self._item_table(template)
        special_items = np.array([i for i, x in enumerate(template) if isinstance(x, str)], int)
        starts = np.array([r.start for r in self._layout.ranges])
        is_special_range = np.array([r.special_tokens is not None for r in self._layout.ranges])

        ranges = np.searchsorted(starts, sequence.values, side="right") - 1
        is_special = is_special_range[ranges]
        num_before = np.concatenate(([0], np.cumsum(is_special)))
        row_of = np.repeat(np.arange(len(sequence)), sequence.lengths)
        gaps = num_before[1:] - num_before[sequence.offsets[:-1]][row_of]

        follows = np.diff(num_before[sequence.offsets]) == len(special_items)
        gaps = np.minimum(gaps, len(special_items))  # rows with more are refused below
        items: np.ndarray = item_of_GR[gaps, ranges]
        items[is_special] = special_items[gaps[is_special] - 1] if len(special_items) else -1
        bad = (items < 0) | (sequence.values >= self._layout.size)
        want_ids = np.array([self._layout.special_ids.get(str(x), -1) for x in template])
        bad[is_special] |= sequence.values[is_special] != want_ids[items[is_special]]
        bad[1:] |= (np.diff(items) < 0) & (np.diff(row_of) == 0)
        follows[row_of[bad]] = False
        if not follows.all():
            row = int(np.argmin(follows))
            raise SampleError(
                f"sequence: row {row} with {sequence.lengths[row]} ids does not follow the "
                f"template {self.metadata()['template']}",
                hint="split whole rows, with the config that joined them",
            )
        return items

    def _item_table(self, template: list[str | FieldEntry]) -> np.ndarray:
        """Return int64 [G, R]: G stretches between special tokens, R ranges -> item, or -1."""
        names = [r.name for r in self._layout.ranges]
        num_gaps = 1 + sum(isinstance(item, str) for item in template)
        table_GR = np.full((num_gaps, len(names)), -1)
        gap = 0
        for item, content in enumerate(template):
            if isinstance(content, str):
                gap += 1
                continue
            before = table_GR[gap, names.index(content.modality)]
            if before >= 0:
                other: Any = template[before]
                raise ContractError(
                    f"sequence: fields {other.field!r} and {content.field!r} are both "
                    f"{content.modality!r} with no special token between them, so they cannot be "
                    "told apart again",
                    hint="put a special token between them in the template",
                )
            table_GR[gap, names.index(content.modality)] = item
        return table_GR
