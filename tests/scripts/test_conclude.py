"""scripts/conclude.py: the end of the demo."""

import json
from pathlib import Path

import pytest

from tests.commands import assert_one_line
from tests.conftest import Command

BASELINE = {"model": "resnet18", "attention": "none", "baseline": None, "top1_error": 12.5, "seeds": [51]}


def row(low: float, high: float) -> dict[str, object]:
    interval = {"difference": (low + high) / 2, "difference_low": low, "difference_high": high}
    return {**BASELINE, "attention": "cbam", "baseline": 0, "top1_error": 12.0, **interval}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-1.5, 0.5, "The interval contains 0, so this does not show that attention changes anything."),
        (-0.8, -0.2, "The interval excludes 0 for the runs of this one seed, and says nothing about others: train at"),
    ],
)
def test_two_sentences_the_figure_and_the_curves(
    low: float, high: float, verdict: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "table.json").write_text(json.dumps({"rows": [BASELINE, row(low, high)]}))
    (tmp_path / "table.png").touch()
    done = command("scripts/conclude.py", "table=.", "runs=runs/demo")
    assert (done.returncode, done.stderr) == (0, "")
    sentences, figure, curves = done.stdout.strip().splitlines()
    assert sentences.startswith(
        "resnet18 with cbam has a top-1 error of 12.00% and without attention of 12.50%: a difference of -0.50 points, "
        f"95% interval [{low:+.2f}, {high:+.2f}]. {verdict}"
    )
    assert (figure, curves) == ("Figure: table.png", "Curves and pictures: tensorboard --logdir runs/demo")


def test_a_table_that_compares_nothing(command: Command, tmp_path: Path) -> None:
    assert_one_line(command("scripts/conclude.py", "table=.", "runs=runs"), "There is no table table.json")
    (tmp_path / "table.json").write_text(json.dumps({"rows": [BASELINE]}))
    assert_one_line(command("scripts/conclude.py", "table=.", "runs=runs"), "The table compares nothing")
