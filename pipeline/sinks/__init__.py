"""Sinks write one partition's rows to whole shards."""

from pipeline.sinks.arrow import ArrowSink

__all__ = ["ArrowSink"]
