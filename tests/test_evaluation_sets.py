"""evaluate.py on data sets that the networks were not trained on: small trees of the published layouts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.comparison import transfer
from engine.comparison.corruptions import ALEXNET, mean_corruption_error
from engine.comparison.entry import TableEntry
from engine.config.data import DataConfig
from engine.data.evaluation_sets import CORRUPTIONS, logits_of, open_evaluation_sets
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.tasks.classification import Classification
from tests.commands import arguments, assert_one_line
from tests.conftest import Command, write_image
from tests.networks import SMALL, SMALL_CBAM
from tests.processes import Process

CUT = ["data.image_size=32", "data.resize=32", "runtime.device=cpu", "runtime.workers=0"]
SETS = {"imagenet_v2": 3, "imagenet_a": 2, "imagenet_r": 2, "imagenet_sketch": 3}


@pytest.fixture(scope="module")
def runs(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain network and one with CBAM, trained on a stand-in for ImageNet of three classes."""
    place = tmp_path_factory.mktemp("trained")
    for network in (SMALL, SMALL_CBAM):
        given = arguments(folders, *network, "model.weights=null", "data.name=imagenet", "recipe.epochs=1")
        result = Process("train.py", given, place, {}).result()
        assert result.returncode == 0, result.stderr
    return place / "runs"


def write_classes(root: Path, names: list[str]) -> None:
    for label, name in enumerate(names):
        for i in range(4):
            write_image(root / name / f"{i}.JPEG", 60 + 70 * label, seed=10 * label + i)


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Two of three classes for A and R, the last two, with the README that the archives have."""
    names = {"imagenet_v2": ["0", "1", "2"], "imagenet_sketch": ["class0", "class1", "class2"]}
    for name in SETS:
        write_classes(tmp_path / name, names.get(name, ["class1", "class2"]))
        (tmp_path / name / "README.txt").write_text("about the images")
    return tmp_path


@pytest.mark.parametrize("name", SETS)
def test_runs_are_compared_on_evaluation_sets(name: str, runs: Path, sets: Path, command: Command) -> None:
    given = [f"data={name}", f"data.root={sets / name}", f"data.total_classes={SETS[name]}", *CUT]
    done = command("evaluate.py", *given, f"run.root={runs}", "table.dir=table")
    assert done.returncode == 0, done.stderr
    markdown = (sets / "table" / "table.md").read_text()
    assert "The networks were trained on imagenet, not on these images." in markdown
    table = json.loads((sets / "table" / "table.json").read_text())
    assert (table["data"]["trained_on"], table["data"]["val_images"]) == ("imagenet", 4 * SETS[name])
    assert [row["top1_error_start"] for row in table["rows"]] == [None, None]
    assert [row["baseline"] for row in table["rows"]] == [None, 0]
    predictions = np.load(sets / "table" / f"{table['runs'][0]['raw']}.npz")
    assert predictions["ranked"].shape == (4 * SETS[name], SETS[name])
    assert command("scripts/render_table.py", "table").returncode == 0


def test_a_subset_is_told_apart_by_its_own_logits_alone() -> None:
    assert logits_of(["b", "d"], ["a", "b", "c", "d"], "set") == (1, 3)
    assert logits_of(["0", "1"], ["a", "b"], "set") is None
    assert logits_of(["a", "b"], ["a", "b"], "set") is None
    with pytest.raises(UserError, match=r"lack 1 of the 2 classes of set \(first: e\)"):
        logits_of(["b", "e"], ["a", "b"], "set")


def test_every_corruption_and_severity_is_a_row(runs: Path, tmp_path: Path, command: Command) -> None:
    """One corruption below its archive's folder, one without, and one that is not of the benchmark."""
    for folder in ("noise/gaussian_noise/1", "noise/gaussian_noise/5", "fog/3", "extra/spatter/1"):
        write_classes(tmp_path / "c" / folder, ["class0", "class1", "class2"])
    given = ["data=imagenet_c", "data.root=c", "data.total_classes=3", *CUT]
    done = command("evaluate.py", *given, f"run.root={runs}", "table.dir=table")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "table" / "corruptions.json").read_text())
    parts = [(row["corruption"], row["severity"], row["attention"]) for row in summary["rows"]]
    expected = [("gaussian_noise", 1), ("gaussian_noise", 5), ("fog", 3)]
    assert parts == [(*part, attention) for part in expected for attention in ("none", "cbam-after.1_4.0a538c")]
    assert [network["mce"] for network in summary["networks"]] == [None, None]  # not all corruptions are there
    assert (tmp_path / "table" / "corruptions.md").read_text() in done.stdout
    assert command("scripts/render_table.py", "table/fog/3").returncode == 0


def test_the_mean_corruption_error_is_relative_to_alexnets() -> None:
    def errors(factor: float) -> dict[str, float]:
        return {f"{c}/{severity}": factor * ALEXNET[c] for c in CORRUPTIONS for severity in range(1, 6)}

    assert mean_corruption_error(errors(1.0)) == pytest.approx(100)
    halved = errors(1.0) | {f"fog/{severity}": 0.5 * ALEXNET["fog"] for severity in range(1, 6)}
    assert mean_corruption_error(halved) == pytest.approx(100 * (14 + 0.5) / 15)
    assert mean_corruption_error({"fog/1": 10.0}) is None


def test_what_does_not_fit_is_one_line(runs: Path, sets: Path, folders: Path, command: Command) -> None:
    common = ["data=imagenet_a", "data.root=imagenet_a", f"run.root={runs}", *CUT]
    assert_one_line(command("evaluate.py", *common), "contains 2 class folders, not 200")
    shutil.move(sets / "imagenet_a" / "class2", sets / "imagenet_a" / "class7")
    refused = command("evaluate.py", *common, "data.total_classes=2")
    assert_one_line(refused, "The networks lack 1 of the 2 classes of imagenet_a (first: class7)")
    training = command("train.py", "model=resnet18", "data=imagenet_v2", f"data.root={folders}")
    assert_one_line(training, "run python evaluate.py data=imagenet_v2")
    shutil.move(sets / "imagenet_v2" / "2", sets / "imagenet_v2" / "3")
    numbers = ["data=imagenet_v2", "data.root=imagenet_v2", "data.total_classes=3", f"run.root={runs}", *CUT]
    assert_one_line(command("evaluate.py", *numbers), "are not named 0, 1, and so on")
    assert_one_line(command("evaluate.py", "data=imagenet_c", "data.root=imagenet_v2"), "contains no corruption")


def test_published_weights_have_imagenets_classes(sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = DataConfig(
        "imagenet_a", "class_folders", str(sets / "imagenet_a"), 2, image_size=32, trained_on="imagenet"
    )
    (data,) = open_evaluation_sets(config)
    published = TableEntry(torch.nn.Identity(), Preprocessing(32, 32), {"recorded": 1.0}, {}, "", {})
    (entry,), task = transfer.prepare([published], Classification(config), data, ["class0", "class1", "class2"])
    assert task.logits == (1, 2)
    assert entry.row["recorded"] is None
    Path("classes.txt").write_text("class2 a fish\nclass1\nclass0\n")
    config.class_list = "classes.txt"
    (_,), task = transfer.prepare(
        [replace(published, record={"class_names": [], "data_fingerprint": ""})], Classification(config), data, []
    )
    assert task.logits == (1, 0)


def test_published_weights_are_refused_for_as_many_other_classes(sets: Path) -> None:
    config = DataConfig("set", "class_folders", str(sets / "imagenet_sketch"), 3, image_size=32, trained_on="imagenet")
    (data,) = open_evaluation_sets(config)
    transfer.require_outputs_in_order(data, ["class0", "class1", "class2"])
    with pytest.raises(UserError, match=r"are not in the order .* published weights \(class1, class0, \.\.\.\)"):
        transfer.require_outputs_in_order(data, ["class1", "class0", "class2"])
    with pytest.raises(UserError, match=r"lack 1 of the 3 classes of set .*WordNet ids"):
        transfer.require_outputs_in_order(data, ["class0", "class1", "other"])


def test_numbers_are_names_or_positions_among_the_sorted_names() -> None:
    numbers = [str(number) for number in range(12)]
    as_text = sorted(numbers)  # 0, 1, 10, 11, 2, ...: a run of an earlier version
    positions = logits_of(numbers, as_text, "set")
    assert positions is not None
    assert [as_text[position] for position in positions] == numbers
    assert logits_of(numbers, numbers, "set") is None
    assert logits_of(["0", "1", "2"], ["b", "c", "a"], "set") == (2, 0, 1)
