"""The calibrated start as a user meets it: in train.py, in runs of earlier versions, and in the table."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import arguments, assert_one_line
from tests.conftest import Command
from tests.networks import SMALL, SMALL_CBAM, small
from tests.processes import start_ranks
from tests.test_resume import die_before_rename

MODEL = [*SMALL_CBAM, "recipe.batch_size=16"]
LABEL = "cbam-after.1_4.0a538c"  # of SMALL_CBAM, with the digest of its places


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.manual_seed(5)
    net = small(num_classes=3)
    with torch.no_grad():
        for _ in range(20):  # for running statistics like those of a trained network
            net(torch.randn(16, 3, 32, 32))
    torch.save(net.state_dict(), file)
    return f"model.weights={file}"


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "record.json").read_text())
    return found


def scales(run: Path) -> dict[str, Any]:
    state = torch.load(run / "checkpoint" / "last.pt", weights_only=True)["model"]
    return {key: value.tolist() for key, value in state.items() if key.endswith(".scale")}


def test_the_identity_start_is_calibrated_and_the_bits_survive_a_kill(
    command: Command, folders: Path, weights: str, tmp_path: Path
) -> None:
    given = arguments(folders, *MODEL, weights, "run.checkpoint_every_steps=1")
    done = command("train.py", *given, "run.dir=whole")
    assert done.returncode == 0, done.stderr
    assert "gates  calibrated on 48 training images" in done.stdout  # all of them
    assert re.search(r"epoch 2/2; .*; gates moved 0\.\d+, 0\.0% saturated; ", done.stdout)
    whole = record(tmp_path / "whole")
    assert (whole["attention"], whole["calibration_images"], len(whole["scales_sha256"])) == (LABEL, 48, 64)
    assert whole["gate_saturation_mean"] == 0
    assert len(scales(tmp_path / "whole")) == len(whole["gate_saturation"])

    killed = command("train.py", *given, "run.dir=killed", prepare=functools.partial(die_before_rename, 8))
    assert killed.returncode == -9
    assert command("train.py", *given, "run.dir=killed").returncode == 0
    resumed = record(tmp_path / "killed")
    for key in ("scales_sha256", "calibration_images", "history", "weights_sha256", "start_weights_sha256"):
        assert resumed[key] == whole[key]
    verified = command("scripts/verify_run.py", "killed", "--rerun")
    assert verified.returncode == 0, verified.stderr


def test_two_processes_have_the_scales_of_one(command: Command, folders: Path, weights: str, tmp_path: Path) -> None:
    given = arguments(folders, *MODEL, weights, "recipe.epochs=1", "attention.calibrate=20")
    for run in ("two", "again"):
        for process in start_ranks(2, "train.py", [*given, f"run.dir={run}"], tmp_path):
            result = process.result()
            assert result.returncode == 0, result.stderr
    assert command("train.py", *given, "run.dir=one").returncode == 0
    two, again, one = (record(tmp_path / run) for run in ("two", "again", "one"))
    assert two["calibration_images"] == 20
    assert two["scales_sha256"] == one["scales_sha256"]
    assert two["weights_sha256"] == again["weights_sha256"]
    assert one["attention"] == f"{LABEL}-calibrate.20"


def test_a_random_start_is_not_calibrated(command: Command, folders: Path, weights: str, tmp_path: Path) -> None:
    given = arguments(folders, *MODEL, "recipe.epochs=1")
    assert_one_line(
        command("train.py", *given, "model.weights=null", "attention.calibrate=8"),
        "attention.calibrate=8 needs the identity start; set attention.init=identity or leave it out.",
    )
    assert_one_line(command("train.py", *given, weights, "attention.calibrate=-1"), "attention.calibrate=-1 is out of")
    assert command("train.py", *given, "model.weights=null", "run.dir=random").returncode == 0
    assert record(tmp_path / "random")["calibration_images"] == 0
    assert record(tmp_path / "random")["attention"] == LABEL
    assert not scales(tmp_path / "random")

    # The gates of the run have learned: another run from its weights keeps their scales, here none.
    learned = "model.weights=random/checkpoint/last.pt"
    assert command("train.py", *given, learned, "run.dir=further").returncode == 0
    assert record(tmp_path / "further")["calibration_images"] == 0
    assert_one_line(
        command("train.py", *given, learned, "attention.calibrate=8", "run.dir=refused"),
        "attention.calibrate=8 has no effect: the attention in random/checkpoint/last.pt has learned",
    )


def test_weights_that_are_not_finite_end_in_one_line(
    command: Command, folders: Path, weights: str, tmp_path: Path
) -> None:
    state = torch.load(weights.removeprefix("model.weights="), weights_only=True)
    state["0.weight"][0] = torch.inf
    torch.save(state, tmp_path / "broken.pt")
    assert_one_line(
        command("train.py", *arguments(folders, *MODEL, "model.weights=broken.pt")),
        "Attention cannot be calibrated. The feature map at the gate '1.",
        "is not finite; check the weights and the images.",
    )


def as_an_earlier_version_wrote_it(run: Path) -> None:
    """Remove what runs of earlier versions lack from a run without calibration."""
    config = (run / "config.yaml").read_text()
    assert "  calibrate: 0\n" in config
    (run / "config.yaml").write_text(config.replace("  calibrate: 0\n", ""))
    state = torch.load(run / "checkpoint" / "last.pt", weights_only=True)
    assert state["identity"].pop("attention.calibrate") == 0
    del state["position"]["gates_at_start"]
    torch.save(state, run / "checkpoint" / "last.pt")
    older = {key: value for key, value in record(run).items() if "calibration" not in key and "saturation" not in key}
    (run / "record.json").write_text(json.dumps(older | {"attention": LABEL}))


def test_a_run_of_an_earlier_version_is_uncalibrated(
    command: Command, folders: Path, weights: str, tmp_path: Path
) -> None:
    """It keeps its bits and its place, and has its own row; the control with static gates has another."""
    given = arguments(folders, *MODEL, weights, "recipe.epochs=1")
    older = tmp_path / "runs" / "small" / f"tests.networks.small_{LABEL}" / "seed51"
    assert command("train.py", *given, "attention.calibrate=0", f"run.dir={older}").returncode == 0
    as_an_earlier_version_wrote_it(older)
    assert_one_line(
        command("train.py", *given), "contains a run that differs in attention.calibrate (0 there, 128 here)"
    )
    assert "is finished" in command("train.py", *given, "attention.calibrate=0", f"run.dir={older}").stdout
    verified = command("scripts/verify_run.py", str(older), "--rerun")
    assert verified.returncode == 0, verified.stderr

    assert command("train.py", *given, "run.dir=calibrated").returncode == 0
    data = [argument for argument in given if argument.startswith(("data", "runtime"))]
    runs = f"runs=[{older},calibrated]"
    done = command("evaluate.py", *data, runs, "table.dir=table", "table.static_gates=true")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "table" / "table.json").read_text())
    attentions = [f"{LABEL}{more}" for more in ("-calibrate.0", "-calibrate.0-static_gates", "", "-static_gates")]
    assert [row["attention"] for row in table["rows"]] == attentions
    assert [row["baseline"] for row in table["rows"]] == [None, 0, None, 2]
    assert (
        "each gate is replaced by its mean over at most 512 training images"
        in (tmp_path / "table" / "table.md").read_text()
    )
    assert command("scripts/render_table.py", "table").returncode == 0


def test_static_gates_need_gates_and_training_images(command: Command, folders: Path, tmp_path: Path) -> None:
    given = arguments(folders, *SMALL, "model.weights=null", "recipe.epochs=1")
    assert command("train.py", *given, "run.dir=plain").returncode == 0
    data = [argument for argument in given if argument.startswith(("data", "runtime"))]
    assert_one_line(
        command("evaluate.py", *data, "runs=[plain]", "table.static_gates=true"),
        "table.static_gates=true needs a network with gates",
    )
    assert_one_line(
        command("evaluate.py", "data=coco", "table.static_gates=true"), "table.static_gates=true needs images of one"
    )
    assert not (tmp_path / "results").exists()
