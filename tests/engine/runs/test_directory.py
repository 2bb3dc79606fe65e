"""The run directory: its states, its lock, its record."""

import json
import math
import os
import pickle
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from engine.config import attention
from engine.config.data import DataConfig
from engine.config.model import ModelConfig
from engine.config.recipe import RecipeConfig
from engine.config.schemas import TrainConfig
from engine.errors import UserError
from engine.processes.signals import Interrupted
from engine.runs import checkpoint
from engine.runs.atomic_io import DRAFT
from engine.runs.directory import RunDirectory
from engine.runs.identity import mismatches, result_config
from tests.commands import RECORD
from tests.processes import REPOSITORY, Process

CONFIG = TrainConfig(
    model=ModelConfig("net"),
    data=DataConfig("test", "folders", "nowhere", 3, None, image_size=32, resize=32),
    recipe=RecipeConfig(epochs=1, batch_size=8, lr=0.1, weight_decay=0.0),
)


# Of the start and of the one epoch of CONFIG.
HISTORY = [{"epoch": 0, "val_top1": 20.0}, {"epoch": 1, "train_top1": 50.0, "val_top1": 60.0}]


def run_with_states(folder: Path) -> RunDirectory:
    """Return a run whose last checkpoint is of step 2 and whose previous one is of step 1."""
    run = RunDirectory(folder / "run")
    run.start(CONFIG)
    for step in (1, 2):
        position: dict[str, object] = {"epoch": 0, "step": step, "history": HISTORY}
        state = {"model": {"weight": torch.ones(1000)}, "optimizer": {}, "scaler": {}, "position": position}
        run.save_state(state, CONFIG)
    return run


class TouchesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "code", "absent"])
def test_damaged_checkpoint_falls_back_to_previous(
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
    assert state["position"]["step"] == 1
    assert not (tmp_path / "touched").exists()
    if damage != "absent":
        assert "last.pt cannot be read" in caplog.text
        assert "Resuming from" in caplog.text


def test_no_readable_checkpoint_at_all_is_an_error(tmp_path: Path) -> None:
    run = run_with_states(tmp_path)
    run.last.write_bytes(b"")
    run.previous.write_bytes(b"")
    with pytest.raises(UserError, match=r"last\.pt cannot be read.*previous\.pt cannot be read.* Restore one of them"):
        run.load_state(CONFIG)


def test_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    run = run_with_states(tmp_path)
    with pytest.raises(UserError, match="is not a checkpoint of the run in"):
        run.load_state(replace(CONFIG, seed=52))


def test_checkpoint_older_than_a_key_loads_at_its_default() -> None:
    fused = replace(CONFIG, runtime=replace(CONFIG.runtime, fused_cbam=True))
    before = {key: value for key, value in result_config(CONFIG).items() if key != "runtime.fused_cbam"}
    assert not mismatches({"identity": before}, CONFIG)
    assert mismatches({"identity": before}, fused) == ["runtime.fused_cbam"]
    assert mismatches({}, CONFIG)


@pytest.mark.parametrize("kind", ["none", "se", "cbam"])
def test_checkpoint_from_before_kinds_had_their_own_options_loads(kind: str) -> None:
    """Then, the checkpoint of every kind had all options of CBAM."""
    config = replace(CONFIG, model=replace(CONFIG.model, attention=kind), attention=attention.schema(kind)())
    before = {f"attention.{key}": value for key, value in attention.kinds()["cbam"].items()} | result_config(config)
    assert not mismatches({"identity": before}, config)
    if kind in ("se", "cbam"):
        assert mismatches({"identity": before | {"attention.ratio": 8}}, config) == ["attention.ratio"]


@pytest.mark.parametrize(("kind", "label"), [("none", "none"), ("se", "se"), ("cbam", "cbam-order.parallel")])
def test_config_from_before_kinds_had_their_own_options_is_read(kind: str, label: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.start(CONFIG)
    stored = OmegaConf.load(run.config_file)
    order = "parallel" if kind == "cbam" else "channel_spatial"
    stored.model.attention, stored.attention = kind, {**attention.kinds()["cbam"], "order": order, "after": None}
    run.config_file.write_text(OmegaConf.to_yaml(stored))
    assert run.config().attention_label == label
    assert run.config().attention.kind == kind
    stored.attention.unknown = 1
    run.config_file.write_text(OmegaConf.to_yaml(stored))
    with pytest.raises(UserError, match="is not a configuration"):
        run.config()


def start_elsewhere(folder: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Start the run in `folder`/run in another process, which continues with these lines."""
    program = folder / "start.py"
    head = (
        "import os, signal, sys, time\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from pathlib import Path\n"
        "from engine.runs.directory import RunDirectory\n"
        "from tests.engine.runs.test_directory import CONFIG\n"
    )
    program.write_text(head + "\n".join(lines))
    return Process(str(program), [], folder, {}).result()


def test_second_process_on_a_run_names_the_first(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.start(CONFIG)
    second = start_elsewhere(
        tmp_path, "try: RunDirectory(Path('run')).start(CONFIG)", "except Exception as error: print(error)"
    )
    assert f"is being written by process {os.getpid()} on " in second.stdout, second.stderr


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    killed = start_elsewhere(
        tmp_path,
        "RunDirectory(Path('run')).start(CONFIG)",
        "if os.fork() == 0: time.sleep(30)",  # a worker that outlives the process
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    assert killed.returncode == -signal.SIGKILL
    run = tmp_path / "run"
    RunDirectory(run).start(CONFIG)
    assert str(os.getpid()) in (run / "lock").read_text()


def test_a_start_removes_its_own_drafts_only(tmp_path: Path) -> None:
    run = run_with_states(tmp_path)
    own = run.last.with_name(f"last.pt{DRAFT}")
    of_another_run = run.directory / "rerun" / "checkpoint" / f"last.pt{DRAFT}"
    for draft in (own, of_another_run):
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
    RunDirectory(run.directory).start(CONFIG)
    assert not own.exists()
    assert of_another_run.exists()


def test_a_position_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunDirectory(tmp_path / "gone")
    run.write_progress({"epoch": 1})
    (warning,) = caplog.messages
    assert warning.count("cannot be written") == 1
    assert "status.py shows an earlier state" in warning


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"exists but is not a run directory; set run\.dir to a different path"):
        RunDirectory(tmp_path).require_same_config(CONFIG)
    with pytest.raises(UserError, match="is not a run directory"):
        RunDirectory(tmp_path / "thesis.tex").require_same_config(CONFIG)


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ("no json", "is not a record"),
        ("[]", "does not contain keys and values"),
        ("{}", "lacks the key status"),
        ('{"status": "over"}', "status in .*record.json is 'over', not running or finished"),
        *((json.dumps({k: v for k, v in RECORD.items() if k != gone}), f"lacks the key {gone}") for gone in RECORD),
        (json.dumps({**RECORD, "classes": "three"}), "classes in .*record.json is 'three', not int"),
        (json.dumps({**RECORD, "gflops": True}), "gflops in .*record.json is True, not int or float"),
        (json.dumps({**RECORD, "gflops": math.nan}), "gflops in .*record.json is nan, not a finite number"),
        (json.dumps({**RECORD, "classes": -7}), "classes in .*record.json is -7, but there are 3 class_names"),
        (json.dumps({**RECORD, "preprocessing": {}}), "preprocessing in .*record.json lacks the key resize"),
        (json.dumps({**RECORD, "gate_movement_mean": "far"}), "gate_movement_mean in .* is 'far', not int or float"),
        (json.dumps({**RECORD, "history": 5}), "history in .*record.json is 5, not list"),
    ],
)
def test_a_record_that_does_not_fit_is_named(record: str, complaint: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.start(CONFIG)
    run.record_file.write_text(record)
    with pytest.raises(UserError, match=complaint) as refused:
        _ = run.finished
    assert "delete" not in str(refused.value)


def test_an_unreadable_record_is_not_called_damaged(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.record_file.mkdir(parents=True)
    with pytest.raises(UserError, match=r"record\.json cannot be read \(Is a directory\)\.$"):
        run.record()


@pytest.mark.parametrize(
    ("config", "complaint"),
    [("model: 'resnet18", "is not a configuration"), ("recipe: {speed: 5}", "is not a configuration .*speed")],
)
def test_a_config_that_was_edited_badly_is_named(config: str, complaint: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.start(CONFIG)
    run.config_file.write_text(config)
    with pytest.raises(UserError, match=complaint):
        run.config()


def finished_run(folder: Path) -> RunDirectory:
    """Return a run whose record agrees with its configuration and last checkpoint."""
    run = run_with_states(folder)
    values = {"model": "net", "attention": "none", "seed": 51, "epochs": CONFIG.recipe.epochs, "history": HISTORY}
    results = {"top1_start": 20.0, "top1": 60.0, "best_top1": 60.0, "best_epoch": 1}
    digest = checkpoint.sha256({"weight": torch.ones(1000)})
    run.write_record({**RECORD, **values, **results, "weights_sha256": digest})
    assert run.final_state()["position"]["step"] == 2
    return run


@pytest.mark.parametrize(("key", "value"), [("model", "other"), ("attention", "other"), ("seed", 7), ("epochs", 7)])
def test_record_contradicting_config_is_refused(key: str, value: object, tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    run.write_record({**run.record(), key: value})
    with pytest.raises(UserError, match=rf"{key} is (7|other) in .*record\.json, but .* in .*config\.yaml"):
        run.final_state()


@pytest.mark.parametrize(
    ("key", "value"),
    [("top1_start", 99.0), ("best_top1", 61.0), ("best_epoch", 0), ("history", [1, "x"]), ("history", HISTORY[:1])],
)
def test_record_contradicting_the_history_of_its_checkpoint_is_refused(key: str, value: object, tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    run.write_record({**run.record(), key: value})
    with pytest.raises(UserError, match=rf"{key} in .*record\.json does not match .*last\.pt; restore the file\."):
        run.final_state()


def test_a_checkpoint_from_before_the_end_is_not_final(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    state = checkpoint.load(run.last)
    checkpoint.save({**state, "position": {**state["position"], "history": HISTORY[:1]}}, run.last)
    with pytest.raises(UserError, match=r"last\.pt is not from the end of the run; restore the file\."):
        run.final_state()


def test_config_contradicting_checkpoint_is_refused(tmp_path: Path) -> None:
    run = run_with_states(tmp_path)
    run.write_record({**RECORD, "model": "net", "epochs": CONFIG.recipe.epochs})
    run.config_file.write_text(run.config_file.read_text().replace("lr: 0.1", "lr: 0.2"))
    with pytest.raises(UserError, match=r"last\.pt is not a checkpoint .* they differ in recipe\.lr; restore"):
        run.final_state()


def test_attention_keys_do_not_affect_baselines() -> None:
    fast = replace(CONFIG, recipe=replace(CONFIG.recipe, attention_lr_factor=10.0, decay_attention=False))
    assert not mismatches({"identity": result_config(CONFIG)}, fast)
    with_cbam = replace(fast, model=replace(CONFIG.model, attention="cbam"))
    plain = replace(CONFIG, model=with_cbam.model)
    expected = ["recipe.attention_lr_factor", "recipe.decay_attention"]
    assert mismatches({"identity": result_config(plain)}, with_cbam) == expected
    earlier = {key: value for key, value in result_config(plain).items() if key not in expected}
    assert not mismatches({"identity": earlier}, plain)


def test_a_rate_of_the_last_norms_is_part_of_the_label() -> None:
    config = replace(CONFIG, recipe=replace(CONFIG.recipe, last_norms_lr_factor=10.0))
    assert config.model_label == "net_none-last_norms_lr.10"


def test_the_evaluation_batch_decides_bits() -> None:
    other = replace(CONFIG, runtime=replace(CONFIG.runtime, eval_batch_size=7))
    assert mismatches({"identity": result_config(CONFIG)}, other) == ["runtime.eval_batch_size"]
    earlier = {key: value for key, value in result_config(CONFIG).items() if key != "runtime.eval_batch_size"}
    assert not mismatches({"identity": earlier}, other)


def test_weights_that_are_gone_are_not_called_damaged(tmp_path: Path) -> None:
    run = run_with_states(tmp_path)
    run.last.unlink()
    with pytest.raises(UserError, match=r"last\.pt are missing. Restore the file or run `python scripts/repair_run.py"):
        run.final_state()
    run.previous.unlink()
    with pytest.raises(
        UserError, match=r"last\.pt are missing. Restore the file, or repeat the run with a new run.dir"
    ):
        run.final_state()


@pytest.mark.parametrize("key", ["model", "optimizer", "scaler", "position"])
def test_a_checkpoint_that_lacks_a_key_is_named(key: str, tmp_path: Path) -> None:
    run = run_with_states(tmp_path)
    state = checkpoint.load(run.last)
    del state[key]
    checkpoint.save(state, run.last)
    with pytest.raises(UserError, match=rf"last\.pt lacks the key {key}\. Restore the file\."):
        run.load_state(CONFIG)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"position": {"epoch": 0, "step": "two", "history": []}}, r"step in position in .*last\.pt is 'two', not int"),
        ({"model": {"weight": 5}}, r"model in .*last\.pt does not contain only tensors\. Restore the file\."),
    ],
)
def test_a_checkpoint_of_other_values_is_named(values: dict[str, object], complaint: str, tmp_path: Path) -> None:
    run = run_with_states(tmp_path)
    checkpoint.save(checkpoint.load(run.last) | values, run.last)
    with pytest.raises(UserError, match=complaint):
        run.load_state(CONFIG)


@pytest.mark.parametrize(("job", "outcome"), [("7", Interrupted), ("8", UserError)])
def test_stale_lock_of_this_job_is_requeued(
    job: str, outcome: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFSv3 keeps the lock of a node that is down; Slurm has requeued the job."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first = RunDirectory(tmp_path / "run")
    first.start(CONFIG)
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    def is_held(*_: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr("fcntl.lockf", is_held)
    with pytest.raises(outcome, match=r"If .*, delete .*lock\."):
        RunDirectory(tmp_path / "run").start(CONFIG)
