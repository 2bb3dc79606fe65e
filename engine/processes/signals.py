"""Graceful stops: Ctrl-C, a scheduler's SIGTERM, Slurm's warning SIGUSR1. Imports only fast modules."""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """Raised to exit with code 75: the same command resumes from the last checkpoint, if there is one."""


def exit_on_signals() -> None:
    """Exit with code 75 and one line on the first of these signals, whatever this process is doing.

    Call it before the slow imports. `GracefulStop` takes over once there is a state to save.
    """
    received, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _leave_to_thread)
    # A thread responds immediately; a handler waits while the main thread imports or waits for another process.
    threading.Thread(target=_exit_on_first, args=(received,), daemon=True).start()


def _leave_to_thread(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: without a Python handler, nothing would be written to the pipe."""


def _exit_on_first(received: int) -> None:
    while (number := os.read(received, 1)[0]) not in SIGNALS:
        pass
    exit_interrupted(f"Stopped by {signal.Signals(number).name}.")


def ignore_signals() -> None:
    """Ignore these signals from now on: all results are saved, and Python's exit would restore the default actions."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_interrupted(sentence: str, resumes: bool = False) -> NoReturn:
    """Print the sentence, and exit immediately with code 75, on which job scripts requeue.

    Args:
        resumes: whether the command continues a run when it is repeated; otherwise it starts again.
    """
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        with suppress(OSError):  # stderr is closed, or on a full disk
            os.write(2, f"{sentence} Run the same command again{' to resume' if resumes else ''}.\n".encode())
    multiprocessing = sys.modules.get("multiprocessing")
    for worker in multiprocessing.active_children() if multiprocessing else ():
        worker.kill()
    # Without cleanup, which could wait for another process; results and checkpoints are never written in place.
    os._exit(os.EX_TEMPFAIL)


class GracefulStop:
    """Context in which these signals request a stop at the next step instead of ending the process.

    Repeated signals are ignored: launchers forward signals that the processes of a job have already received.

    Attributes:
        signal: the first signal that requested a stop; None if there was none.
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
            return  # the process is about to end, which a repeated signal must not interrupt
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.signal is not None:  # it arrived after the last step
            signal.raise_signal(self.signal)

    def _request(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
