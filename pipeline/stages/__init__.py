"""What happens inside one worker. SPDL runs the threads; everything that decides bytes is here."""

from pipeline.stages.block import add_counts, row_digest
from pipeline.stages.worker import Worker, WorkerTask

__all__ = ["Worker", "WorkerTask", "add_counts", "row_digest"]
