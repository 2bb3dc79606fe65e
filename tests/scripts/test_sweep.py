"""scripts/sweep.py: the missing parts of a sweep."""

from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from engine.config import presets
from engine.config.presets import CONFIGS
from engine.errors import UserError
from engine.runs.directory import RunDirectory
from tests.commands import RECORD
from tests.conftest import Command, script_module
from tests.processes import REPOSITORY

SWEEPS = CONFIGS / "sweep"
DEMO = SWEEPS / "demo.yaml"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_module("sweep")


def test_commas_are_combinations_as_in_a_multirun(script: ModuleType) -> None:
    expanded = list(script.expand(["model=a,b", "recipe.lr=0.1", "seed=51,52", "model.weights=null"]))
    assert len(expanded) == 4
    assert expanded[1] == ["model=a", "recipe.lr=0.1", "seed=52", "model.weights=null"]


def test_a_run_is_missing_then_under_way_then_done(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = list(script.plan(DEMO, ["seed=7"]))
    assert lines[0] == "# demo: 3 runs; 0 done, 0 under way, 3 missing"
    assert lines[-1].splitlines()[-1] == "python evaluate.py data=shapes run.root=runs/demo table.dir=runs/demo/table"
    # Not in the default folder: there, the demo's runs would be compared with a user's.
    commands = [line for part in lines for line in part.splitlines() if line.startswith("python ")]
    assert all("run.root=runs/demo" in line for line in commands)
    assert [line for line in lines if line.startswith("# stage")] == ["# stage 1", "# stage 2"]
    pretraining = lines[2].splitlines()[-1]
    assert lines[3] == "# stage 2"
    assert pretraining.startswith("python train.py data=shapes ")

    overrides = pretraining.split()[2:]
    with script.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        trained = presets.parse(script.compose("train", overrides))
    run = RunDirectory(Path(trained.run_directory))
    run.start(trained)
    assert next(script.plan(DEMO, ["seed=7"])) == "# demo: 3 runs; 0 done, 1 under way, 2 missing"
    run.write_record(RECORD)
    lines = list(script.plan(DEMO, ["seed=7"]))
    assert lines[0] == "# demo: 3 runs; 1 done, 0 under way, 2 missing"
    assert lines[2] == f"# done: {run.directory}\n# {pretraining}"
    with pytest.raises(UserError, match=r"contains a run that differs in recipe.lr"):
        list(script.plan(DEMO, ["seed=7", "recipe.lr=0.5"]))


RUNS = {
    "table_pretrained": 20,
    "table4": 24,
    "table5": 6,
    "table6": 4,
    "table7": 6,
    "ablation_channel": 4,
    "ablation_spatial": 7,
    "ablation_order": 5,
    "tiny_imagenet": 25,
    "tiny_imagenet_20": 23,
    "tiny_imagenet_scratch": 9,
    "bccd": 9,
    "demo": 3,
    "any_cnn": 14,
    "attention_lr": 46,
    "attention_lr_cells": 36,
    "cells_long": 20,
    "recipes": 12,
    "recipes_small": 13,
    "attention_only_small": 10,
}


@pytest.mark.parametrize("sweep", RUNS)
def test_a_sweep_lists_its_runs(sweep: str, script: ModuleType) -> None:
    """Each run composes to a valid configuration, and no two write to the same directory."""
    plan = "\n".join(script.plan(SWEEPS / f"{sweep}.yaml", ["data.root=nowhere"]))
    assert plan.startswith(f"# {sweep}: {RUNS[sweep]} runs; ")
    directories = [line for line in plan.splitlines() if line.startswith(("# missing: ", "# done: ", "# under way: "))]
    assert len(set(directories)) == RUNS[sweep]


def test_every_sweep_states_expectation_and_command() -> None:
    sweeps = sorted(SWEEPS.glob("*.yaml"))
    assert [sweep.stem for sweep in sweeps] == sorted(RUNS)
    for sweep in sweeps:
        comment = [line for line in sweep.read_text().splitlines() if line.startswith("#")]
        for part in ("Expected", "Hardware and time:", f"python scripts/sweep.py sweep={sweep.stem}"):
            assert any(part in line for line in comment), (sweep, part)
        assert OmegaConf.load(sweep).keys() == {"train", "runs", "evaluate"}


def test_plan_is_a_shell_script(command: Command) -> None:
    done = command("scripts/sweep.py", "sweep=demo", "runtime.device=cpu")
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert [line.split()[:2] for line in commands] == [["python", "train.py"]] * 3 + [["python", "evaluate.py"]]
    assert str(REPOSITORY) not in done.stdout
    assert all(line.endswith(" runtime.device=cpu") for line in commands)
    moved = command("scripts/sweep.py", "sweep=demo", "run.root=elsewhere")
    assert all(" run.root=elsewhere" in line for line in moved.stdout.splitlines() if not line.startswith("#"))
    elsewhere = command("scripts/sweep.py", "sweep=demo", "data.root=nowhere")
    assert elsewhere.returncode == 0
    assert elsewhere.stderr == "warning: data.root=nowhere does not exist on this machine.\n"
    wrong = command("scripts/sweep.py", "sweep=table9")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: Give one sweep as sweep=NAME (ablation_channel, ")


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[1]",
        "runs: []",
        "a: [",
        "train: []\nruns: []\nevaluate: []\nx: 1",
        "train: a=1\nruns: []\nevaluate: []",
        "train: []\nruns: [5]\nevaluate: []",
    ],
)
def test_own_sweep_file(content: str | None, script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"The sweep .*mine\.yaml (cannot be read|needs three lists)"):
        list(script.plan(file, []))


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        (["data=shapes model=resnet18 'seed=1"], "has a run that cannot be read"),
        (["data=shapes model=resnet18 recipe.lr=0.1,0.2"], r"Two runs of .* write to runs/shapes/resnet18/seed51"),
    ],
)
def test_own_sweep_that_cannot_run_is_refused(
    runs: list[str], complaint: str, script: ModuleType, tmp_path: Path
) -> None:
    OmegaConf.save({"train": [], "runs": runs, "evaluate": []}, tmp_path / "mine.yaml")
    with pytest.raises(UserError, match=complaint):
        list(script.plan(tmp_path / "mine.yaml", []))


def test_a_chain_of_three_is_three_stages(script: ModuleType) -> None:
    def run(name: str, weights: str | None) -> object:
        return script.Planned(Path(name), "missing", weights, name)

    runs = [run("third", "second/checkpoint/last.pt"), run("first", None), run("second", "first/checkpoint/last.pt")]
    assert [[each.command for each in stage] for stage in script.stages(runs)] == [["first"], ["second"], ["third"]]
    absolute = [run("second", str(Path("first/checkpoint/last.pt").absolute())), run("first", None)]
    assert [[each.command for each in stage] for stage in script.stages(absolute)] == [["first"], ["second"]]


def test_a_sweep_file_that_is_not_text_is_one_line(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"runs: \xff")
    with pytest.raises(UserError, match="cannot be read"):
        list(script.plan(tmp_path / "mine.yaml", []))
