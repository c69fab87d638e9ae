"""Writes finished data sets in the formats of other training stacks."""

from pipeline.export.formats import FORMATS
from pipeline.export.run import ExportResult, ExportSettings, export

__all__ = ["FORMATS", "ExportResult", "ExportSettings", "export"]
