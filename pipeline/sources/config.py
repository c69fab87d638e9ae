"""What every source's config shares."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MIB = 1 << 20


def _no_reserved_name(name: str) -> str:
    if not name.isidentifier():
        raise ValueError(f"field name {name!r} is not an identifier (letters, digits, underscore)")
    if name == "key":
        raise ValueError("field name 'key' is reserved for the sample's key; choose another")
    return name


FieldName = Annotated[str, AfterValidator(_no_reserved_name)]


class BaseSourceConfig(BaseModel):
    """Where the samples are and how they are cut into partitions. Subclasses add fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: Annotated[
        str | Annotated[list[str], Field(min_length=1)],
        Field(
            description="Paths or URLs (s3://, hf://, https://), with globs (*, **, ?, [])"
            " and braces ({000..007})."
        ),
    ]
    partition_bytes: Annotated[
        int,
        Field(gt=0, description="Join small files up to this size; cut larger Parquet files."),
    ] = 256 * MIB


def by_name(value: Any) -> Any:
    """Turn a list of names into the mapping that means the same: each name to itself."""
    return {name: name for name in value} if isinstance(value, list) else value
