"""The outcome of the tests that use a GPU."""

import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.report import Section

TESTS = (
    "tests/cbam/test_closed_form.py",
    "tests/cbam/test_map_layouts.py",
    "tests/cbam/test_traced_passes.py",
    "tests/test_cuda.py",
)
_REPOSITORY = Path(__file__).resolve().parent.parent


def measure(deadline: float) -> Section:
    """Run the tests that use a GPU, until the deadline of `time.monotonic`."""
    command = [sys.executable, "-m", "pytest", "-vv", "-n0", "--no-header", "--color=no", *TESTS]
    output, ended = "", "all of them"
    try:
        done = subprocess.run(
            command, cwd=_REPOSITORY, capture_output=True, text=True, timeout=max(1, deadline - time.monotonic())
        )
        output = done.stdout
        if done.returncode not in (0, 1):  # 1: tests have failed
            ended = (done.stderr or done.stdout).strip().splitlines()[-1]
    except subprocess.TimeoutExpired as stopped:
        output, ended = (stopped.stdout or b"").decode(), "stopped for lack of time"
    count = {
        outcome: len(re.findall(rf" {outcome.upper()}\b.*%\]", output)) for outcome in ("passed", "failed", "skipped")
    }
    failed = re.findall(r"^(\S+::\S.*) FAILED", output, re.MULTILINE)
    return {
        "about": f"{' '.join(TESTS)}, on this device. Failed: {', '.join(failed) or 'none'}.",
        "rows": [{**count, "run": ended}],
    }
