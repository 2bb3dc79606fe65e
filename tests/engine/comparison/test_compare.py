"""The runs of a comparison."""

import json
from pathlib import Path

from engine.comparison import compare
from engine.config.data import DataConfig
from engine.config.runtime import RunConfig
from engine.config.schemas import EvaluateConfig
from tests.commands import RECORD


def test_runs_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    expected = ["resnet18_cbam/seed9", "resnet18_cbam-attention_lr.3/seed9", "resnet18_cbam-attention_lr.3/seed10"]
    expected += ["resnet18_cbam-attention_lr.10/seed9", "resnet101/seed9"]
    for run in expected:
        record = tmp_path / "test" / run / "record.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps(RECORD))
    config = EvaluateConfig(data=DataConfig("test", "folders", "", 3), run=RunConfig(root=str(tmp_path)))
    found = [run.directory.relative_to(tmp_path / "test") for run in compare.find_runs(config)]
    assert [str(directory) for directory in found] == expected
