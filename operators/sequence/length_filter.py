"""Drop samples whose token row is too short or too long."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from operators.base import Batch, FieldSpec, Filter, OperatorConfig, Verdict
from operators.columns import as_ragged
from operators.sequence.vocabulary import ID_DTYPES


class LengthFilterConfig(OperatorConfig):
    """What a job may say about ``length_filter``."""

    name: Literal["length_filter"] = "length_filter"
    min_length: Annotated[int | None, Field(ge=1, description="Shortest row kept, ids.")] = None
    max_length: Annotated[int | None, Field(ge=1, description="Longest row kept, ids.")] = None

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        low, high = self.min_length, self.max_length
        if low is None and high is None:
            raise ValueError("neither min_length nor max_length is set; give one or both")
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_length={low} is above max_length={high}; no row would be kept")
        return self


class LengthFilter(Filter[LengthFilterConfig]):
    """Keep rows of ``min_length`` to ``max_length`` ids, both included.

    Reads ``tokens``, one dimension, ragged or dense; ``inputs: {tokens: caption_tokens}`` looks at
    another field. Reasons: ``too_short``, ``too_long``.
    """

    Config = LengthFilterConfig
    inputs: Mapping[str, FieldSpec] = {"tokens": FieldSpec(ID_DTYPES, (None,))}

    def __call__(self, batch: Batch) -> Verdict:
        """Judge every row by its number of ids."""
        lengths = as_ragged(batch["tokens"]).lengths
        codes = np.zeros(len(lengths), np.uint8)
        if self.config.min_length is not None:
            codes[lengths < self.config.min_length] = 1
        if self.config.max_length is not None:
            codes[lengths > self.config.max_length] = 2
        return Verdict(codes, ("too_short", "too_long"))
