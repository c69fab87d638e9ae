"""How a run ends when it is told to: Ctrl-C, or SIGTERM as an evicted pod gets it."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

LONGEST_S = 25.0
"""From the signal to the end of the process, whatever hangs. Kubernetes grants 30 s by default."""

STOPPED = "stopped; run the same command again to go on"


class StopSignals:
    """Turns SIGINT and SIGTERM into ``KeyboardInterrupt``; a context manager in the main thread.

    What unwinds then commits what is done, gives the lease back and stops the workers. A second
    signal ends the process at once, and so does the end of ``longest_s``: nothing that is committed
    is lost by that.

    Attributes:
        code: 128 + the signal's number once one came, else 0.
    """

    def __init__(self, longest_s: float = LONGEST_S) -> None:
        self.code = 0
        self._longest_s = longest_s
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Whoever starts a command in the background may have told it not to listen.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.code:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.code:
            self._end()
        self.code = 128 + number
        # It goes on after ``__exit__``: Python waits for every thread at its end.
        timer = threading.Timer(self._longest_s, self._end)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    def _end(self) -> None:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{STOPPED}\n".encode())
        os._exit(self.code)
