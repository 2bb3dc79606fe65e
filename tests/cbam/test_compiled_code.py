"""Inductor's code for CUDA transfers the map ten times. Generating it needs no GPU, but the internals of one torch."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.processes import REPOSITORY

pytest.importorskip("triton", reason="Inductor generates Triton's language")
pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith("2.14."), reason="compiled_code.py replaces parts of torch 2.14"
)


def transfers(*arguments: str) -> dict[str, int]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "tests/cbam/compiled_code.py", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_each_reduction_reads_the_map_once_and_only_results_are_written() -> None:
    assert transfers() == {"forward": 4, "backward": 6}
