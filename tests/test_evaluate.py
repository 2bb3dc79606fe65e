"""evaluate.py as a user runs it."""

import json
from pathlib import Path

import torch

import models
from models import pretrained
from tests.commands import arguments, assert_one_line
from tests.conftest import Command
from tests.processes import REPOSITORY


def test_evaluating_nothing_says_what_to_do(command: Command, folders: Path) -> None:
    common = ["data.name=small", "data.total_classes=3", f"data.root={folders}"]
    assert_one_line(command("evaluate.py", *common), "There is no finished run in", "train one first")
    assert_one_line(command("evaluate.py", *common, "runs=[nowhere]"), "There is no finished run in nowhere")
    assert_one_line(command("evaluate.py", *common, "runs=a,b"), "There is no finished run in a, b")
    assert_one_line(command("evaluate.py", *common, "runs=[]"), "runs=[] and published=[] leave nothing to compare")


def test_published_weights_need_no_run(command: Command, tmp_path: Path) -> None:
    """The real path of published weights, on a file of ours under the published name and a thousand class folders.

    Its digest, which cannot be the published one, is put in place of that for this process.
    """
    import torchvision

    from tests.conftest import write_image

    root = tmp_path / "imagenet"
    for label in range(1000):
        for split in ("train", "val"):
            write_image(root / split / f"n{label:08d}" / "image.JPEG", 120, seed=label, height=8, width=8)
    torch.manual_seed(0)
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    cached = tmp_path / "torch_home" / "hub" / "checkpoints" / Path(url).name
    cached.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), cached)
    arguments = [f"data.root={root}", "published=[resnet18]", "data.resize=64", "data.image_size=64"]
    assert_one_line(command("evaluate.py", *arguments), f"{cached} is not the published file")
    (tmp_path / "digests").write_text(f"{pretrained.sha256(cached)}  {cached.name}\n")
    (tmp_path / "evaluate_ours.py").write_text(
        "import pathlib, runpy, sys\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from models import pretrained\n"
        "pretrained._DIGESTS = pathlib.Path('digests')\n"
        "runpy.run_module('evaluate', run_name='__main__')\n"
    )
    done = command(str(tmp_path / "evaluate_ours.py"), *arguments)
    assert done.returncode == 0, done.stderr
    assert "as published" not in done.stdout  # which was measured at 224 pixels
    (row,) = json.loads((tmp_path / "results" / "imagenet" / "table.json").read_text())["runs"]
    assert (row["parameters"], row["attention"], row["difference"]) == (11689512, "none", None)


def test_starts_from_two_contents_of_one_file_are_not_paired(command: Command, folders: Path, tmp_path: Path) -> None:
    for seed, model in enumerate(("mobilenet_v3_small", "mobilenet_v3_small_cbam")):
        torch.manual_seed(seed)
        torch.save(models.build("mobilenet_v3_small", num_classes=3).state_dict(), tmp_path / "start.pt")
        given = arguments(folders, f"model={model}", "model.weights=start.pt", "recipe.epochs=1")
        assert command("train.py", *given).returncode == 0
    done = command("evaluate.py", *arguments(folders)[:6], "runtime.device=cpu")
    assert_one_line(done, "was trained differently from the other runs: digest of the backbone's start weights=")
