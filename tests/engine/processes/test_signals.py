"""A requested stop."""

import subprocess
import sys

from tests.processes import REPOSITORY


def test_a_repeated_request_changes_nothing() -> None:
    """Launchers forward what the processes of a job have already got, while the run saves and while it ends."""
    code = (
        "import signal; from engine.processes.signals import GracefulStop, Interrupted\n"
        "stop = GracefulStop()\n"
        "try:\n"
        "    with stop:\n"
        "        for number in (15, 2, 15): signal.raise_signal(number)\n"
        "        raise Interrupted\n"
        "except Interrupted: signal.raise_signal(15)\n"
        "print(stop.signal.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "SIGTERM\n"), done.stderr
