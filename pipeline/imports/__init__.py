"""Makes data sets of what other training stacks wrote, in place where their layout allows."""

from pipeline.imports.load import SOURCES, ImportResult, ImportSettings, import_data_set

__all__ = ["SOURCES", "ImportResult", "ImportSettings", "import_data_set"]
