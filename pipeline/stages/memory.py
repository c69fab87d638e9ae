"""A limit on a worker's memory, for machines without one of their own."""

import os
import sys
import threading
import time

import psutil

LOOK_EVERY_S = 0.05
KILLED = 137
"""The exit code of a process that was killed for its memory."""


def limit_memory(most_bytes: int | None) -> None:
    """End this process when it comes to hold more than ``most_bytes``; None sets no limit.

    Counted is what it has resident, less what it shares with others. Between two looks a process
    can take more, so leave room below what would hurt the machine.
    """
    if most_bytes is not None:
        threading.Thread(target=_watch, args=(most_bytes,), name="memory", daemon=True).start()


def _watch(most_bytes: int) -> None:
    process = psutil.Process()
    while True:
        found = process.memory_info()
        held = found.rss - getattr(found, "shared", 0)
        if held > most_bytes:
            print(
                f"worker {os.getpid()}: holds {held:,} bytes, run.worker_memory_bytes allows "
                f"{most_bytes:,}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(KILLED)
        time.sleep(LOOK_EVERY_S)
