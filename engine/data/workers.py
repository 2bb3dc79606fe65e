"""Worker processes that read images: the main process alone answers signals, and alone ends them.

Schedulers, torchrun, systemd and terminals signal whole process groups. A worker that ended would take the main process
with it before that has saved its state.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from multiprocessing.process import BaseProcess

from engine.signals import SIGNALS


class _Popen(Popen):
    def terminate(self) -> None:
        self.kill()  # SIGTERM is blocked in a worker, which has nothing to clean up


class _Worker(ForkProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:  # noqa: N802 (multiprocessing's name)
        return _Popen(process_obj)


class WorkerContext(ForkContext):
    """A context for a DataLoader whose workers are started under `starting_workers`.

    Forked workers share the file index, and notice when the main process dies; the children of a server would not.
    """

    Process = _Worker


@contextmanager
def starting_workers() -> Iterator[None]:
    """Block signals while workers start, so that they inherit the block, and report their death in one place.

    torch would raise an error as soon as a worker dies, wherever the main process is at that moment: in a write, for
    example. Without its handler the error comes from the loader, when it waits for that worker's batch.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
