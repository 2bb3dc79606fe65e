"""scripts/conclude.py: the end of the demo."""

import json
from pathlib import Path

import pytest

from engine.errors import UserError
from tests.commands import assert_one_line
from tests.conftest import Command, script_module

BASELINE = {"model": "resnet18", "attention": "none", "baseline": None, "top1_error": 12.5, "seeds": [51]}

TABLE = {"task": "classification"}


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
    (tmp_path / "table.json").write_text(json.dumps({**TABLE, "rows": [BASELINE, row(low, high)]}))
    (tmp_path / "table.png").touch()
    done = command("scripts/conclude.py", "table=.", "runs=runs/demo")
    assert (done.returncode, done.stderr) == (0, "")
    sentences, figure, curves = done.stdout.strip().splitlines()
    assert sentences.startswith(
        "The top-1 error of resnet18 is 12.00% with cbam and 12.50% without attention: a difference of -0.50 points, "
        f"95% interval [{low:+.2f}, {high:+.2f}]. {verdict}"
    )
    assert (figure, curves) == ("Figure: table.png", "Curves and pictures: tensorboard --logdir runs/demo")


def test_the_metric_is_that_of_the_difference() -> None:
    """Of VOC, that is the mAP over 11 points, not COCO's AP; static gates are not compared with a plain network."""
    plain = {**BASELINE, "ap_11_points": 60.0, "ap": 30.0}
    cbam = {**plain, **row(1.0, 3.0), "ap_11_points": 62.0, "ap": 31.0}
    found = script_module("conclude").conclusion({"task": "voc_detection", "rows": [plain, cbam]})
    assert found.startswith("The VOC 2007 mAP of resnet18 is 62.00% with cbam and 60.00% without attention")
    static = {**cbam, "attention": "cbam-static_gates", "baseline": 0}
    with pytest.raises(UserError, match="The table compares nothing"):
        script_module("conclude").conclusion({"task": "voc_detection", "rows": [{**cbam, "baseline": None}, static]})


def test_a_table_that_compares_nothing(command: Command, tmp_path: Path) -> None:
    assert_one_line(command("scripts/conclude.py", "table=.", "runs=runs"), "There is no table table.json")
    (tmp_path / "table.json").write_text(json.dumps({**TABLE, "rows": [BASELINE]}))
    assert_one_line(command("scripts/conclude.py", "table=.", "runs=runs"), "The table compares nothing")
