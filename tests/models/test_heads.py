"""Output layers: found, required and initialized."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import models
from models import heads


class Attribute(nn.Module):
    """A head among other linear layers, of which one is registered after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 4)
        self.projection = nn.Linear(8, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.relu(self.projection(self.stem(images))))


class Scaled(Attribute):
    """A network whose output no single layer produces."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images)


def last_in_sequence() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))


@pytest.mark.parametrize(("net", "head"), [(Attribute, ("head",)), (Scaled, ()), (last_in_sequence, ("1",))])
def test_the_layer_that_produces_the_output_is_the_head(net: Callable[[], nn.Module], head: tuple[str, ...]) -> None:
    built = net().train()
    assert heads.find(built, 16) == head
    assert built.training


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v3_small", "squeezenet1_1", "googlenet"])
def test_a_new_head_starts_at_the_loss_of_chance(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"init_weights": True} if name == "googlenet" else {}
    torch.save(torchvision.models.get_model(name, weights=None, **options).state_dict(), tmp_path / "weights.pt")
    net = models.build(name, weights=str(tmp_path / "weights.pt"), num_classes=6).eval()
    report = models.start_report(net)
    assert report is not None
    assert report.new_head_std == heads.STD
    for head in report.new_head:
        layer = net.get_submodule(head)
        assert 0.8 * heads.STD < layer.weight.std() < 1.2 * heads.STD
        assert not layer.bias.any()
    with torch.inference_mode():
        loss = F.cross_entropy(net(torch.randn(4, 3, 64, 64)), torch.arange(4))
    assert abs(loss - math.log(6)) < 0.1


def test_the_head_is_the_same_with_attention(tmp_path: Path) -> None:
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), tmp_path / "weights.pt")
    built = []
    for name in ("mobilenet_v3_small", "mobilenet_v3_small_cbam"):
        torch.manual_seed(51)
        built.append(models.plain_state(models.build(name, weights=str(tmp_path / "weights.pt"), num_classes=6)))
    assert all(torch.equal(built[1][key], value) for key, value in built[0].items())


SOURCE = """
from torch import nn
def net(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, num_classes),
    )
def convolution(num_classes):
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture
def own_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "networks_with_heads.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_custom_weights_of_other_classes_load(own_networks: Path) -> None:
    name, file = "networks_with_heads:net", str(own_networks / "two.pt")
    torch.save(models.build(name, num_classes=2, image_size=32).state_dict(), file)
    net = models.build(name, weights=file, num_classes=3, image_size=32)
    assert models.parts(net, name, image_size=32)["head"] == ["5"]
    assert net[5].weight.shape == (3, 16)


def test_a_head_that_is_not_found_is_named(own_networks: Path) -> None:
    name, file = "networks_with_heads:convolution", str(own_networks / "two.pt")
    net = models.build(name, num_classes=2, image_size=32)
    assert models.parts(net, name, image_size=32)["head"] == []
    torch.save(net.state_dict(), file)
    with pytest.raises(models.ModelError, match=r"reshaped: 1\.bias, 1\.weight"):
        models.build(name, weights=file, num_classes=3, image_size=32)
    net = models.build(name, weights=file, num_classes=3, image_size=32, head="1")
    assert models.parts(net, name, head="1")["head"] == ["1"]
    with pytest.raises(models.ModelError, match=r"model\.head=2 is not a linear or convolutional layer of Sequential"):
        models.build(name, num_classes=3, image_size=32, head="2")
    with pytest.raises(models.ModelError, match=r"model\.head=0 has 16 outputs; the head has one for each of the 3"):
        models.build(name, num_classes=3, image_size=32, head="0")
