"""What happens inside one worker. SPDL runs the threads; everything that decides bytes is here."""

from pipeline.stages.block import row_digest
from pipeline.stages.memory import limit_memory
from pipeline.stages.partial import run_steps
from pipeline.stages.worker import Worker, WorkerTask

__all__ = ["Worker", "WorkerTask", "limit_memory", "row_digest", "run_steps"]
