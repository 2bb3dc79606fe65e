"""scripts/verify_run.py: runs checked against their records, and repeated."""

import json
from pathlib import Path

import pytest
import torch

from tests.commands import arguments, assert_one_line, replaced
from tests.conftest import Command
from tests.networks import SMALL, narrow_classifiers


@pytest.mark.parametrize("family", ["resnet18_cbam", "vgg11_bn_cbam", "mobilenet_v3_small_cbam"])
def test_two_runs_of_one_command_give_the_same_bits(
    family: str, command: Command, folders: Path, tmp_path: Path
) -> None:
    common = arguments(folders, f"model={family}", "model.weights=null", "recipe.epochs=1")
    records = []
    for run, reading in (("a", ["workers=0"]), ("b", ["workers=2", "cache_images=true"])):
        given = replaced(common, f"run.dir={run}", *(f"runtime.{key}" for key in reading))
        done = command("train.py", *given, prepare=narrow_classifiers)
        assert done.returncode == 0, done.stderr
        records.append(json.loads((tmp_path / run / "record.json").read_text()))
    for key in ("weights_sha256", "history", "top1", "top5", "val_loss", "start_weights_sha256"):
        assert records[0][key] == records[1][key], key


def test_changed_run_does_not_verify(command: Command, folders: Path, tmp_path: Path) -> None:
    common = arguments(folders, *SMALL, "model.weights=null", "run.dir=run", "recipe.epochs=1")
    assert command("train.py", *common).returncode == 0
    verified = command("scripts/verify_run.py", "run", "--rerun")
    assert verified.returncode == 0, verified.stderr
    assert "agree with the record" in verified.stdout
    assert "repeated with the same bits" in verified.stdout
    file = tmp_path / "run" / "record.json"
    record = file.read_text()
    file.write_text(record.replace('"model": "tests.networks.small"', '"model": "other"'))
    assert_one_line(command("scripts/verify_run.py", "run"), "model is other in run/record.json, but")
    file.write_text(record.replace('"top1":', '"top":'))
    assert_one_line(command("scripts/verify_run.py", "run"), "run/record.json lacks the key top1. Restore the file.")
    file.write_text(record)
    state = torch.load(tmp_path / "run" / "checkpoint" / "last.pt", weights_only=True)
    state["model"]["9.bias"][0] += 1
    torch.save(state, tmp_path / "run" / "checkpoint" / "last.pt")
    assert_one_line(command("scripts/verify_run.py", "run"), "last.pt do not match run/record.json; restore the file")
