"""Networks that a function of the user's makes."""

from pathlib import Path

import pytest
import torch

import cbam
import models

SOURCE = """
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))

def eleven(num_classes):
    return net(11)

def pair(num_classes):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()

def text(num_classes):
    return "net"

def fails(num_classes):
    raise ValueError("no such width")

number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_networks.py").write_text(SOURCE)
    (tmp_path / "broken_networks.py").write_text("import not_installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["elsewhere"])
    monkeypatch.delitem(__import__("sys").modules, "own_networks", raising=False)


def test_custom_network_from_the_working_directory() -> None:
    net = models.build("own_networks:net", "cbam", num_classes=4, image_size=12, after="1")
    assert net.training
    assert cbam.check(net) == ["1"]
    assert net(torch.rand(2, 3, 12, 12)).shape == (2, 4)
    assert models.build("own_networks:net", num_classes=4, image_size=12)(torch.rand(2, 3, 12, 12)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere.at_all:net", "names the module 'nowhere.at_all', which is neither in the working directory nor"),
        ("own_networks:other", "names 'other', which the module 'own_networks' does not have"),
        ("own_networks:number", "model.factory=own_networks:number is not callable"),
        ("own_networks:text", "returns str; it must return a torch.nn.Module"),
        ("own_networks:fails", "fails with num_classes=4: ValueError: no such width"),
        ("own_networks:eleven", r"returns \(1, 11\) for one image; it must return \(1, 4\)"),
        ("own_networks:pair", r"returns tuple for one image; it must return \(1, 4\)"),
        ("broken_networks:net", "cannot be imported: ModuleNotFoundError: No module named 'not_installed'"),
    ],
)
def test_errors_are_sentences(name: str, complaint: str) -> None:
    with pytest.raises(models.ModelError, match=complaint):
        models.build(name, num_classes=4, image_size=12)


def test_attention_needs_places() -> None:
    with pytest.raises(models.ModelError, match=r"no default place for attention in Sequential; set attention\.after"):
        models.build("own_networks:net", "cbam", num_classes=4, image_size=12)


def test_other_images_than_it_was_built_for_are_refused() -> None:
    net = models.build("own_networks:net", num_classes=4, image_size=12)
    with pytest.raises(RuntimeError):
        net(torch.rand(1, 3, 14, 14))
