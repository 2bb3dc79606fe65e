"""The run directory: its states, its lock, its record."""

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.config import DataConfig, ModelConfig, RecipeConfig, TrainConfig
from engine.errors import UserError
from engine.run_dir import RunDirectory, matches_config, result_config
from tests.processes import REPOSITORY

CONFIG = TrainConfig(
    model=ModelConfig("net"),
    data=DataConfig("test", "folders", "nowhere", 3, None, image_size=32, resize=32),
    recipe=RecipeConfig(epochs=1, batch_size=8, lr=0.1, weight_decay=0.0),
)


def run_with_states(folder: Path) -> RunDirectory:
    """A run whose last checkpoint is of step 2 and whose previous one is of step 1."""
    run = RunDirectory(folder / "run")
    run.start(CONFIG)
    for step in (1, 2):
        run.save_state({"step": step, "weights": torch.ones(1000)}, CONFIG)
    return run


class TouchesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "code", "absent"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one_and_says_so(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_with_states(tmp_path)
    match damage:
        case "truncated":
            run.last.write_bytes(run.last.read_bytes()[:2000])
        case "garbage":
            run.last.write_bytes(b"garbage")
        case "code":
            run.last.write_bytes(pickle.dumps({"step": TouchesAFile(tmp_path / "touched")}))
        case "absent":  # killed between the two renames of a save
            run.last.unlink()
    state = run.load_state(CONFIG)
    assert state is not None
    assert state["step"] == 1
    assert not (tmp_path / "touched").exists()
    if damage != "absent":
        assert "last.pt cannot be read" in caplog.text
        assert "Going on from" in caplog.text


def test_no_readable_checkpoint_at_all_is_an_error(tmp_path: Path) -> None:
    run = run_with_states(tmp_path)
    run.last.write_bytes(b"")
    run.previous.write_bytes(b"")
    with pytest.raises(UserError, match=r"last\.pt cannot be read.*previous\.pt cannot be read.* to start anew"):
        run.load_state(CONFIG)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run = run_with_states(tmp_path)
    with pytest.raises(UserError, match="is not a checkpoint of the run in"):
        run.load_state(replace(CONFIG, seed=52))


def test_a_checkpoint_from_before_a_key_existed_is_taken_where_the_key_has_its_default() -> None:
    fused = replace(CONFIG, runtime=replace(CONFIG.runtime, fused_cbam=True))
    before = {key: value for key, value in result_config(CONFIG).items() if key != "runtime.fused_cbam"}
    assert matches_config({"identity": before}, CONFIG)
    assert not matches_config({"identity": before}, fused)
    assert not matches_config({}, CONFIG)


def test_a_second_process_on_the_same_run_stops_and_names_the_first(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.start(CONFIG)
    code = (
        "from engine.run_dir import RunDirectory; from tests.engine.test_run_dir import CONFIG\n"
        "from pathlib import Path; import sys\n"
        "try: RunDirectory(Path(sys.argv[1])).start(CONFIG)\n"
        "except Exception as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert f"is being written by process {os.getpid()} on " in second.stdout, second.stderr


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "from engine.run_dir import RunDirectory; from tests.engine.test_run_dir import CONFIG\n"
        "from pathlib import Path; import os, signal, sys; RunDirectory(Path(sys.argv[1])).start(CONFIG)\n"
        "if os.fork() == 0: import time; time.sleep(30)\n"  # a worker that outlives it
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = tmp_path / "run"
    killed = subprocess.run([sys.executable, "-c", code, str(run)], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    RunDirectory(run).start(CONFIG)
    assert str(os.getpid()) in (run / "lock").read_text()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"is no run; set run\.dir to another folder"):
        RunDirectory(tmp_path).require_same_config(CONFIG)
    with pytest.raises(UserError, match="is no run"):
        RunDirectory(tmp_path / "thesis.tex").require_same_config(CONFIG)


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"status": "finished"}', "no json"])
def test_a_damaged_record_is_an_error_that_says_what_to_do(content: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.start(CONFIG)
    run.record_file.write_text(content)
    with pytest.raises(UserError, match=r"record\.json (is damaged|lacks results); restore it, or delete"):
        _ = run.finished
