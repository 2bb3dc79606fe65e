"""Networks and places of the user's choice, from train.py to the table of evaluate.py."""

import json
from pathlib import Path

import pytest

from tests.commands import arguments, assert_one_line
from tests.conftest import Command

NETWORK = """
from torch import nn

def net(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes)
    )

class Gate(nn.Module):
    def __init__(self, channels, width=4):
        super().__init__()
        layers = nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, channels), nn.Sigmoid()
        self.gate = nn.Sequential(*layers)

    def forward(self, x):
        return x * self.gate(x.mean((2, 3)))[..., None, None]
"""


def train(command: Command, folders: Path, *given: str) -> None:
    done = command("train.py", *arguments(folders, "recipe.epochs=1", "runtime.workers=0", *given))
    assert done.returncode == 0, done.stderr


def rows(command: Command, folders: Path, directory: Path) -> list[dict[str, object]]:
    done = command("evaluate.py", *arguments(folders)[:6], "runtime.device=cpu", "runtime.workers=0", "table.dir=table")
    assert done.returncode == 0, done.stderr
    table: list[dict[str, object]] = json.loads((directory / "table" / "table.json").read_text())["runs"]
    return table


def record(directory: Path, model: str) -> dict[str, object]:
    values: dict[str, object] = json.loads((directory / "runs/small" / model / "seed51" / "record.json").read_text())
    return values


def test_a_network_of_the_users_own(command: Command, folders: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "networks.py").write_text(NETWORK)
    given = ("model=custom", "model.factory=own.networks:net")
    assert_one_line(command("train.py", *arguments(folders, *given, "attention=cbam")), "set attention.after=REGEX")
    train(command, folders, *given)
    train(command, folders, *given, "attention=cbam", "attention.after=2")
    own = ("attention=custom", "attention.factory=own.networks:Gate", "attention.options.width=2", "attention.after=2")
    train(command, folders, *given, *own)
    assert "Nothing to do" in command("train.py", *arguments(folders, "recipe.epochs=1", *given, *own)).stdout
    assert record(tmp_path, "own.networks.net_cbam-after.2")["factory"] == "own.networks:net"
    found = rows(command, folders, tmp_path)
    assert [(row["model"], row["attention"], row["baseline"]) for row in found] == [
        ("own.networks.net", "none", None),
        ("own.networks.net", "cbam-after.2", 0),
        ("own.networks.net", "own.networks.Gate-width.2-after.2", 0),
    ]


def test_places_are_part_of_a_runs_name_and_record(command: Command, folders: Path, tmp_path: Path) -> None:
    common = ("model=mobilenet_v3_small_cbam", "model.weights=null")
    train(command, folders, *common, 'attention.after="features.[34].block"')
    train(command, folders, *common, 'attention.after="features.[^34].block"')
    labels = sorted(path.name for path in (tmp_path / "runs" / "small").iterdir())
    assert len(labels) == 2
    assert all(label.startswith("mobilenet_v3_small_cbam-after.features.") for label in labels)
    assert {record(tmp_path, label)["attention_after"] for label in labels} == {
        "features.[34].block",
        "features.[^34].block",
    }
    assert sorted(str(row["attention"]) for row in rows(command, folders, tmp_path)) == [
        label.removeprefix("mobilenet_v3_small_") for label in labels
    ]


def test_a_network_of_timm(command: Command, folders: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    given = ("model=timm", "model.name=test_resnet", "model.weights=null", "attention=cbam")
    assert_one_line(command("train.py", *arguments(folders, *given)), "set attention.after=REGEX")
    train(command, folders, *given, r"attention.after=layer\d.\d+.bn2")
    (row,) = rows(command, folders, tmp_path)
    assert row["model"] == "timm.test_resnet"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["model=custom"], "model=custom needs model.factory=package.module:function; got none"),
        (["model=custom", "model.factory=nowhere:net"], "names the module 'nowhere', which is neither"),
        (["model=resnet18", "model.factory=a:b"], "model.factory=a:b needs model=custom"),
        (["model=timm"], "Missing value for model.name"),
        (["attention=custom"], "attention=custom needs attention.factory=package.module:Class; got none"),
        (
            ["attention=se", "attention.order=parallel"],
            "attention.order is not an option of attention=se",
        ),
        (["model=resnet18_eca", "attention=none"], "model=resnet18_eca already selects an attention module"),
        (["attention=etca"], "There is no attention=etca; perhaps attention=eca"),
        (["model=inception_v3", "model.weights=null"], "Set data.image_size=299"),
    ],
)
def test_errors_are_one_line(given: list[str], complaint: str, command: Command, folders: Path) -> None:
    assert_one_line(command("train.py", *arguments(folders, *given)), complaint)
