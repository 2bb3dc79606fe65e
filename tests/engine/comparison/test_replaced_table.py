"""A folder that already has a table."""

import json
from pathlib import Path

import pytest

from engine.comparison import report
from engine.config.data import DataConfig
from engine.config.schemas import EvaluateConfig
from engine.errors import UserError

CONFIG = EvaluateConfig(data=DataConfig("cells", total_classes=3))


def write(folder: Path, name: str) -> None:
    table = {"data": {"name": name}, "runs": [{"source": "runs/a"}, {"source": "runs/b"}]}
    (folder / "table.json").write_text(json.dumps(table))


def test_a_table_of_the_same_data_is_replaced_and_said_to_be(tmp_path: Path) -> None:
    assert report.replaced_table(CONFIG, tmp_path) == ""
    write(tmp_path, "cells")
    assert report.replaced_table(CONFIG, tmp_path) == "; this replaces a table of 2 runs"


def test_a_table_of_other_data_is_kept(tmp_path: Path) -> None:
    write(tmp_path, "imagenet")
    with pytest.raises(UserError, match=r"contains the table of imagenet; set table\.dir to another folder"):
        report.replaced_table(CONFIG, tmp_path)
    (tmp_path / "table.json").write_text("[]")
    with pytest.raises(UserError, match=r"is not a table of this program; set table\.dir"):
        report.replaced_table(CONFIG, tmp_path)
