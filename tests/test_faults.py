"""What can go wrong on the way: each fault ends in one sentence or a named recovery, and nothing earlier is lost."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from engine import checkpoint, cli
from engine.config import DataConfig, ModelConfig, RecipeConfig, TrainConfig
from engine.data import transforms
from engine.data.datasets import open_dataset
from engine.data.loader import TrainLoader
from engine.distributed import ProcessGroup
from engine.errors import UserError
from engine.run_dir import RunDirectory, matches_config, result_config
from engine.tasks.classification import TrainSamples
from tests.conftest import Command
from tests.networks import narrow_classifiers
from tests.processes import REPOSITORY
from tests.test_commands import arguments, assert_one_line
from tests.test_training import small_net, trainer

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


class TouchesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


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
        "from engine.run import Run; from tests.test_faults import CONFIG; from pathlib import Path; import sys\n"
        "try: Run(Path(sys.argv[1])).start(CONFIG)\n"
        "except Exception as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert f"is being written by process {os.getpid()} on " in second.stdout, second.stderr


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "from engine.run import Run; from tests.test_faults import CONFIG; from pathlib import Path\n"
        "import os, signal, sys; Run(Path(sys.argv[1])).start(CONFIG)\n"
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


def test_a_full_disk_leaves_the_last_checkpoint_and_no_rubbish(folders: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the checkpoint does not fit."""
    common = arguments(folders, "model=resnet18", "model.weights=null", "run.dir=run")
    train = " ".join([sys.executable, str(REPOSITORY / "train.py"), *common])
    full = subprocess.run(
        ["bash", "-c", f"ulimit -f 20000; exec {train}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert_one_line(full, "last.pt cannot be written", "Make room, then start the same command")
    assert list((tmp_path / "run" / "checkpoint").iterdir()) == []
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "running"


def test_a_killed_worker_is_named(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transforms, "decode", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    data = open_dataset(DataConfig("test", "folders", str(folders), 3, None, image_size=32, resize=32))
    loader = TrainLoader(TrainSamples(data.train, 51, 32, 0.5), 8, 51, 1, torch.device("cpu"), ProcessGroup())
    with pytest.raises(SystemExit) as ended, cli.one_line_errors():
        list(loader.epoch(0))
    assert ended.value.code == 2
    assert re.fullmatch(
        r"error: A process that reads images died \(.*\).*; set runtime\.workers lower.*\n", capsys.readouterr().err
    )


def test_a_fault_of_a_worker_is_not_taken_for_its_death(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(transforms, "decode", fail)
    data = open_dataset(DataConfig("test", "folders", str(folders), 3, None, image_size=32, resize=32))
    loader = TrainLoader(TrainSamples(data.train, 51, 32, 0.5), 8, 51, 1, torch.device("cpu"), ProcessGroup())
    with pytest.raises(RuntimeError, match="a fault"), cli.one_line_errors():
        list(loader.epoch(0))


def test_too_little_device_memory_says_what_was_tried_and_what_to_set(folders: Path) -> None:
    greedy = trainer(folders, small_net(), accumulation_steps=2)

    def forward(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    greedy.forward = forward
    with pytest.raises(UserError, match=r"too little memory for 4 images at a time .*set recipe\.accumulate higher"):
        list(greedy.steps())


def run_out_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


def run_out_on_the_cpu() -> None:
    torch.empty(2**55)


@pytest.mark.parametrize("run_out", [run_out_on_a_gpu, run_out_on_the_cpu])
def test_too_little_memory_elsewhere_is_one_line(
    run_out: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, cli.one_line_errors():
        run_out()
    assert ended.value.code == 2
    assert re.fullmatch(
        r"error: There is too little memory \(.*\)\. Set runtime\.eval_batch_size .*\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize("ending", ["weight", "running_var"])
def test_a_state_that_is_not_finite_is_not_saved(ending: str, folders: Path) -> None:
    healthy = trainer(folders, nn.Sequential(nn.BatchNorm2d(3), small_net()))
    next(healthy.steps())
    healthy.require_finite()
    name = next(name for name in healthy.model.state_dict() if name.endswith(ending))
    healthy.model.state_dict()[name][0] = torch.inf
    with pytest.raises(UserError, match=r"A weight or running statistic is not finite after step 0\."):
        healthy.require_finite()


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    command: Command, folders: Path, tmp_path: Path
) -> None:
    common = [
        "model=mobilenet_v3_small",
        "model.weights=null",
        "run.dir=run",
        "recipe.lr=1e20",
        "recipe.warmup_epochs=0",
    ]
    done = command("train.py", *arguments(folders, *common, "run.checkpoint_every_steps=1"))
    assert_one_line(done, "The loss is nan at step", "learning rate", "training images")
    weights = checkpoint.load(tmp_path / "run" / "checkpoint" / "last.pt")["model"]
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("form", ["grey.jpeg", "cmyk.jpeg", "png-named.JPEG", "palette.png", "transparent.png"])
def test_every_kind_of_image_decodes_as_pillow_decodes_it(form: str, tmp_path: Path) -> None:
    gradient = np.stack(np.meshgrid(np.linspace(20, 235, 64), np.linspace(235, 20, 48)), axis=-1)
    rgb = np.dstack([gradient, gradient.mean(axis=2)]).astype(np.uint8)
    image = PIL.Image.fromarray(rgb)
    path = tmp_path / form
    match form:
        case "grey.jpeg":
            image.convert("L").save(path)
        case "cmyk.jpeg":
            image.convert("CMYK").save(path, quality=95)
        case "png-named.JPEG":
            image.save(path, format="PNG")
        case "palette.png":
            image.quantize(64).save(path)
        case "transparent.png":
            image.putalpha(255)
            image.save(path)
    expected = torch.from_numpy(np.asarray(PIL.Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
    difference = (transforms.decode(str(path)).int() - expected.int()).abs()
    assert difference.max() <= 2


def test_an_unreadable_image_in_evaluation_is_an_error_and_never_a_substitute(
    command: Command, folders: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(folders, root)
    image = root / "val" / "class1" / "3.JPEG"
    image.write_bytes(image.read_bytes()[:300])
    common = arguments(root, "model=mobilenet_v3_small", "model.weights=null", "run.dir=run")
    assert_one_line(command("train.py", *common), f"The image {image} cannot be decoded")


@pytest.mark.parametrize("family", ["resnet18_cbam", "vgg11_bn_cbam", "mobilenet_v3_small_cbam"])
def test_two_runs_of_one_command_give_the_same_bits(
    family: str, command: Command, folders: Path, tmp_path: Path
) -> None:
    common = arguments(folders, f"model={family}", "model.weights=null", "recipe.epochs=2")
    records = []
    for run, reading in (("a", ["workers=0"]), ("b", ["workers=2", "cache_images=true"])):
        given = [*common, f"run.dir={run}", *(f"runtime.{key}" for key in reading)]
        done = command("train.py", *given, prepare=narrow_classifiers)
        assert done.returncode == 0, done.stderr
        records.append(json.loads((tmp_path / run / "record.json").read_text()))
    for key in ("weights_sha256", "history", "top1", "top5", "val_loss", "start_weights_sha256"):
        assert records[0][key] == records[1][key], key


def test_a_run_verifies_against_its_record_and_a_changed_one_does_not(
    command: Command, folders: Path, tmp_path: Path
) -> None:
    common = arguments(folders, "model=mobilenet_v3_small", "model.weights=null", "run.dir=run", "recipe.epochs=1")
    assert command("train.py", *common).returncode == 0
    verified = command("scripts/verify_run.py", "run", "--rerun")
    assert verified.returncode == 0, verified.stderr
    assert "agree with the record" in verified.stdout
    assert "repeated to the same bits" in verified.stdout
    state = torch.load(tmp_path / "run" / "checkpoint" / "last.pt", weights_only=True)
    state["model"]["classifier.3.bias"][0] += 1
    torch.save(state, tmp_path / "run" / "checkpoint" / "last.pt")
    assert_one_line(command("scripts/verify_run.py", "run"), "last.pt are not those that run/record.json tells of")


def test_digests_tell_equal_data_from_different_data(command: Command, folders: Path) -> None:
    common = arguments(folders, "model.weights=null")[:-3]
    digests = [
        command("scripts/hash_batches.py", *common, *more).stdout.splitlines()
        for more in (["runtime.workers=0"], ["runtime.workers=2", "model=vgg11_cbam"], ["seed=52", "runtime.workers=0"])
    ]
    assert len(digests[0]) == 3
    assert digests[0] == digests[1]
    assert digests[0][0] == digests[2][0]  # the same files
    assert digests[0][1:] != digests[2][1:]


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"status": "finished"}', "no json"])
def test_a_damaged_record_is_an_error_that_says_what_to_do(content: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.start(CONFIG)
    run.record_file.write_text(content)
    with pytest.raises(UserError, match=r"record\.json (is damaged|lacks results); restore it, or delete"):
        _ = run.finished


@pytest.mark.parametrize("content", [b"text", b"\x80", b"", pickle.dumps([1], protocol=5)])
def test_whatever_is_in_a_checkpoint_file_the_error_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_file_names_of_any_bytes_are_read(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff \xe9\n.jpeg")  # noqa: PTH118 (bytes)
    PIL.Image.new("RGB", (8, 8), (200, 10, 10)).save(os.fsdecode(path))
    assert transforms.decode(os.fsdecode(path)).shape == (3, 8, 8)
