"""What happens inside one worker. SPDL runs the threads; everything that decides bytes is here."""

from pipeline.stages.block import PartitionState, row_digest
from pipeline.stages.memory import limit_memory
from pipeline.stages.partial import read_through, run_steps
from pipeline.stages.worker import Worker, WorkerTask

__all__ = [
    "PartitionState",
    "Worker",
    "WorkerTask",
    "limit_memory",
    "read_through",
    "row_digest",
    "run_steps",
]
