"""evaluate.py as a user runs it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models
from models import pretrained
from tests import scenes
from tests.commands import arguments, assert_one_line, replaced
from tests.conftest import Command
from tests.networks import SMALL, SMALL_CBAM, small
from tests.processes import REPOSITORY


def test_evaluating_nothing_says_what_to_do(command: Command, folders: Path) -> None:
    common = ["data.name=small", "data.total_classes=3", f"data.root={folders}"]
    assert_one_line(command("evaluate.py", *common), "There is no finished run in", "train one first")
    assert_one_line(command("evaluate.py", *common, "runs=[nowhere]"), "There is no finished run in nowhere")
    assert_one_line(command("evaluate.py", *common, "runs=a,b"), "There is no finished run in a, b")
    assert_one_line(command("evaluate.py", *common), "python train.py data=folders data.name=small")
    assert_one_line(command("evaluate.py", "data=shapes"), "(python train.py data=shapes ...)")
    assert_one_line(command("evaluate.py", *common, "runs=[]"), "runs=[] and published=[] leave nothing to compare")


def test_published_weights_need_no_run(command: Command, tmp_path: Path) -> None:
    """The real path of published weights, on a file of ours under the published name and a thousand class folders.

    Its digest, which cannot be the published one, is put in place of that for this process.
    """
    import torchvision

    from tests.conftest import write_image

    root = tmp_path / "imagenet"
    for label, name in enumerate(models.imagenet_classes()):
        for split in ("train", "val"):
            write_image(root / split / name / "image.JPEG", 120, seed=label, height=8, width=8)
    torch.manual_seed(0)
    entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    cached = _cached(entry, torchvision.models.resnet18(), tmp_path)
    arguments = [f"data.root={root}", "published=[resnet18]", "data.resize=32", "data.image_size=32"]
    assert_one_line(command("evaluate.py", *arguments), f"{cached} is not the published file")
    done = command(_evaluate_as_published(cached, tmp_path), *arguments)
    assert done.returncode == 0, done.stderr
    table = tmp_path / "results" / "imagenet" / "table.json"
    assert "of the start weights" not in table.with_suffix(".md").read_text()  # which were evaluated at 224 pixels
    (row,) = json.loads(table.read_text())["runs"]
    assert (row["parameters"], row["attention"], row["difference"]) == (11689512, "none", None)


OWN = """
from torch import nn

def net(num_classes):
    pooling = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pooling, nn.Flatten(), nn.Linear(8, num_classes))
"""


def test_a_files_weights_need_no_run(command: Command, folders: Path, tmp_path: Path) -> None:
    """A network of one's own, on validation images alone, with its preprocessing."""
    (tmp_path / "own_nets.py").write_text(OWN)
    shutil.copytree(folders / "val", tmp_path / "images" / "val")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), *(torch.nn.Identity() for _ in range(3)), torch.nn.Linear(8, 3))
    torch.save({"state_dict": {f"model.{key}": value for key, value in net.state_dict().items()}}, tmp_path / "own.pt")
    common = ["data=folders", "data.name=small", "data.root=images", "data.image_size=32", "data.resize=32"]
    arguments = [*common, "runs=[]", "published=[own_nets:net]", "weights=own.pt", "preprocessing.mean=[0.5,0.5,0.5]"]
    done = command("evaluate.py", *arguments, "runtime.workers=0")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "results" / "small" / "table.json").read_text())
    (row,) = table["runs"]
    assert (row["model"], row["parameters"], row["published"]) == ("own_nets.net", 224 + 27, None)
    assert row["source"].startswith("own.pt (sha256 ")
    assert (table["data"]["train_images"], table["data"]["val_images"]) == (0, 21)
    names, state = ["class2", "class1", "class0"], net.state_dict()
    in_order = state | {f"4.{part}": state[f"4.{part}"].flip(0) for part in ("weight", "bias")}
    torch.save({"state_dict": state, "class_names": names}, tmp_path / "named.pt")
    torch.save(in_order, tmp_path / "in_order.pt")
    ranked = [np.load(next((tmp_path / "results" / "small" / "runs").glob("*.npz")))["ranked"]]  # of own.pt
    for file in ("named", "in_order"):
        again = [f"weights={file}.pt", "runtime.workers=0", f"table.dir={file}"]
        assert command("evaluate.py", *replaced(arguments, *again)).returncode == 0
        ranked.append(np.load(next((tmp_path / file / "runs").glob("*.npz")))["ranked"])
    assert np.array_equal(ranked[1], ranked[2])
    assert not np.array_equal(ranked[0], ranked[1])
    torch.save(torch.nn.Linear(8, 2).state_dict(), tmp_path / "other.pt")
    assert_one_line(
        command("evaluate.py", *replaced(arguments, "weights=other.pt")), "The weights do not fit own_nets:net"
    )


def test_published_detectors_need_no_run(command: Command, tmp_path: Path) -> None:
    """As above, for a whole detector, whose outputs are chosen by the names of the data set's classes."""
    from torchvision.models import detection

    root = scenes.write(tmp_path / "scenes")
    arguments = ["data=coco", f"data.root={root}", "data.name=scenes", "runtime.workers=0"]
    assert_one_line(
        command("evaluate.py", *arguments, "published=[vgg16]"),
        "The published detector on vgg16 has no outputs for 2 of the 2 classes of scenes (first: red)",
    )
    for file in (root / "annotations").iterdir():
        file.write_text(file.read_text().replace('"red"', '"person"').replace('"green"', '"toothbrush"'))
    assert_one_line(
        command("evaluate.py", *arguments, "published=[resnet18]"),
        "torchvision publishes no detector on resnet18 with weights=COCO_V1; it has COCO_V1 on resnet50, vgg16, mobile",
    )
    entry = detection.SSDLite320_MobileNet_V3_Large_Weights.COCO_V1
    torch.manual_seed(0)
    net = detection.ssdlite320_mobilenet_v3_large(weights_backbone=None)
    program = _evaluate_as_published(_cached(entry, net, tmp_path), tmp_path)
    done = command(program, *arguments, "published=[mobilenet_v3_large]")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "results" / "scenes" / "table.json").read_text())["runs"]
    assert (row["detector"], row["parameters"]) == ("ssdlite320", entry.meta["num_params"])
    assert row["published"] is None  # which is that of COCO
    assert row["source"] == "torchvision COCO_V1"


def _cached(entry: Any, net: torch.nn.Module, folder: Path) -> Path:
    """Write a network's weights into the download cache as the file of a published entry."""
    file = folder / "torch_home" / "hub" / "checkpoints" / Path(entry.url).name
    file.parent.mkdir(parents=True)
    torch.save(net.state_dict(), file)
    return file


def _evaluate_as_published(weights: Path, folder: Path) -> str:
    """Write a program that runs evaluate.py and takes a file for a published one; return its path."""
    (folder / "digests").write_text(f"{pretrained.sha256(weights)}  {weights.name}\n")
    program = folder / "evaluate_ours.py"
    program.write_text(
        "import pathlib, runpy, sys\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from models import pretrained\n"
        "pretrained._DIGESTS = pathlib.Path('digests')\n"
        "runpy.run_module('evaluate', run_name='__main__')\n"
    )
    return str(program)


def test_starts_from_two_contents_of_one_file_are_not_paired(command: Command, folders: Path, tmp_path: Path) -> None:
    for seed, network in enumerate((SMALL, SMALL_CBAM)):
        torch.manual_seed(seed)
        torch.save(small(num_classes=3).state_dict(), tmp_path / "start.pt")
        given = arguments(folders, *network, "model.weights=start.pt", "recipe.epochs=1")
        assert command("train.py", *given).returncode == 0
    done = command("evaluate.py", *arguments(folders)[:6], "runtime.device=cpu")
    assert_one_line(done, "was trained differently from the other runs: digest of the backbone's start weights=")
