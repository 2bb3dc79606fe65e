"""Preparation of a process before its slow imports."""

import atexit
import ctypes
import gc
import os
import sys

from engine.processes.signals import exit_on_signals

_PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "tensorboard": "tensorboard",
    "tqdm": "tqdm",
}

# Parameters of glibc's mallopt, and the largest block that can be kept: glibc maps larger ones one by one.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 32 << 20


def prepare_process() -> None:
    """Make signals end the process with one line, exit with an error if a package is missing, and open the streams.

    Also set how memory and idle threads behave.
    """
    exit_on_signals()
    atexit.register(gc.freeze)  # the collections at the end of a process would visit all of torch, for a second
    _keep_freed_memory()
    _let_idle_threads_sleep()
    from importlib.util import find_spec  # after the signals: each import takes time

    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        sys.stderr.write(
            f"error: {sys.executable} does not have {', '.join(missing)}. Activate the environment, create "
            "one with `make demo`, or run `pip install -r requirements.lock` in this one.\n"
        )
        sys.exit(2)
    from engine.logging import open_streams

    open_streams()


def _let_idle_threads_sleep() -> None:
    """Make an idle OpenMP thread sleep after a short wait, unless the environment configures it.

    By default, GNU OpenMP spins for a millisecond or longer. On a machine whose cores have other work too, training
    becomes several times slower. The variable is read when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _keep_freed_memory() -> None:
    """Make this process and its workers reuse freed memory, rather than return it to the operating system.

    By default, glibc returns a network's feature maps and a loader's images after each use. Getting them back costs a
    page fault for every 4 KiB. Other allocators are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, -1)
