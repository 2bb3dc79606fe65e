"""scripts/slurm/submit_table.sh and its jobs, without Slurm."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.processes import REPOSITORY


def test_the_lists_of_tasks_are_not_in_the_temporary_folder(tmp_path: Path) -> None:
    """Other nodes do not see that of the node that submits."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\necho 7\n')
    sbatch.chmod(0o755)
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    environment["PATH"] = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = ["bash", str(REPOSITORY / "scripts" / "slurm" / "submit_table.sh"), "sweep=demo"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
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


def test_a_task_without_a_command_fails(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("true\n")
    task = ["bash", str(REPOSITORY / "scripts" / "slurm" / "table.sbatch"), str(tmp_path / "list")]
    done = subprocess.run(task, env=os.environ | {"SLURM_ARRAY_TASK_ID": "2"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: Line 2 of {tmp_path}/list contains no command.\n"
