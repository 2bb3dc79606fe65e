"""The committed results are what their data give: predictions for the tables, measurements for the benchmarks."""

import re
import shutil
from pathlib import Path

import pytest

from benchmarks import report as benchmark_report
from engine.comparison import report
from tests.conftest import Command

RESULTS = Path(__file__).resolve().parent.parent.parent / "results"
TABLES = sorted(file.parent for file in RESULTS.rglob("table.json"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("folder", TABLES, ids=lambda folder: str(folder.relative_to(RESULTS)))
def test_rendering_a_table_again_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for file in copy.glob("table.*"):
        if file.suffix != ".json":
            file.unlink()
    report.render(copy)
    assert contents(copy) == contents(folder)


def test_no_configuration_names_a_folder_of_one_machine() -> None:
    configurations = list(RESULTS.rglob("*.yaml"))
    assert configurations
    assert [file for file in configurations if re.search(r": /(?!path/to/)\w", file.read_text())] == []


def test_plotting_the_movement_of_gates_again_changes_no_byte(command: Command, tmp_path: Path) -> None:
    copy = tmp_path / "attention_lr"
    shutil.copytree(RESULTS / "attention_lr", copy)
    tables = [f"attention_lr/{name}" for name in ("tiny_imagenet_other", "blood_cells")]
    done = command("scripts/plot_gate_movement.py", *tables)
    assert done.returncode == 0, done.stderr
    assert contents(copy) == contents(RESULTS / "attention_lr")


def test_rendering_the_benchmarks_again_changes_no_byte(tmp_path: Path) -> None:
    copy = tmp_path / "benchmark"
    shutil.copytree(RESULTS / "benchmark", copy)
    for file in copy.glob("*.json"):
        benchmark_report.write(copy, file.stem, {})
    assert contents(copy) == contents(RESULTS / "benchmark")
