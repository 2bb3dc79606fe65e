"""What a person sees while it runs: a bar on a terminal, a line per epoch in a pipe or a log file."""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("run")


def setup_logging(is_main_process: bool = True) -> None:
    """Lines of the log to stdout, above the bar where there is one; of several processes, those of the first alone."""
    logging.raiseExceptions = False  # a full disk is reported once, where it stops the run
    # `force` drops the handlers of the run before, when one process makes several.
    level = logging.INFO if is_main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", handlers=[_AboveTheBar()], force=True)


def log_to_file(path: Path) -> None:
    """Lines of the log to a file too, with the time."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)


def progress_bar(batches: Iterable, total: int, done: int, title: str, visible: bool = True) -> tqdm:
    """A progress bar with the time left; invisible where stderr is no terminal, whatever is asked for."""
    hidden = None if visible else True  # None leaves it to the terminal
    return tqdm(batches, total=total, initial=done, desc=title, unit="batch", leave=False, disable=hidden)


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()
