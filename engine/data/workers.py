"""Data loader worker processes. Only the main process handles signals and terminates workers.

Schedulers, torchrun, systemd and terminals signal whole process groups. A worker that exited would end the main process
before it has saved its state.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from multiprocessing.process import BaseProcess

from engine.processes.signals import SIGNALS

# Signals by which a process ends for a fault of its own code, such as a decoder's; SIGKILL is for lack of memory.
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


class _Popen(Popen):
    def terminate(self) -> None:
        self.kill()  # workers block SIGTERM and have nothing to clean up


class _Worker(ForkProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:  # noqa: N802 (multiprocessing's name)
        return _Popen(process_obj)


class WorkerContext(ForkContext):
    """A multiprocessing context for DataLoaders whose workers start under `starting_workers`.

    Forked workers share the file index and notice when the main process dies. Children of a fork server would not.
    """

    Process = _Worker


@contextmanager
def starting_workers() -> Iterator[None]:
    """Block signals while workers start, so that workers inherit the block, and report worker deaths in one place.

    torch's handler would raise an error as soon as a worker dies, anywhere in the main process, for example in a write.
    Without it, the loader raises the error when it waits for that worker's batch.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
