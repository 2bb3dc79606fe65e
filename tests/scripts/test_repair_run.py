"""Files of a finished run that are lost or damaged are computed again, by its command or by scripts/repair_run.py."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from tests.commands import arguments, assert_one_line, replaced
from tests.conftest import Command
from tests.networks import SMALL, SMALL_CBAM
from tests.processes import start_ranks


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


# What only the record has; of the seconds, a checkpoint has those until it was written.
MEASURED = ("train_seconds", "data_wait_seconds", "step_seconds", "peak_device_memory", "peak_process_memory")


def files(run: Path, lost: str = "") -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the record, without what a resumed run adds and a lost record takes along, and the predictions."""
    record = json.loads((run / "record.json").read_text())
    assert record.pop("earlier_origins", []) == []
    assert record["train_seconds"] > record["data_wait_seconds"] > 0
    if lost == "record.json":
        record = {key: value for key, value in record.items() if key not in MEASURED}
    arrays = np.load(run / "predictions.npz")
    return record, {name: arrays[name].tolist() for name in arrays.files}


def given(root: Path, network: Sequence[str] = SMALL_CBAM, run: str = "run") -> list[str]:
    return arguments(root, *network, "recipe.epochs=1", f"run.dir={run}")


@pytest.fixture
def run(command: Command, folders: Path, tmp_path: Path) -> Path:
    done = command("train.py", *given(folders))
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def test_the_training_command_computes_lost_files_again(command: Command, folders: Path, run: Path) -> None:
    before = {name: files(run, name) for name in ("", "record.json")}
    lost: list[tuple[str, str]] = [
        ("predictions.npz", "run/predictions.npz of a finished run is missing and is computed again."),
        ("checkpoint/last.pt", "run/checkpoint/last.pt of a finished run is missing and is computed again."),
        ("record.json", "run/record.json is missing and is written again from the checkpoint."),
    ]
    for name, message in lost:
        (run / name).unlink()
        done = command("train.py", *given(folders))
        assert (done.returncode, done.stderr) == (0, "")
        assert message in done.stdout
        assert files(run, name) == before.get(name, before[""]), name
    assert command("scripts/verify_run.py", "run").returncode == 0
    for checkpoint in (run / "checkpoint").iterdir():
        checkpoint.unlink()
    assert_one_line(command("train.py", *given(folders)), "run is finished, but its weights are missing. Restore")


def test_repair_run_sets_damaged_files_aside(command: Command, run: Path) -> None:
    for name in ("predictions.npz", "record.json"):
        before = files(run, name)
        damage(run / name)
        assert_one_line(command("scripts/verify_run.py", "run"), f"run/{name}", "`python scripts/repair_run.py run`")
        done = command("scripts/repair_run.py", "run")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"run/{name} cannot be used; it is now run/{name}.damaged." in done.stdout
        assert files(run, name) == before, name
    done = command("scripts/repair_run.py", "run")
    assert "Nothing to do." in done.stdout
    damage(run / "config.yaml")
    assert_one_line(command("scripts/repair_run.py", "run"), "config.yaml is not a configuration")


def test_two_processes_repair_a_run_of_two(folders: Path, tmp_path: Path) -> None:
    def start(script: str, *given: str) -> list[str]:
        done = [process.result() for process in start_ranks(2, script, [*given], tmp_path)]
        assert [(one.returncode, one.stderr) for one in done] == [(0, "")] * 2
        return [one.stdout for one in done]

    start("train.py", *given(folders))
    before = files(tmp_path / "run", "record.json")
    damage(tmp_path / "run" / "record.json")
    damage(tmp_path / "run" / "predictions.npz")
    first, second = start("scripts/repair_run.py", "run")
    assert ("it is now run/record.json.damaged" in first, "damaged" in second) == (True, False)
    start("scripts/repair_run.py", "run")
    assert files(tmp_path / "run", "record.json") == before


def test_a_calibrated_run_without_its_record_keeps_its_row(command: Command, folders: Path, tmp_path: Path) -> None:
    torch.save(models.build("mobilenet_v3_small", num_classes=3).state_dict(), tmp_path / "weights.pt")
    network = ["model=mobilenet_v3_small_cbam", "model.weights=weights.pt", "attention.calibrate=8"]
    calibrated = given(folders, network)
    assert command("train.py", *calibrated).returncode == 0
    before = files(tmp_path / "run", "record.json")
    (tmp_path / "run" / "record.json").unlink()
    assert command("train.py", *calibrated).returncode == 0
    record, _ = after = files(tmp_path / "run", "record.json")
    assert (record["attention"], record["calibration_images"]) == ("cbam-calibrate.8", 8)
    assert after == before
    # A record that was lost before checkpoints kept this.
    record = {key: value for key, value in record.items() if key not in ("calibration_images", "scales_sha256")}
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    assert command("scripts/verify_run.py", "run").returncode == 0


@pytest.mark.parametrize("spoil", [damage, Path.unlink])
def test_a_damaged_run_does_not_stop_the_table_of_the_others(
    spoil: Callable[[Path], None], command: Command, folders: Path, run: Path, tmp_path: Path
) -> None:
    assert command("train.py", *given(folders, SMALL, "plain")).returncode == 0
    spoil(run / "predictions.npz")
    common = [*arguments(folders)[:6], "runtime.device=cpu", "table.dir=table"]
    done = command("evaluate.py", *replaced(common, "data.image_size=48", "data.resize=48"), "runs=[plain,run]")
    assert "Runs are evaluated at the sizes of their training: data.image_size=32 data.resize=32." in done.stdout
    assert_one_line(done, "1 of 2 runs are not in the table. The predictions run/predictions.npz cannot be read")
    assert "Without run: The predictions run/predictions.npz cannot be read" in done.stdout
    table = json.loads((tmp_path / "table" / "table.json").read_text())
    assert [run["source"] for run in table["runs"]] == ["plain"]
    assert table["omitted"] == [{"source": "run", "reason": "damaged"}]
    assert_one_line(command("evaluate.py", *common, "runs=[run]"), "error: The predictions run/predictions.npz cannot")
