"""The origin of a result."""

import subprocess
from pathlib import Path

import pytest
import torch

from engine.runs import environment


def test_results_leave_the_code_clean_and_changes_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are files that git does not know; tables may be committed."""
    (tmp_path / "train.py").write_text("pass\n")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table.md").write_text("| |\n")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init"], ["add", "."], [*identity, "commit", "--message=test"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "engine" / "environment.py"))
    (tmp_path / "log.txt").write_text("a run\n")
    (tmp_path / "results" / "table.md").write_text("| again |\n")
    assert environment.collect_env(torch.device("cpu"))["code_clean"] is True
    (tmp_path / "train.py").write_text("changed\n")
    assert environment.collect_env(torch.device("cpu"))["code_clean"] is False
