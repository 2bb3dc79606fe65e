"""A folder that already has a table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.comparison import report
from engine.config.data import DataConfig
from engine.config.schemas import EvaluateConfig
from engine.errors import UserError
from tests.engine.comparison.test_report import compare, entry

CONFIG = EvaluateConfig(data=DataConfig("cells", total_classes=3))


def write(folder: Path, name: str) -> None:
    table = {"data": {"name": name}, "runs": [{"source": "runs/a"}, {"source": "runs/b"}]}
    (folder / "table.json").write_text(json.dumps(table))


def test_a_table_of_the_same_data_is_replaced(tmp_path: Path) -> None:
    assert report.replaced_runs(CONFIG, tmp_path) == []
    write(tmp_path, "cells")
    assert report.replaced_runs(CONFIG, tmp_path) == ["runs/a", "runs/b"]


def test_a_table_with_runs_that_the_new_one_lacks_is_replaced_only_in_a_chosen_folder() -> None:
    """Such as a committed table of results/, whose data set has the name that the documentation suggests."""
    report.require_kept_runs(CONFIG, ["runs/a", "runs/b"], ["runs/b", "runs/a", "runs/c"])
    with pytest.raises(
        UserError, match=r"results/cells contains a table of 2 runs, 1 of which .* as runs/b\. Set table"
    ):
        report.require_kept_runs(CONFIG, ["runs/a", "runs/b"], ["runs/a"])
    chosen = replace(CONFIG, table=replace(CONFIG.table, dir="results/cells"))
    report.require_kept_runs(chosen, ["runs/a", "runs/b"], ["runs/a"])


def test_a_table_of_other_data_is_kept(tmp_path: Path) -> None:
    write(tmp_path, "imagenet")
    with pytest.raises(UserError, match=r"contains the table of imagenet; set table\.dir to another folder"):
        report.replaced_runs(CONFIG, tmp_path)
    (tmp_path / "table.json").write_text("[]")
    with pytest.raises(UserError, match=r"is not a table of this program; set table\.dir"):
        report.replaced_runs(CONFIG, tmp_path)


def test_nothing_is_left_of_the_table_before(folders: Path, tmp_path: Path) -> None:
    report.write(*compare(folders, [entry(), entry("cbam")]), tmp_path)
    assert (tmp_path / "contrasts.csv").exists()
    (tmp_path / "groups.csv").write_text("of the table before")
    (tmp_path / "README.md").write_text("of the user")
    report.write(*compare(folders, [entry(seed=52)]), tmp_path)
    (run,) = json.loads((tmp_path / "table.json").read_text())["runs"]
    assert {file.stem for file in (tmp_path / "runs").iterdir()} == {Path(run["raw"]).name}
    assert not (tmp_path / "groups.csv").exists()
    assert not (tmp_path / "contrasts.csv").exists()
    assert (tmp_path / "README.md").exists()
