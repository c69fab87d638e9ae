"""Read samples from tars of the WebDataset convention: members that share a key are a sample.

A member's key is its path up to the first dot of its base name, the rest is its extension, in
lower case; members of one sample stand next to each other. Names, grouping and skipped members
are those of the `webdataset` library 1.0 (`tariterators.py`), which the tests compare with.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from operators.base import FieldSpec
from pipeline.protocols import Partition, SampleBlock, SourceFile, SourceRange
from pipeline.sources.blocks import (
    Fault,
    SeenKeys,
    binary_array,
    count_ranges,
    cut_blocks,
    make_block,
    read_ranges,
)
from pipeline.sources.config import BaseSourceConfig, FieldName
from pipeline.sources.listing import join_ranges, list_files, whole_files
from pipeline.sources.objects import DamagedError, open_planned, open_stream
from pipeline.sources.tar import TarWalk
from pipeline.storage import Storage

TEXT_EXTENSIONS = ("caption", "cls", "id", "json", "jsn", "text", "transcript", "txt")


class MemberField(BaseModel):
    """Which member of a sample a field is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    member: Annotated[
        str,
        Field(
            pattern=r"^[^;./][^;/]*(;[^;./][^;/]*)*$",
            description="Extensions, `jpg;jpeg;png`: the first that a sample has is the field.",
        ),
    ]
    dtype: Annotated[
        Literal["string", "binary"] | None,
        Field(description=f"Default: string for {', '.join(TEXT_EXTENSIONS)}, else binary."),
    ] = None

    @property
    def extensions(self) -> tuple[str, ...]:
        """In lower case, in order of preference."""
        return tuple(self.member.lower().split(";"))

    @property
    def spec(self) -> FieldSpec:
        """What the field is."""
        return FieldSpec(self.dtype or ("string" if any(self._are_text) else "binary"))

    @property
    def _are_text(self) -> list[bool]:
        return [name.rpartition(".")[2] in TEXT_EXTENSIONS for name in self.extensions]

    @model_validator(mode="after")
    def _one_kind(self) -> "MemberField":
        if self.dtype is None and len(set(self._are_text)) > 1:
            raise ValueError(f"member {self.member!r} mixes text and bytes; give `dtype`")
        return self


def _member(value: Any) -> Any:
    return {"member": value} if isinstance(value, str) else value


class WebDatasetConfig(BaseSourceConfig):
    """What a job may say about tars of the WebDataset convention."""

    type: Literal["webdataset"] = "webdataset"
    fields: Annotated[
        dict[
            FieldName,
            Annotated[
                MemberField, BeforeValidator(_member, json_schema_input_type=str | MemberField)
            ],
        ],
        Field(min_length=1, description="Field -> extensions, or {member, dtype}."),
    ]


_CHUNK_OF_FILES, _CHUNK_OF_TEXTS = 32, 1024


class WebDatasetSource:
    """Reads tars, `.tar`, `.tar.gz`, `.tgz` or `.tar.zst`, whose members are grouped by key.

    Rejected are samples that lack a field (``MissingField``), hold text that is not UTF-8
    (``InvalidUtf8``) or one extension twice (``DuplicateMember``), and samples whose key the tar
    has given before (``DuplicateKey``; the library would give two samples). Members without an
    extension, folders, links and ``__meta__`` members are not samples and are passed over.

    A damaged tar gives every sample before the damage, then one record ``CorruptTar`` for all the
    rest: how many samples that holds cannot be known. A sample that the damage cuts, or that is
    not complete when it comes, is part of the rest. A tar that ends between two members without
    an end marker is taken as whole, as ``tarfile`` does.

    Example:
        >>> config = WebDatasetConfig(urls="s3://bucket/{000..127}.tar", fields={"image": "jpg"})
        >>> source = WebDatasetSource(config, Storage(), [config.urls])
    """

    def __init__(self, config: WebDatasetConfig, storage: Storage, urls: Sequence[str]) -> None:
        self.config = config
        self._storage = storage
        self._urls = urls
        self._extensions = {name: f.extensions for name, f in config.fields.items()}
        self._wanted = {ext for extensions in self._extensions.values() for ext in extensions}

    @property
    def chunk_size(self) -> int:
        """Many where all fields are text, as documents are small; else few, as of images."""
        is_text = all(spec.dtype == "string" for spec in self.fields.values())
        return _CHUNK_OF_TEXTS if is_text else _CHUNK_OF_FILES

    @property
    def fields(self) -> Mapping[str, FieldSpec]:
        """String or binary, as configured."""
        return {name: field.spec for name, field in self.config.fields.items()}

    def list_partitions(self) -> Iterator[Partition]:
        """Join small tars up to ``partition_bytes``; a larger one is a partition."""
        files = list_files(self._storage, self._urls)
        return join_ranges(whole_files(files), self.config.partition_bytes)

    def count_samples(self, partition: Partition, at_most: int) -> int:
        """Count by the members' headers."""

        def count(found: SourceRange, enough: int) -> int:
            return sum(1 for _ in islice(self._samples(found.file, read_bodies=False), enough))

        return count_ranges(partition, at_most, count)

    def read(self, partition: Partition, block_rows: int) -> Iterator[SampleBlock]:
        """Yield the samples in the order of the tars."""
        return read_ranges(partition, partial(self._read_file, block_rows=block_rows))

    def _read_file(
        self, found: SourceRange, first_row: int, at_most: int | None, *, block_rows: int
    ) -> Iterator[SampleBlock]:
        seen = SeenKeys()
        samples = islice(self._samples(found.file, read_bodies=True), at_most)
        for part in cut_blocks(samples, block_rows, _Sample.num_bytes):
            yield self._block(part, found.file, first_row, seen)
            first_row += len(part)

    def _block(
        self, samples: Sequence["_Sample"], file: SourceFile, first_row: int, seen: SeenKeys
    ) -> SampleBlock:
        specs = self.fields
        faults = {row: s.fault for row, s in enumerate(samples) if s.fault is not None}
        repeats = seen.find_repeats(
            [None if s.fault and s.fault.error == CORRUPT else s.key for s in samples]
        )
        keys = []
        for row, sample in enumerate(samples):
            keys.append(sample.key.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
            if keys[-1] != sample.key:
                faults.setdefault(row, Fault("InvalidUtf8", "the key is not UTF-8"))
        arrays = {}
        for name, extensions in self._extensions.items():
            values = [_first(sample.members, extensions) for sample in samples]
            for row, value in enumerate(values):
                if value is None:
                    has = ", ".join(sorted(samples[row].extensions))
                    wants = " or ".join(extensions)
                    fault = Fault("MissingField", f"field {name!r}: no {wants} among {has}")
                    repeats.setdefault(row, fault)
            array = binary_array(values)
            arrays[name] = array.view(pa.large_string()) if specs[name].dtype == "string" else array
        return make_block(
            first_row=first_row,
            file_name=file.name,
            num_bytes=sum(map(_Sample.num_bytes, samples)),
            keys=pa.array(keys, pa.large_string()),
            arrays=arrays,
            specs=specs,
            faults=repeats | faults,
        )

    def _samples(self, file: SourceFile, *, read_bodies: bool) -> Iterator["_Sample"]:
        with open_planned(self._storage, file) as opened:
            walk = TarWalk(open_stream(opened, file))
            current: _Sample | None = None
            try:
                for member in walk:
                    key, extension = split_name(member.name)
                    if key is None or _is_meta(member.name):
                        continue
                    if current is None or key != current.key:
                        if current is not None:
                            yield current
                        current = _Sample(key)
                    if extension in current.extensions:
                        current.fault = Fault(
                            "DuplicateMember", f"{member.name!r} is in the sample twice"
                        )
                    elif extension in self._wanted:
                        data = walk.body(member) if read_bodies else b""
                        current.members[extension] = data
                    current.extensions.add(extension)
            except DamagedError as damage:
                yield from self._end_damaged(current, damage)
            else:
                if current is not None:
                    yield current

    def _end_damaged(self, current: "_Sample | None", damage: DamagedError) -> Iterator["_Sample"]:
        reason = damage.reason
        if current is not None:
            cut = damage.name is not None and split_name(damage.name)[0] == current.key
            whole = all(_first(current.members, e) is not None for e in self._extensions.values())
            if whole and not cut and current.fault is None:
                yield current
            else:
                reason = f"{reason}; it cuts sample {current.key!r}"
        lost = Fault(CORRUPT, f"{reason}; the rest of the tar is lost")
        yield _Sample(damage.name or f"offset {damage.offset}", fault=lost)


CORRUPT = "CorruptTar"


@dataclass(slots=True)
class _Sample:
    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    """Wanted extension -> content."""
    extensions: set[str] = field(default_factory=set)
    fault: Fault | None = None

    def num_bytes(self) -> int:
        return sum(map(len, self.members.values()))


def split_name(name: str) -> tuple[str | None, str]:
    """Return a member's key and extension: ``a/b.seg.png`` -> ``a/b``, ``seg.png``.

    The key is None for a name without a dot. A base name that starts with a dot belongs to a
    sample named like its folder, with the slash, unless that has a dot itself: the library's rule.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not dot or (not stem and (not slash or "." in folder.rpartition("/")[2])):
        return None, ""
    return folder + slash + stem, extension.lower()


def _is_meta(name: str) -> bool:
    first = name.partition("/")[0]
    return len(first) >= 4 and first.startswith("__") and first.endswith("__")


def _first(members: Mapping[str, bytes], extensions: Sequence[str]) -> bytes | None:
    return next((members[name] for name in extensions if name in members), None)
