"""The channels and sizes that an insertion finds are those of a forward pass."""

import torch
from torch import Tensor, nn

import cbam
from cbam import probe


class Pooling(nn.ReLU):
    """A subclass may change the shape, unlike its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, ::2, 1:]


def test_sizes_are_those_of_a_forward_pass() -> None:
    norm, *activations = probe._KEEPING_SHAPE
    keeping: list[nn.Module] = [norm(8), *(layer() for layer in activations)]
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), *keeping, nn.MaxPool2d(2), nn.ReLU(), Pooling()).eval()
    found = cbam.places(net, r"\d+", image_size=40)
    expected, x = [], torch.randn(1, 3, 40, 40)
    for name, layer in net.named_children():
        x = layer(x)
        expected.append((name, x.shape[1], tuple(x.shape[2:])))
    assert [(place.name, place.channels, place.size) for place in found] == expected
    assert expected[-1] == ("9", 4, (8, 9))


def test_the_network_keeps_its_layers() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    cbam.insert(net, "2", image_size=16)
    assert all("forward" not in vars(module) for module in net.modules())
