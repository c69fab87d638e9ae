"""Hugging Face's way of sharing data: Parquet files below ``data/``, described by a data card."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import FieldSpec
from pipeline.export.base import ExportFormat, Part, PartRecord
from pipeline.export.files import ExportFiles
from pipeline.manifest import Manifest

CARD = "README.md"
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
    (100_000_000_000, "10B<n<100B"),
    (1_000_000_000_000, "100B<n<1T"),
)


class Parquet(ExportFormat):
    """Writes ``data/train-00000-of-00007.parquet`` and so on, and a data card.

    A record batch becomes a row group, so readers need no more memory than for the shards. Columns
    have the types of the shards; zstd. The card says how to load the data, what the ids mean, and
    where they come from.
    """

    name = "parquet"
    reader = "Hugging Face datasets and Hub, pandas, DuckDB, Spark"
    part_bytes = 1 << 30

    def write(self, part: Part, files: ExportFiles) -> Mapping[str, Any]:
        """Write one file."""
        import pyarrow.parquet as pq

        schema = schema_of(self.fields)
        texts = [name for name, spec in self.fields.items() if not spec.is_numeric]
        path = f"data/train-{part.number:05d}-of-{part.count:05d}.parquet"
        with (
            files.open(path) as file,
            pq.ParquetWriter(
                pa.PythonFile(file, "w"), schema, compression="zstd", use_dictionary=texts
            ) as writer,
        ):
            for batch in part.batches():
                table = pa.Table.from_batches([with_schema(batch, schema)])
                writer.write_table(table, row_group_size=max(batch.num_rows, 1))
        return {}

    def finish(self, records: Sequence[PartRecord], files: ExportFiles) -> None:
        """Write the data card."""
        num_bytes = sum(file.num_bytes for record in records for file in record.files)
        num_samples = sum(record.num_samples for record in records)
        card = data_card(self.manifest, self.fields, num_samples, num_bytes)
        files.write(CARD, card.encode())


def schema_of(fields: Mapping[str, FieldSpec]) -> pa.Schema:
    """Return the columns without the shards' metadata, and open to nulls as others expect it."""
    return pa.schema([pa.field(name, _arrow_type(spec)) for name, spec in fields.items()])


def with_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a record batch under another schema of the same layout, without copying values."""
    arrays = [
        _relabelled(column, kind.type) for column, kind in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _arrow_type(spec: FieldSpec) -> pa.DataType:
    if not spec.is_numeric:
        return pa.binary() if spec.dtype == "binary" else pa.string()
    kind = pa.from_numpy_dtype(np.dtype(spec.dtype))
    for length in reversed(spec.shape):
        kind = pa.list_(kind) if length is None else pa.list_(kind, length)
    return kind


def _relabelled(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(
            _relabelled(array.flatten(), kind.value_type), type=kind
        )
    if pa.types.is_list(kind):
        values = _relabelled(array.values, kind.value_type)
        return pa.ListArray.from_arrays(array.offsets, values, type=kind)
    return array


def data_card(
    manifest: Manifest, fields: Mapping[str, FieldSpec], num_samples: int, num_bytes: int
) -> str:
    """Return a data card: YAML for the Hub, then what a reader of the data must know."""
    size = next((name for limit, name in _SIZES if num_samples < limit), "n>1T")
    head = [
        "---",
        f"pretty_name: {json.dumps(manifest.name, ensure_ascii=False)}",
        "tags:",
        "- tokenmill",
        "- tokenized",
        "size_categories:",
        f"- {size}",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        '    path: "data/train-*.parquet"',
        "---",
        "",
    ]
    body = [f"# {manifest.name}", ""]
    if manifest.random_weights:
        body += ["**Made with random weights: these ids mean nothing.**", ""]
    body += [f"{num_samples:,} samples, {num_bytes:,} bytes of Parquet.", ""]
    body += ["```python", "import datasets", ""]
    body += ['data = datasets.load_dataset("PATH", split="train")', "```", ""]
    body += ["## Fields", "", "| field | type | ids below | made by |", "| --- | --- | --- | --- |"]
    for name, spec in fields.items():
        shape = ", ".join("*" if length is None else str(length) for length in spec.shape)
        kind = f"{spec.dtype} [{shape}]" if spec.shape else spec.dtype
        ids = "" if spec.vocab_size is None else f"{spec.vocab_size:,}"
        body.append(f"| `{name}` | {kind} | {ids} | {_maker(manifest, name)} |")
    body += ["", "`*` is a length that varies.", ""]
    for warning in manifest.warnings:
        body += [f"> **Note.** {warning}", ""]
    body += ["## How the ids are made", ""]
    for item in manifest.operators:
        if item.get("metadata") and set(item.get("outputs", ())) & set(fields):
            about = json.dumps(item["metadata"], indent=1, sort_keys=True, ensure_ascii=False)
            body += [f"`{item['label']}`, version {item['version']}:", "", "```json"]
            body += [about, "```", ""]
    body += ["## Where they come from", ""]
    body += [f"- fingerprint of the data set: `{manifest.fingerprint}`"]
    body += [f"- SHA-256 of its index: `{manifest.index_sha256}`"]
    body += [f"- {name} {version}" for name, version in sorted(manifest.libraries.items())]
    body += ["", "Recipe:", "", "```json"]
    body += [json.dumps(manifest.recipe, indent=1, sort_keys=True, ensure_ascii=False), "```", ""]
    return "\n".join(head + body)


def _maker(manifest: Manifest, field: str) -> str:
    makers = [item["label"] for item in manifest.operators if field in item.get("outputs", ())]
    return f"`{makers[-1]}`" if makers else "the source"
