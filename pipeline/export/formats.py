"""The formats there are, by the names that the command line knows."""

from collections.abc import Mapping

from pipeline.export.base import ExportFormat
from pipeline.export.datatrove import Datatrove
from pipeline.export.hf_datasets import HfDatasets
from pipeline.export.litdata import Litdata
from pipeline.export.mds import Mds
from pipeline.export.megatron import Megatron
from pipeline.export.nanogpt import NanoGpt
from pipeline.export.parquet import Parquet
from pipeline.export.webdataset import WebDataset

FORMATS: Mapping[str, type[ExportFormat]] = {
    kind.name: kind
    for kind in (
        Megatron,
        NanoGpt,
        Parquet,
        HfDatasets,
        WebDataset,
        Datatrove,
        Mds,
        Litdata,
    )
}
