"""The formats of other training stacks, and the workers that write parts of an export."""

from pipeline.export.formats import FORMATS
from pipeline.export.parts import ExportSettings

__all__ = ["FORMATS", "ExportSettings"]
