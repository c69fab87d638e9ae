"""Hugging Face datasets on disk: what ``datasets.load_from_disk`` maps."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.export.base import ExportFormat, Part, PartRecord
from pipeline.export.files import ExportFiles
from pipeline.export.parquet import schema_of, with_schema


class HfDatasets(ExportFormat):
    """Writes ``data-00000-of-00007.arrow`` and so on, ``state.json`` and ``dataset_info.json``.

    The files are Arrow IPC streams, uncompressed, so the reader maps them. Features are left to
    the reader, which takes them from the Arrow schema.
    """

    name = "hf-datasets"
    reader = "Hugging Face datasets (load_from_disk)"
    part_bytes = 1 << 30

    def write(self, part: Part, files: ExportFiles) -> Mapping[str, Any]:
        """Write one file."""
        schema = schema_of(self.fields)
        path = f"data-{part.number:05d}-of-{part.count:05d}.arrow"
        with (
            files.open(path) as file,
            pa.ipc.new_stream(pa.PythonFile(file, "w"), schema) as writer,
        ):
            for batch in part.batches():
                writer.write_batch(with_schema(batch, schema))
        return {}

    def finish(self, records: Sequence[PartRecord], files: ExportFiles) -> None:
        """Write the two JSON files."""
        names = [file.path for record in records for file in record.files]
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": self.manifest.fingerprint[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": "train",
        }
        info = {
            "description": f"{self.manifest.name}, data set {self.manifest.fingerprint}",
            "citation": "",
            "homepage": "",
            "license": "",
        }
        for name, content in (("state.json", state), ("dataset_info.json", info)):
            files.write(name, json.dumps(content, indent=2, sort_keys=True).encode())
