"""The kernels' machine code does not get worse. Compiling needs no GPU; `kernel_code.py --write` renews the table.

The rows of sm_90 in bf16, of every size, are compiled here, and all rows with `-m slow`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

pytest.importorskip("triton", reason="the kernels need Triton")

SCRIPT = REPOSITORY / "tests" / "cbam" / "kernel_code.py"
NOISE = 1.01  # instructions per element are rounded


def worse(found: dict[str, dict[str, list[float]]], table: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return what is worse than in the table: more registers, narrower loads or more instructions."""
    problems = []
    for name, row in table.items():
        for size, (registers, narrowest, widest, instructions) in row.items():
            now = found[name][size]
            if now[0] > registers or now[1] < narrowest or now[2] < widest or now[3] > NOISE * instructions:
                problems.append(f"{name} {size}: {now}, was {row[size]}")
    return problems


def compiled(rows: str, cache: Path) -> dict[str, dict[str, list[float]]]:
    """Return the rows of one architecture and dtype, of the kernels as they are; all if `rows` is empty."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": ".",
        "OMP_NUM_THREADS": "1",
        "TRITON_CACHE_DIR": str(cache),
    }
    command = [sys.executable, str(SCRIPT), *([rows] if rows else [])]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # also if a kernel spills registers
    result: dict[str, dict[str, list[float]]] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, list[float]]]:
    committed: dict[str, dict[str, list[float]]] = json.loads(Path(SCRIPT).with_name("kernel_table.json").read_text())
    return committed


@pytest.mark.parametrize("rows", ["sm_90 bf16", pytest.param("", marks=pytest.mark.slow)])
def test_no_kernel_is_worse_than_in_the_table(
    rows: str, table: dict[str, dict[str, list[float]]], tmp_path: Path
) -> None:
    known = {name: row for name, row in table.items() if name.startswith(rows)}
    found = compiled(rows, tmp_path)
    assert found.keys() == known.keys()
    assert not worse(found, known)


def test_registers_and_loads_are_bounded_at_every_size(table: dict[str, dict[str, list[float]]]) -> None:
    for name, row in table.items():
        for size, (registers, narrowest, _, _) in row.items():
            assert registers <= 128, (name, size)
            assert narrowest >= 4, (name, size)


@pytest.mark.parametrize("change", [(-1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, -0.5)], ids=str)
def test_a_worse_kernel_is_found(table: dict[str, dict[str, list[float]]], change: tuple[float, ...]) -> None:
    name, row = next(iter(table.items()))
    size, now = next(iter(row.items()))
    was = [value + each for value, each in zip(now, change, strict=True)]
    (problem,) = worse({name: row}, {name: {**row, size: was}})
    assert problem.startswith(f"{name} {size}: ")
