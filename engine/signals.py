"""Graceful stops: Ctrl-C, a scheduler's SIGTERM, Slurm's warning SIGUSR1. Imports nothing that takes time."""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """A signal stopped the run; its state is saved."""


def exit_on_signals() -> None:
    """Exit with code 75 and one sentence on the first of these signals, whatever this process is doing.

    Call it before the imports that take seconds. `GracefulStop` takes over where there is a state to save.
    """
    received, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _leave_to_thread)
    # A thread answers at once: a handler waits while the main thread is in an import or waits for another process.
    threading.Thread(target=_exit_on_first, args=(received,), daemon=True).start()


def _leave_to_thread(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal in Python: without a handler nothing would be written to the pipe."""


def _exit_on_first(received: int) -> None:
    while (number := os.read(received, 1)[0]) not in SIGNALS:
        pass
    exit_interrupted(f"Stopped by {signal.Signals(number).name}.")


def ignore_signals() -> None:
    """Ignore these signals from now on: everything is saved, and Python's own exit would restore their defaults."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_interrupted(sentence: str) -> NoReturn:
    """Print the sentence and exit at once with code 75, which job scripts requeue."""
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        with suppress(OSError):  # stderr is closed, or on a full disk
            os.write(2, f"{sentence} Run the same command again to continue.\n".encode())
    multiprocessing = sys.modules.get("multiprocessing")
    for worker in multiprocessing.active_children() if multiprocessing else ():
        worker.kill()
    # At once: cleaning up could wait for another process, and nothing is ever written in place.
    os._exit(os.EX_TEMPFAIL)


class GracefulStop:
    """While entered, these signals request a stop at the next step instead of ending the process.

    A repeated request changes nothing: launchers forward what the processes of a job have already got.

    Attributes:
        signal: the first one that requested a stop, None so far.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "GracefulStop":
        self._before = {number: signal.signal(number, self._request) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(-1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.signal is not None and error is not None:
            return  # the process is about to end: a repeated request must not interrupt that
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.signal is not None:  # too late for a step to answer it
            signal.raise_signal(self.signal)

    def _request(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
