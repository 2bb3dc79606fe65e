"""scripts/slurm/submit_table.sh and its jobs, without Slurm."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.processes import REPOSITORY


def submit(tmp_path: Path, sbatch: str) -> "subprocess.CompletedProcess[str]":
    """Run submit_table.sh with this shell code in place of sbatch."""
    program = tmp_path / "sbatch"
    program.write_text(f"#!/bin/sh\n{sbatch}\n")
    program.chmod(0o755)
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    environment["PATH"] = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = ["bash", str(REPOSITORY / "scripts" / "slurm" / "submit_table.sh"), "sweep=demo"]
    return subprocess.run(script, env=environment, capture_output=True, text=True)


def test_the_lists_of_tasks_are_not_in_the_temporary_folder(tmp_path: Path) -> None:
    """Other nodes do not see that of the node that submits."""
    done = submit(tmp_path, f'echo "$@" >>{tmp_path}/calls\necho 7')
    assert done.returncode == 0, done.stderr
    folder = Path(re.findall(r"The lines of (\S+)/stage", done.stdout)[0])
    lists = {file.name: file.read_text().splitlines() for file in folder.iterdir()}
    shutil.rmtree(folder)
    assert tmp_path not in folder.parents
    assert {name: len(lines) for name, lines in lists.items()} == {"stage1": 1, "stage2": 2}
    first, second, table = (tmp_path / "calls").read_text().splitlines()
    assert first == f"--parsable --array=1-1%8 scripts/slurm/table.sbatch {folder}/stage1"
    assert second == f"--parsable --array=1-2%8 --dependency=afterany:7 scripts/slurm/table.sbatch {folder}/stage2"
    assert table == "--parsable --dependency=afterany:7 scripts/slurm/evaluate.sbatch sweep=demo"


def test_nothing_is_left_if_sbatch_fails(tmp_path: Path) -> None:
    before = set(REPOSITORY.glob("slurm-table-*"))
    done = submit(tmp_path, "echo 'sbatch: error: invalid account' >&2; exit 1")
    assert done.returncode == 1
    assert done.stderr == "sbatch: error: invalid account\n"
    assert set(REPOSITORY.glob("slurm-table-*")) == before


def test_a_task_without_a_command_fails(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("true\n")
    task = ["bash", str(REPOSITORY / "scripts" / "slurm" / "table.sbatch"), str(tmp_path / "list")]
    done = subprocess.run(task, env=os.environ | {"SLURM_ARRAY_TASK_ID": "2"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: Line 2 of {tmp_path}/list contains no command.\n"
