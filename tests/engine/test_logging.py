"""Console output in every locale, and with closed or full streams."""

import os
import pty
import subprocess
import sys
import termios

import pytest

from tests.processes import REPOSITORY

PRINT = "from engine.processes.startup import prepare_process; prepare_process(); "
PRINT += "from engine.logging import print_line; print_line('0.50 ± 0.10 \\udce9'); "


def run(code: str, *, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = f'{sys.executable} -c "$CODE" {shell}'
    given = {**os.environ, **environment, "CODE": code}
    return subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=REPOSITORY, env=given, capture_output=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_is_utf8_in_every_locale(encoding: str) -> None:
    done = run(PRINT, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == "0.50 ± 0.10 \\udce9\n".encode()


@pytest.mark.parametrize("shell", [">&-", ">&- 2>&-", "> /dev/full", "| true"])
def test_a_closed_output_ends_nothing(shell: str) -> None:
    done = run(f"{PRINT} import time; time.sleep(0.2); print_line('more'); print_line('end')", shell=shell)
    assert (done.returncode, done.stderr) == (0, b"")


BAR = "from engine.logging import log_progress, progress_bar, setup_logging; setup_logging(); "
BAR += "[log_progress('a line') for _ in progress_bar([1], 1, 0, 'bar')]"


@pytest.mark.parametrize(("rows", "columns", "shown"), [(24, 80, "bar: "), (0, 0, "a line"), (0, 80, "a line")])
def test_a_terminal_shows_a_bar_and_one_without_a_size_shows_lines(rows: int, columns: int, shown: str) -> None:
    """A terminal such as that of `script` where there is no other has no size, and tqdm draws nothing on it."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (rows, columns))
    subprocess.run([sys.executable, "-c", BAR], cwd=REPOSITORY, stdin=its, stdout=its, stderr=its, check=True)
    output = os.read(ours, 10_000).decode()
    for file in (ours, its):
        os.close(file)
    assert [text for text in ("bar: ", "a line") if text in output] == [shown]
