"""The table of details: columns that say nothing are left out."""

from pathlib import Path

from engine.comparison import markdown
from tests.engine.comparison.test_report import compare, entry


def test_top5_error_is_left_out_of_five_classes_or_fewer(folders: Path) -> None:
    table, _ = compare(folders, [entry(seed=51), entry(seed=52)])
    assert "Top-5" not in markdown.details(table)
    assert "Top-5 error (%)" in markdown.details(table | {"data": table["data"] | {"classes": 6}})
