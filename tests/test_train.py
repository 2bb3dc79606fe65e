"""train.py as a user runs it, and the table of what it trained."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import models
from tests.commands import arguments, assert_one_line, replaced
from tests.conftest import Command
from tests.networks import narrow_classifiers
from tests.processes import Process

NETWORK = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def pretrained_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of the network for three classes, as if downloaded."""
    file = tmp_path_factory.mktemp("pretrained") / f"{NETWORK}.pt"
    torch.manual_seed(5)
    torch.save(models.build(NETWORK, num_classes=3).state_dict(), file)
    return file


def check_record(record: dict[str, object], run: Path) -> None:
    assert record["status"] == "finished"
    assert (record["model"], record["attention"], record["seed"], record["epochs"]) == (NETWORK, "cbam", 51, 2)
    assert len(str(record["weights_sha256"])) == len(str(record["data_fingerprint"])) == 64
    assert {"top1_start", "top1", "top5", "code_revision", "code_clean", "packages", "device"} <= record.keys()
    predictions = np.load(run / "predictions.npz")
    assert 100 * (predictions["ranked"][:, 0] == predictions["labels"]).mean() == pytest.approx(record["top1"])
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["attention"] == "cbam"
    assert {"last.pt", "previous.pt", "best.pt"} == {file.name for file in (run / "checkpoint").iterdir()}
    assert "epoch 2/2" in (run / "log.txt").read_text()


def corrupt_one_prediction(path: Path) -> None:
    arrays = dict(np.load(path))
    arrays["ranked"][3, 0] = (arrays["ranked"][3, 0] + 1) % 3
    np.savez_compressed(path, **arrays)


def check_curves(directory: Path) -> None:
    events = EventAccumulator(str(directory)).Reload()
    scalars = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["accuracy/top1_val"] == scalars["loss/val"] == [0, 48, 96]
    assert scalars["loss/train"] == scalars["accuracy/top1_train"] == [48, 96]
    assert not any("top5" in tag for tag in scalars)  # always 100% of three classes
    assert scalars["speed/images_per_second"] == scalars["speed/data_wait"] == [48, 96]
    assert scalars["lr"] == scalars["loss/step"] == [16, 32, 48, 64, 80, 96]


def check_table(directory: Path, printed: str, records: list[dict[str, object]]) -> None:
    assert re.findall(rf"^{NETWORK}  (\w+) ", printed, re.MULTILINE) == ["none", "cbam"]
    assert (directory / "table.md").read_text().count(f"| {NETWORK} |") == 2
    assert r"\toprule" in (directory / "table.tex").read_text()
    rows = json.loads((directory / "table.json").read_text())["runs"]
    assert [row["attention"] for row in rows] == ["none", "cbam"]
    for row, record in zip(rows, records, strict=True):
        assert row["top1_error"] == pytest.approx(100 - record["top1"])
        assert row["top1_error_start"] == pytest.approx(100 - record["top1_start"])
        assert json.loads((directory / f"{row['raw']}.json").read_text()) == record
        assert len(np.load(directory / f"{row['raw']}.npz")["labels"]) == 21
    assert rows[0]["difference"] is None
    assert rows[1]["difference"] == pytest.approx(rows[1]["top1_error"] - rows[0]["top1_error"])
    assert rows[1]["parameters"] > rows[0]["parameters"]
    with (directory / "table.csv").open() as file:
        assert [row["attention"] for row in csv.DictReader(file)] == ["none", "cbam"]


def test_the_main_job(command: Command, folders: Path, pretrained_file: Path, tmp_path: Path) -> None:
    """Fine-tune without and with CBAM from the same weights, print the table, start the same again, change a key."""
    for model in (NETWORK, f"{NETWORK}_cbam"):
        done = command("train.py", f"model={model}", f"model.weights={pretrained_file}", *arguments(folders))
        assert done.returncode == 0, done.stderr
        assert "epoch 2/2; train loss" in done.stdout
        assert done.stderr == ""
        assert f"Compare it: {shlex.join(['python', 'evaluate.py', *arguments(folders)[:6]])}\n" in done.stdout
    run = tmp_path / "runs" / "small" / f"{NETWORK}_cbam" / "seed51"
    records = [
        json.loads((run.parent.parent / m / "seed51" / "record.json").read_text()) for m in (NETWORK, run.parent.name)
    ]
    check_record(records[1], run)
    assert records[0]["top1_start"] == records[1]["top1_start"]
    assert records[0]["data_fingerprint"] == records[1]["data_fingerprint"]
    check_curves(run)

    evaluated = command("evaluate.py", *arguments(folders)[:6], "runtime.device=cpu", "table.dir=table")
    assert evaluated.returncode == 0, evaluated.stderr
    check_table(tmp_path / "table", evaluated.stdout, records)

    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("lr: 0.01", "lr: 0.02"))
    edited = command("evaluate.py", *arguments(folders)[:6], "runtime.device=cpu", "table.dir=refused")
    assert_one_line(edited, "last.pt is not a checkpoint of the run in", "they differ in recipe.lr")
    (run / "config.yaml").write_text(config)
    lacking = {key: value for key, value in records[1].items() if key != "top1_start"}
    (run / "record.json").write_text(json.dumps(lacking))
    edited = command("evaluate.py", *arguments(folders)[:6], "runtime.device=cpu", "table.dir=refused")
    assert_one_line(edited, "record.json lacks the key top1_start. Restore the file.")
    (run / "record.json").write_text(json.dumps(records[1]))

    corrupt_one_prediction(run / "predictions.npz")
    refused = command("evaluate.py", *arguments(folders)[:6], "runtime.device=cpu", "table.dir=refused")
    assert_one_line(refused, f"runs/small/{NETWORK}_cbam/seed51/predictions.npz do not match their recorded digest")
    for run in json.loads((tmp_path / "refused" / "table.json").read_text())["runs"]:
        assert run["attention"] == "none"  # the table has the other run alone

    again = command("train.py", f"model={NETWORK}_cbam", f"model.weights={pretrained_file}", *arguments(folders))
    assert again.returncode == 0
    assert "is finished" in again.stdout
    other = command(
        "train.py", f"model={NETWORK}_cbam", f"model.weights={pretrained_file}", *arguments(folders, "recipe.lr=0.5")
    )
    assert_one_line(other, "contains a run that differs in recipe.lr (0.01 there, 0.5 here); set run.dir or run.root")


def test_killed_run_resumes_on_the_same_images_only(
    command: Command, folders: Path, pretrained_file: Path, tmp_path: Path
) -> None:
    root, weights = tmp_path / "images", tmp_path / "start.pt"
    shutil.copytree(folders, root)
    shutil.copy(pretrained_file, weights)
    common = arguments(root, f"model={NETWORK}_cbam", f"model.weights={weights}", "recipe.epochs=3")
    assert command("train.py", *common, "run.dir=straight").returncode == 0
    killed = Process("train.py", [*common, "run.dir=killed"], tmp_path, {})
    while killed.wait(0.05) is None:
        if "epoch 1/3; " in killed.output.read_text():
            os.kill(killed.pid, signal.SIGKILL)
    assert killed.result().returncode == -signal.SIGKILL
    weights.unlink()  # a run under way holds its weights itself

    changed = root / "val" / "class0" / "0.JPEG"
    changed.write_bytes(changed.read_bytes() + b"\0")
    assert_one_line(
        command("train.py", *common, "run.dir=killed"), "was started with images that differ from those under data.root"
    )
    shutil.copytree(folders, root, dirs_exist_ok=True)

    continued = command("train.py", *common, "run.dir=killed")
    assert continued.returncode == 0, continued.stderr
    assert "Resuming after" in continued.stdout
    straight, resumed = (json.loads((tmp_path / run / "record.json").read_text()) for run in ("straight", "killed"))
    for key in ("weights_sha256", "history", "start_weights_sha256", "predictions_sha256"):
        assert resumed[key] == straight[key], key


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["model=nope"], "There is no model=nope. Run `python scripts/list_models.py` for a list."),
        (["model=resnet50_cmab"], "model=resnet50_cmab: resnet50 has no attention 'cmab'; choose one of cbam, se, "),
        (["model.name=nope"], "Unknown model 'nope'; choose one of resnet18"),
        (["data.root=/nowhere"], "There is no data set 'imagenet' at /nowhere; set data.root"),
        (["recipe.epochs=-1"], "recipe.epochs=-1 is out of range; it must be at least 1"),
        (["seed=51", "seed=52"], "The key seed is given twice: seed=51 and seed=52. Leave one of them out."),
        (["recipe.epochs=many"], "recipe.epochs=many: Value 'many' of type 'str' could not be converted"),
        (["recipe.epoch=3"], "'epoch' not in 'RecipeConfig' (perhaps recipe.epochs; known keys: name, epochs"),
        (["run.dir=a (b)"], "run.dir=a (b) cannot be parsed; quote a value with special characters twice"),
        (["model=resnet50_cbam", "attention=none"], "model=resnet50_cbam already selects an attention module"),
        (["+recipe.epoch=3"], "There is no key recipe.epoch; known keys: accumulation_steps, attention_lr_factor"),
        (["recipe=null"], "do not form a valid configuration"),
        (["recipe.lr=${nothing}"], "nothing"),
        (["recipe.milestones=[-1,8]"], "recipe.milestones=-1 is out of range; it must be at least 1"),
        (["recipe.lr=inf"], "recipe.lr=inf is out of range"),
        (["recipe.batch_size=4", "recipe.accumulation_steps=4"], "batch normalization needs at least 2 images"),
        (["data.name=../elsewhere"], "is not a valid folder name"),
        (["run.root=''"], "run.root is empty"),
        (["run.dir=''"], "run.dir is empty"),
        (["model=vgg11", "model.weights=null", "recipe.batch_size=8"], "does not accept images of 31 pixels"),
        (["recipe.schedule=linear"], "recipe.schedule=linear is unknown; choose one of cosine, step"),
        ([], "Weights IMAGENET1K_V1 of resnet50 are not in"),
        (["model.weights=nowhere.pt"], "neither a file nor published for resnet50; published weights:"),
        (["model=resnet18_cbam", "model.weights=null", "attention.kernel_size=4"], "kernel_size must be odd"),
        (["runtime.device=cuda", "model.weights=null"], "torch sees no CUDA device; set"),
        (["run.dir=/proc/run", "model.weights=null", "recipe.batch_size=8"], "/proc/run cannot be written"),
        ([f"run.dir={'x' * 300}"], "xxx cannot be read (File name too long); set run.dir or run.root to a writable"),
    ],
)  # fmt: skip
def test_user_errors_are_one_line(
    given: list[str], complaint: str, command: Command, folders: Path, tmp_path: Path
) -> None:
    common = [f"data.root={folders}", "data.total_classes=3", "data.image_size=31"]
    done = command("train.py", *replaced(common, *given), prepare=narrow_classifiers)
    assert_one_line(done, complaint)
    assert not (tmp_path / "runs").exists()


def test_absent_imagenet_says_where_it_looked(command: Command, tmp_path: Path) -> None:
    done = command("train.py", "model=resnet50_cbam")
    assert_one_line(done, str(tmp_path / "data" / "imagenet"), "data.root", "data=shapes")


def fill_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def test_a_run_ends_well_though_its_output_cannot_be_written(command: Command, folders: Path, tmp_path: Path) -> None:
    given = arguments(folders, "model=mobilenet_v3_small", "model.weights=null", "recipe.epochs=1", "run.dir=run")
    done = command("train.py", *given, prepare=fill_stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Finished" in (tmp_path / "run" / "log.txt").read_text()
