"""scripts/sweep.py: the missing parts of a sweep."""

import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine import cli
from engine.config import presets
from engine.config.presets import CONFIGS
from engine.errors import UserError
from engine.runs import sweeps
from engine.runs.directory import RunDirectory
from engine.runs.sweeps import Planned
from tests.commands import RECORD, assert_one_line
from tests.conftest import Command, script_module
from tests.processes import REPOSITORY

SWEEPS = CONFIGS / "sweep"
DEMO = SWEEPS / "demo.yaml"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_module("sweep")


def listing(script: ModuleType, file: Path, extra: list[str]) -> list[str]:
    """Return the lines of a sweep's script."""
    return list(script.script(file, sweeps.planned_runs(file, extra), extra))


def test_commas_are_combinations_as_in_a_multirun() -> None:
    expanded = list(sweeps.expand(["model=a,b", "recipe.lr=0.1", "seed=51,52", "model.weights=null"]))
    assert len(expanded) == 4
    assert expanded[1] == ["model=a", "recipe.lr=0.1", "seed=52", "model.weights=null"]


def test_a_run_is_missing_then_under_way_then_done(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = listing(script, DEMO, ["seed=7"])
    assert lines[0] == "# demo: 3 runs; 0 done, 0 under way, 3 missing"
    assert lines[-1] == "python evaluate.py data=shapes run.root=runs/demo table.dir=runs/demo/table"
    # Not in the default folder: there, the demo's runs would be compared with a user's.
    commands = [line for line in lines if line.startswith("python ")]
    assert all("run.root=runs/demo" in line for line in commands)
    assert [line for line in lines if line.startswith("# stage")] == ["# stage 1", "# stage 2"]
    announced = [line for line in lines if line.startswith("bash ")]
    assert announced == [
        f"bash scripts/sweep_progress.sh {n} 3 {d} {8 - d} $SECONDS" for n, d in ((1, 0), (2, 4), (3, 6))
    ]
    pretraining = lines[4]
    assert lines[5] == "# stage 2"
    assert pretraining.startswith("python train.py data=shapes ")

    overrides = pretraining.split()[2:]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        trained = presets.parse(presets.compose("train", overrides))
    run = RunDirectory(Path(trained.run_directory))
    run.start(trained)
    assert listing(script, DEMO, ["seed=7"])[0] == "# demo: 3 runs; 0 done, 1 under way, 2 missing"
    run.write_record(RECORD)
    lines = listing(script, DEMO, ["seed=7"])
    assert lines[0] == "# demo: 3 runs; 1 done, 0 under way, 2 missing"
    assert lines[2:4] == [f"# done: {run.directory}", f"# {pretraining}"]
    assert "bash scripts/sweep_progress.sh 2 3 0 4 $SECONDS" in lines
    with pytest.raises(UserError, match=r"contains a run that differs in recipe.lr"):
        listing(script, DEMO, ["seed=7", "recipe.lr=0.5"])


def test_a_damaged_run_is_left_out_and_named(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "pretrained" / "shapes" / "resnet18"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: [")
    done = command("scripts/sweep.py", "sweep=demo")
    assert_one_line(done, "1 of 3 runs cannot be used. runs/pretrained/shapes/resnet18/config.yaml is not a config")
    lines = done.stdout.splitlines()
    assert lines[0] == "# demo: 3 runs; 0 done, 0 under way, 2 missing, 1 damaged"
    assert lines[2] == "# damaged: runs/pretrained/shapes/resnet18"
    assert lines[3].startswith("# python train.py data=shapes ")
    assert sum(line.startswith("python train.py ") for line in lines) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["1", "20", "0", "40", "2"], "run 1 of 20"),
        (["3", "20", "4", "36", "660"], "run 3 of 20, 1 h 39 min left"),
        (["20", "20", "38", "2", "380"], "run 20 of 20, 1 min left"),
    ],
)
def test_position_and_time_left_of_a_sweep(arguments: list[str], expected: str) -> None:
    done = subprocess.run(
        ["bash", REPOSITORY / "scripts" / "sweep_progress.sh", *arguments], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


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
    "calibrated_start": 9,
    "lr_factor_trashnet": 23,
    "lr_factor_trashnet_60_steps": 15,
    "lr_factor_tiny_imagenet": 44,
    "lr_factor_trashnet_schedules": 33,
    "lr_factor_tiny_imagenet_schedules": 62,
    "trashnet_settings": 28,
    "trashnet": 35,
    "trashnet_long": 9,
    "trashnet_224": 9,
    "trashnet_224_check": 8,
    "trashnet_networks": 12,
}


@pytest.fixture
def shared_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra only reads its store of presets, but copies it for each configuration: a quarter of the time."""
    monkeypatch.setattr(ConfigStore, "__deepcopy__", lambda store, _copied: store, raising=False)


@pytest.mark.usefixtures("shared_store")
@pytest.mark.parametrize("sweep", RUNS)
def test_a_sweep_lists_its_runs(
    sweep: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each run composes to a valid configuration, and no two write to the same directory."""
    monkeypatch.chdir(tmp_path)  # without the runs of this clone
    plan = "\n".join(listing(script, SWEEPS / f"{sweep}.yaml", ["data.root=nowhere"]))
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


def test_sweeps_evaluate_with_the_groups_of_their_committed_tables() -> None:
    for sweep in SWEEPS.glob("*.yaml"):
        given = dict(argument.split("=", 1) for argument in sweeps.read(sweep).evaluate)
        has_groups = (REPOSITORY / given["table.dir"] / "groups.csv").exists()
        assert has_groups == ("data.groups" in given), sweep


def test_plan_is_a_shell_script(command: Command) -> None:
    done = command("scripts/sweep.py", "sweep=demo", "runtime.device=cpu")
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if not line.startswith(("#", "bash "))]
    assert [line.split()[:2] for line in commands] == [["python", "train.py"]] * 3 + [["python", "evaluate.py"]]
    assert str(REPOSITORY) not in done.stdout
    assert all(line.endswith(" runtime.device=cpu") for line in commands)
    assert_one_line(command("scripts/sweep.py", "sweep=demo", "seed=1", "seed=2"), "The key seed is given twice")
    moved = command("scripts/sweep.py", "sweep=demo", "run.root=elsewhere", "recipe.epochs=1")
    # train.py refuses a key that is given twice.
    assert moved.stdout.count(" recipe.epochs=1") == moved.stdout.count(" recipe.epochs=") == 3
    assert all(" run.root=elsewhere" in line for line in moved.stdout.splitlines() if line.startswith("python "))
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
def test_own_sweep_file(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"The sweep .*mine\.yaml (cannot be read|needs three lists)"):
        sweeps.planned_runs(file, [])


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        (["data=shapes model=resnet18 'seed=1"], "has a run that cannot be read"),
        (["data=shapes model=resnet18 recipe.lr=0.1,0.2"], r"Two runs of .* write to runs/shapes/resnet18/seed51"),
    ],
)
@pytest.mark.usefixtures("script")  # which imports the script
def test_own_sweep_that_cannot_run_is_refused(runs: list[str], complaint: str, tmp_path: Path) -> None:
    OmegaConf.save({"train": [], "runs": runs, "evaluate": []}, tmp_path / "mine.yaml")
    with pytest.raises(UserError, match=complaint):
        sweeps.planned_runs(tmp_path / "mine.yaml", [])


def test_a_chain_of_three_is_three_stages() -> None:
    def run(name: str, weights: str | None) -> Planned:
        return Planned(Path(name), "missing", weights, name)

    runs = [run("third", "second/checkpoint/last.pt"), run("first", None), run("second", "first/checkpoint/last.pt")]
    assert [[each.command for each in stage] for stage in sweeps.stages(runs)] == [["first"], ["second"], ["third"]]
    absolute = [run("second", str(Path("first/checkpoint/last.pt").absolute())), run("first", None)]
    assert [[each.command for each in stage] for stage in sweeps.stages(absolute)] == [["first"], ["second"]]


def test_a_sweep_file_that_is_not_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"runs: \xff")
    with pytest.raises(UserError, match="cannot be read"):
        sweeps.planned_runs(tmp_path / "mine.yaml", [])


@pytest.mark.parametrize(
    ("line", "run", "complaint"),
    [
        (
            "attention=cbam,none attention.after=layer4 seed=1,2",
            "attention=none attention.after=layer4 seed=1",
            "is not",
        ),
        ("seed=1 attention=cbam attention.after=layer[34]", "seed=1 attention=cbam attention.after=layer[34]", "quote"),
        ("recipe.epochs=0,1 seed=3", "recipe.epochs=0 seed=3", "recipe.epochs=0 is out of range"),
    ],
)
def test_an_error_names_the_run(
    line: str, run: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["data=shapes", "recipe=scratch", "model=resnet18"]
    OmegaConf.save({"train": train, "runs": ["seed=50", line], "evaluate": []}, tmp_path / "mine.yaml")
    with pytest.raises(SystemExit), cli.one_line_errors(HydraException, OmegaConfBaseException):
        sweeps.planned_runs(tmp_path / "mine.yaml", [])
    error = capsys.readouterr().err
    assert error.startswith(f"error: In the run `{run}`: ")
    assert complaint in error
