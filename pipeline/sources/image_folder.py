"""Read image files from folders: one file is one sample."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from operators.base import FieldSpec
from pipeline.errors import IntegrityError
from pipeline.protocols import Partition, SampleBlock, SourceFile
from pipeline.sources.blocks import (
    binary_array,
    cut_blocks,
    make_block,
)
from pipeline.sources.config import BaseSourceConfig
from pipeline.sources.listing import NUM_THREADS, join_ranges, list_files, whole_files
from pipeline.sources.objects import check_planned
from pipeline.storage import Storage, shown

Extension = Annotated[str, Field(pattern=r"^[a-z0-9]+$")]


class ImageFolderConfig(BaseSourceConfig):
    """What a job may say about folders of images. Their fields are fixed."""

    type: Literal["image_folder"] = "image_folder"
    extensions: Annotated[
        tuple[Extension, ...],
        Field(min_length=1, description="Which files are images, lower case; case is ignored."),
    ] = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")


class ImageFolderSource:
    """Reads every image file below the URLs, in the order of their paths.

    Fields: ``image`` (the file's bytes), ``path`` (below the listing's root; also the key) and
    ``label`` (name of the folder the file lies in, "" for files at the root). A block spans files;
    its ``file_name`` is the folder that holds all files of the partition: what a block is called
    stands in shards and may not depend on where blocks are cut.

    Nothing is rejected here: whether the bytes are an image is for the decoder to say.
    """

    chunk_size: ClassVar[int] = 32

    def __init__(self, config: ImageFolderConfig, storage: Storage, urls: Sequence[str]) -> None:
        self.config = config
        self._storage = storage
        self._urls = urls

    @property
    def fields(self) -> Mapping[str, FieldSpec]:
        """``image``, ``path`` and ``label``."""
        return _FIELDS

    def list_partitions(self) -> Iterator[Partition]:
        """Join files up to ``partition_bytes``, at most 10,000 of them."""
        extensions = {f".{extension}" for extension in self.config.extensions}
        files = list_files(self._storage, self._urls, extensions=extensions)
        return join_ranges(whole_files(files), self.config.partition_bytes)

    def count_samples(self, partition: Partition, at_most: int) -> int:
        """Count the files, without opening them."""
        counts = [len(partition.ranges), at_most, partition.max_samples]
        return min(count for count in counts if count is not None)

    def read(self, partition: Partition, block_rows: int) -> Iterator[SampleBlock]:
        """Yield the files in order; remote ones are fetched several at a time."""
        files = [found.file for found in partition.ranges[: partition.max_samples]]
        folder = posixpath.commonpath([posixpath.dirname(file.name) for file in files] or [""])
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            first = 0
            for part in cut_blocks(files, block_rows, lambda file: file.num_bytes):
                remote = self._storage.local_path(part[0].uri) is None
                images = list((pool.map if remote else map)(self._read_file, part))
                yield _block(part, images, first, folder)
                first += len(part)

    def _read_file(self, file: SourceFile) -> bytes:
        if self._storage.local_path(file.uri) is not None:
            check_planned(file, self._storage.stat(file.uri))
            return self._storage.read(file.uri)
        data = self._storage.read(file.uri)  # and no second request a file for its version
        if len(data) != file.num_bytes:
            raise IntegrityError(
                f"{shown(file.uri)}: the object is not the one that was planned: {len(data):,} "
                f"bytes, the plan says {file.num_bytes:,}",
                hint="put it back, or plan the data set anew",
            )
        return data


_FIELDS = {
    "image": FieldSpec("binary"),
    "path": FieldSpec("string"),
    "label": FieldSpec("string"),
}


def _block(
    files: Sequence[SourceFile], images: Sequence[bytes], first_row: int, folder: str
) -> SampleBlock:
    names = pa.array([file.name for file in files], pa.large_string())
    return make_block(
        first_row=first_row,
        file_name=folder,
        num_bytes=sum(map(len, images)),
        keys=names,
        arrays={
            "image": binary_array(images),
            "path": names,
            "label": pa.array([_label(file) for file in files], pa.large_string()),
        },
        specs=_FIELDS,
        faults={},
    )


def _label(file: SourceFile) -> str:
    # A name may start with its URL's position ("0/a.jpg"), which is no folder.
    inner = posixpath.basename(posixpath.dirname(file.name))
    return inner if inner == posixpath.basename(posixpath.dirname(file.uri)) else ""
