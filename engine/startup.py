"""Preparation of a process before its slow imports."""

import sys

from engine.signals import exit_on_signals

_PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "tqdm": "tqdm",
}


def prepare_process() -> None:
    """Make signals exit with one sentence, exit with an error if a package is missing, and open stdout and stderr."""
    exit_on_signals()
    from importlib.util import find_spec  # after the signals: each import takes time

    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        sys.stderr.write(
            f"error: {sys.executable} does not have {', '.join(missing)}. Activate the environment, or run "
            "`make demo` (or `pip install -r requirements.lock`) to create one.\n"
        )
        sys.exit(2)
    from engine.logging import open_streams

    open_streams()
