"""Requests to stop: Ctrl-C, a scheduler's SIGTERM, Slurm's warning SIGUSR1."""

import signal
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """A run was asked to stop and has saved where it stands."""


class GracefulStop:
    """While entered, the first of these signals asks for a stop at the next step instead of ending the process.

    A second one ends it at once, as it would without this.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "GracefulStop":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def ignore_in_worker(_: int) -> None:
    """For processes that read images: the main one answers Ctrl-C and Slurm's warning, which reach them too.

    SIGTERM stays: it is how the main process ends them.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
