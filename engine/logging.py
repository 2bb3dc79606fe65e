"""Console output: a progress bar on a terminal, log lines on stdout and in a file."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, TypeVar

from tqdm import tqdm

log = logging.getLogger("run")

SECONDS_BETWEEN_LINES = 300.0  # at most, while a program works without a terminal

T = TypeVar("T")


def open_streams() -> None:
    """Make stdout and stderr UTF-8 in every locale, and replace closed ones with the null device."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _nowhere())
        elif hasattr(stream, "reconfigure"):  # a test's capture has no such method
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def print_line(text: str) -> None:
    """Print above the progress bar. Output that cannot be written does not stop the run."""
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except (OSError, ValueError):  # a closed pipe, a full disk
        sys.stdout = _nowhere()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return each row as one line, with the cells of a column below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def setup_logging(is_main_process: bool = True) -> None:
    """Send log lines to stdout; processes other than the main one send errors only."""
    logging.raiseExceptions = False  # a full disk is reported once, where it stops the run
    # `force` removes the handlers of an earlier run in the same process.
    level = logging.INFO if is_main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", handlers=[_Console()], force=True)


def log_to_file(path: Path) -> None:
    """Send log lines to a file too, with the time."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)


def log_progress(text: str) -> None:
    """Log a line about work in progress: to the log file, and with the time to a console without a progress bar."""
    log.info(text, extra={"console": not (sys.stdout.isatty() and _shows_bars()), "clock": True})


def log_to_file_only(text: str) -> None:
    """Log a line that the console shows in another way."""
    log.info(text, extra={"console": False})


def progress_bar(batches: Iterable, total: int, done: int, title: str, visible: bool = True) -> tqdm:
    """Return a progress bar with the time left; it is hidden if stderr is not a terminal that can show it."""
    hidden = not (visible and _shows_bars())
    return tqdm(batches, total=total, initial=done, desc=title, unit="batch", leave=False, disable=hidden)


def with_progress_lines(batches: Iterable[T], total: int, title: str) -> Iterator[T]:
    """Yield the batches; log their number and the time left every `SECONDS_BETWEEN_LINES`."""
    started = logged = time.monotonic()
    for done, batch in enumerate(batches, start=1):
        yield batch
        now = time.monotonic()
        if now - logged >= SECONDS_BETWEEN_LINES:
            logged = now
            left = (now - started) / done * (total - done)
            log_progress(f"{title}: {done}/{total} batches, {duration(left)} left")


def duration(seconds: float) -> str:
    """Return a duration with its two largest units: `45 s`, `3 min 20 s`, `1 h 40 min`, `2 d 3 h`."""
    whole = round(seconds)
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {below}"
    return f"{whole} s"


def _shows_bars() -> bool:
    """Return whether stderr is a terminal with a size. tqdm draws nothing on one of 0 lines, such as `script`'s."""
    if not sys.stderr.isatty():
        return False
    try:
        return 0 not in os.get_terminal_size(sys.stderr.fileno())
    except OSError:  # the size is unknown; tqdm assumes one
        return True


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "console", True):
            clock = time.strftime("%H:%M:%S ") if getattr(record, "clock", False) else ""
            print_line(clock + self.format(record))
