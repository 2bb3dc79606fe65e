"""No run vanishes silently: damaged, unfinished, not named, and gone since the previous table."""

import json
import shutil
from pathlib import Path

from omegaconf import OmegaConf

from engine.comparison.notes import summary_notes
from engine.comparison.omitted import omitted_runs
from engine.config.data import DataConfig
from engine.config.runtime import RunConfig
from engine.config.schemas import EvaluateConfig, TrainConfig
from tests.commands import RECORD


def run(root: Path, name: str, status: str = "finished") -> Path:
    folder = root / "small" / name
    folder.mkdir(parents=True)
    folder.joinpath("config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(TrainConfig)))
    folder.joinpath("record.json").write_text(json.dumps({**RECORD, "status": status}))
    return folder


def test_every_run_that_a_table_lacks_is_named_with_the_reason(tmp_path: Path) -> None:
    config = EvaluateConfig(data=DataConfig("small", "folders", "", 3), run=RunConfig(root=str(tmp_path)))
    compared = run(tmp_path, "net/seed51")
    unfinished = run(tmp_path, "net_cbam/seed51", status="running")
    damaged = run(tmp_path, "net_se/seed51")
    unnamed = run(tmp_path, "net_cbam/seed52")
    deleted = run(tmp_path, "net_cbam/seed53")
    shutil.rmtree(deleted)
    previous = tmp_path / "table.json"
    rows = [{"source": str(source), "seed": 51} for source in (compared, unnamed, deleted)]
    previous.write_text(json.dumps({"runs": [*rows, {"source": "torchvision V1", "seed": None}]}))
    omitted = omitted_runs(config, [compared], [damaged], previous)
    assert {one["source"]: one["reason"] for one in omitted} == {
        str(damaged): "damaged",
        str(unfinished): "unfinished",
        str(unnamed): "not named in runs=",
        str(deleted): "in the previous table only",
    }
    table = {"task": "classification", "rows": [], "runs": [], "omitted": omitted}
    assert f"Not in this table (in the previous table only): {deleted}." in summary_notes(table)
    assert omitted_runs(config, [compared, unnamed, damaged], [], tmp_path / "none.json") == [omitted[1]]
