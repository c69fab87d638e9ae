"""Interleave token fields and special tokens into one sequence of ids."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from operators.base import Batch, FieldSpec, Operator, OperatorConfig, Ragged, smallest_uint
from operators.columns import as_ragged, take_batch
from operators.errors import ContractError, RowErrors, SampleError
from operators.sequence.vocabulary import ID_DTYPES, VocabularyLayout

OneKey = Field(min_length=1, max_length=1)


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
    vocabulary: Annotated[
        list[Annotated[dict[str, int | list[str]], OneKey]],
        Field(
            min_length=1,
            description="Ranges of ids, laid one after another from 0. Each is `name: size` for "
            "a modality or `name: [token, ...]` for special tokens.",
        ),
    ]
    template: Annotated[
        list[str | Annotated[dict[str, str], OneKey]],
        Field(
            min_length=1,
            description="What a sequence is made of, in order: a special token, or "
            "`modality: field` for all ids of a field.",
        ),
    ]

    @field_validator("vocabulary", mode="before")
    @classmethod
    def _check_order_is_kept(cls, value: object) -> object:
        if isinstance(value, Mapping):
            # Whoever writes a mapping with sorted keys would silently renumber every id.
            raise ValueError(
                "vocabulary is a mapping, expected a list of ranges, whose order decides the ids: "
                f"{[{name: content} for name, content in value.items()]}"
            )
        return value

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        layout = self.layout()
        fields: set[str] = set()
        for item in self.template:
            if isinstance(item, str):
                if item not in layout.special_ids:
                    raise ValueError(
                        f"template: special token {item!r} is not declared; "
                        f"vocabulary has {list(layout.special_ids)}"
                    )
                continue
            [(modality, field)] = item.items()
            if modality not in layout.modalities:
                raise ValueError(
                    f"template: unknown modality {modality!r} of field {field!r}; "
                    f"vocabulary has {layout.modalities}"
                )
            if field in fields:
                raise ValueError(f"template: field {field!r} stands twice; use a field once")
            fields.add(field)
        if not fields:
            raise ValueError(f"template: {self.template} names no field; add a `modality: field`")
        return self

    def layout(self) -> VocabularyLayout:
        """Return the vocabulary with its ids."""
        return VocabularyLayout([pair for one in self.vocabulary for pair in one.items()])


class Sequence(Operator[SequenceConfig]):
    """Join the fields of a template, each shifted into its modality's range of one vocabulary.

    Reads the fields that the template names, one dimension each, ragged or dense, with a
    vocabulary no larger than their modality's range; adds ``sequence`` [T] of the smallest
    unsigned type that holds all ranges. Id i of a field stands as ``range start + i``. An empty
    field leaves nothing behind but the template's special tokens.
    """

    Config = SequenceConfig

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config)
        self._layout = config.layout()
        self._dtype = smallest_uint(self._layout.size)

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """The fields of the template."""
        return {
            field: FieldSpec(ID_DTYPES, (None,), vocab_size=self._layout[modality].size)
            for _, modality, field in self._fields()
        }

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The joined ids."""
        return {"sequence": FieldSpec(self._dtype, (None,), vocab_size=self._layout.size)}

    def metadata(self) -> Mapping[str, object]:
        """Return the vocabulary's ranges and special ids, its size, and the template."""
        return {
            "vocabulary": self._layout.as_json(),
            "size": self._layout.size,
            "template": self.config.template,
        }

    def __call__(self, batch: Batch) -> Batch:
        """Join every row.

        Raises:
            RowErrors: a field holds an id outside its modality's range.
        """
        rows = {field: as_ragged(batch[field]) for _, _, field in self._fields()}
        errors = self._out_of_range(rows)
        if errors:
            good = np.setdiff1d(np.arange(_num_rows(rows)), list(errors))
            raise RowErrors(errors, self(take_batch(rows, good)))
        return {"sequence": self._join(rows)}

    def decode(self, batch: Batch) -> Batch:
        """Return the template's fields of ``sequence``; as ``split``."""
        return self.split(batch["sequence"])

    def split(self, sequence: Ragged) -> dict[str, Ragged]:
        """Take sequences apart into the fields they were made of; the inverse of a call.

        Args:
            sequence: Whole rows, as a call returned them.

        Returns:
            Field -> ids without the range's start, of the smallest type that holds the range.

        Raises:
            ContractError: two fields of one modality stand in the template with no special token
                between them, so where one ends cannot be seen.
            SampleError: a row does not follow the template.
        """
        items = self._items_of_ids(sequence)
        fields = {}
        for item, modality, field in self._fields():
            is_field = items == item
            num_before = np.concatenate(([0], np.cumsum(is_field)))
            ids = sequence.values[is_field] - self._layout[modality].start
            dtype = smallest_uint(self._layout[modality].size)
            fields[field] = Ragged(ids.astype(dtype), num_before[sequence.offsets])
        return fields

    def _fields(self) -> Iterator[tuple[int, str, str]]:
        """Yield position in the template, modality and name of every field."""
        for position, item in enumerate(self.config.template):
            if not isinstance(item, str):
                [(modality, field)] = item.items()
                yield position, modality, field

    def _out_of_range(self, rows: Mapping[str, Ragged]) -> dict[int, SampleError]:
        errors: dict[int, SampleError] = {}
        for _, modality, field in self._fields():
            values, size = rows[field].values, self._layout[modality].size
            if size > np.iinfo(values.dtype).max or not values.size or values.max() < size:
                continue
            bad = np.flatnonzero(values >= size)
            bad_rows = np.searchsorted(rows[field].offsets, bad, side="right") - 1
            firsts = np.unique(bad_rows, return_index=True)
            for row, first in zip(*(array.tolist() for array in firsts), strict=True):
                errors.setdefault(
                    row,
                    SampleError(
                        f"sequence: field {field!r} holds id {values[bad[first]]}, "
                        f"but {modality!r} has {size:,} ids"
                    ),
                )
        return errors

    def _join(self, rows: Mapping[str, Ragged]) -> Ragged:
        template = self.config.template
        num_rows = _num_rows(rows)
        lengths_NI = np.ones((num_rows, len(template)), np.int64)  # N rows, I template items
        for item, _, field in self._fields():
            lengths_NI[:, item] = rows[field].lengths
        stops_NI = np.cumsum(lengths_NI).reshape(lengths_NI.shape)
        offsets = np.concatenate(([0], stops_NI[:, -1]))
        ids = np.empty(offsets[-1], self._dtype)
        items = np.tile(np.arange(len(template), dtype=smallest_uint(len(template))), num_rows)
        items = np.repeat(items, lengths_NI.ravel())
        for item, content in enumerate(template):
            if isinstance(content, str):
                ids[stops_NI[:, item] - 1] = self._layout.special_id(content)
        for item, modality, field in self._fields():
            start = self._layout[modality].start
            shifted = np.add(rows[field].values, start, dtype=self._dtype, casting="unsafe")
            ids[items == item] = shifted
        return Ragged(ids, offsets)

    def _items_of_ids(self, sequence: Ragged) -> np.ndarray:
        """Return int64 [M], the template item that each id came from.

        Special tokens occur only where the template has them. So counting them tells in which
        stretch between two special tokens an id is, and there its range tells the field.
        """
        item_of_GR = self._item_table()
        template = self.config.template
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
                f"template {template}",
                hint="split whole rows, with the config that joined them",
            )
        return items

    def _item_table(self) -> np.ndarray:
        """Return int64 [G, R]: G stretches between special tokens, R ranges -> item, or -1."""
        names = [r.name for r in self._layout.ranges]
        num_gaps = 1 + sum(isinstance(item, str) for item in self.config.template)
        table_GR = np.full((num_gaps, len(names)), -1)
        gap = 0
        for item, content in enumerate(self.config.template):
            if isinstance(content, str):
                gap += 1
                continue
            [(modality, field)] = content.items()
            before = table_GR[gap, names.index(modality)]
            if before >= 0:
                other: Any = self.config.template[before]
                raise ContractError(
                    f"sequence: fields {other[modality]!r} and {field!r} are both {modality!r} "
                    "with no special token between them, so they cannot be told apart again",
                    hint="put a special token between them in the template",
                )
            table_GR[gap, names.index(modality)] = item
        return table_GR


def _num_rows(rows: Mapping[str, Ragged]) -> int:
    return len(next(iter(rows.values())))
