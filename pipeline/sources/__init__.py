"""Where samples come from: one file a kind of source, chosen by ``type`` in the job."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from pipeline.protocols import Source
from pipeline.sources.image_folder import ImageFolderConfig, ImageFolderSource
from pipeline.sources.jsonl import JsonlConfig, JsonlSource
from pipeline.sources.parquet import ParquetConfig, ParquetSource
from pipeline.sources.webdataset import WebDatasetConfig, WebDatasetSource
from pipeline.storage import Storage

__all__ = [
    "ImageFolderConfig",
    "ImageFolderSource",
    "JsonlConfig",
    "JsonlSource",
    "ParquetConfig",
    "ParquetSource",
    "SourceConfig",
    "WebDatasetConfig",
    "WebDatasetSource",
    "build_source",
]

SourceConfig = Annotated[
    WebDatasetConfig | ParquetConfig | JsonlConfig | ImageFolderConfig, Field(discriminator="type")
]


def build_source(config: SourceConfig, storage: Storage, urls: Sequence[str]) -> Source:
    """Build the source that a config describes.

    Args:
        config: What the job says.
        storage: How objects are reached.
        urls: ``config.urls``, resolved: environment variables and relative paths are replaced.
    """
    match config:
        case WebDatasetConfig():
            return WebDatasetSource(config, storage, urls)
        case ParquetConfig():
            return ParquetSource(config, storage, urls)
        case JsonlConfig():
            return JsonlSource(config, storage, urls)
        case ImageFolderConfig():
            return ImageFolderSource(config, storage, urls)
