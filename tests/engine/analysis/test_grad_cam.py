"""Grad-CAM and gates of networks whose evidence is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.io import decode_image

import models
from engine.analysis import gate_stats, grad_cam
from engine.data.transforms import Preprocessing
from tests.commands import arguments, assert_one_line
from tests.conftest import Command

NETWORK = "mobilenet_v3_small"
WAY = Preprocessing(16, 16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Colors(nn.Module):
    """A network whose logits are the mean red and the mean green; its last map is the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images * self.scale).mean(dim=(2, 3))[:, :2]


def images() -> Tensor:
    """Return an image with red on the left, half as much on the right, and green at the bottom."""
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    image[0, 0, :, :8], image[0, 0, :, 8:] = 200, 100
    image[0, 1, 8:] = 50
    return image


@pytest.mark.parametrize(
    ("target", "expected"),
    [(0, np.repeat([1.0, 0.5], 8)[None].repeat(16, 0)), (1, np.repeat([0.0, 1.0], 8)[:, None].repeat(16, 1))],
)
def test_grad_cam_finds_the_evidence(target: int, expected: np.ndarray) -> None:
    maps = grad_cam.compute_maps(Colors(), {}, images(), torch.tensor([target]), WAY)
    np.testing.assert_allclose(maps.cam[0], expected, atol=1e-6)
    assert maps.predicted.tolist() == [0]
    assert maps.gates == {}


def test_looking_leaves_the_network_as_it_is() -> None:
    net = models.build("resnet18_cbam", num_classes=3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    maps = grad_cam.compute_maps(
        net, models.gates(net), torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.tensor([0, 1]), WAY
    )
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert list(maps.gates) == [f"layer{stage}.1.bn2 spatial" for stage in (1, 2, 3, 4)]  # the last of each resolution
    assert all(gate.shape == (2, 64, 64) for gate in maps.gates.values())


@pytest.mark.parametrize(
    ("name", "count", "shapes"),
    [
        ("resnet18_cbam", 16, {"layer4.1.bn2 channel": (2, 512, 1, 1), "layer4.1.bn2 spatial": (2, 1, 2, 2)}),
        ("resnet18_se", 8, {"layer4.1.bn2 channel": (2, 512, 1, 1)}),
        ("resnet18", 0, {}),
    ],
)
def test_gates_are_found_by_their_place(name: str, count: int, shapes: dict[str, tuple[int, ...]]) -> None:
    net = models.build(name, num_classes=3)
    with gate_stats.record_gates(models.gates(net)) as seen:
        net(torch.randn(2, 3, 64, 64))
        net(torch.randn(5, 3, 64, 64))
    assert len(seen) == count
    for place, shape in shapes.items():
        assert seen[place].shape == shape  # first batch
    assert all((gate > 0).all() and (gate < 1).all() for gate in seen.values())


def test_two_runs_side_by_side(command: Command, folders: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for model in (NETWORK, f"{NETWORK}_cbam"):
        given = arguments(folders, f"model={model}", "model.weights=null", "recipe.epochs=1", f"run.dir={model}")
        assert command("train.py", *given).returncode == 0
    image = next((folders / "val").rglob("*.JPEG"))
    common = [f"image={image}", "file=attention.png"]
    done = command("scripts/show_attention.py", f"runs={NETWORK},{NETWORK}_cbam", "target=class1", *common)
    assert done.returncode == 0, done.stderr
    picture = decode_image(str(tmp_path / "attention.png"))
    assert picture.shape[2] > picture.shape[1]
    assert command("scripts/show_attention.py", f"runs={NETWORK}", "target=predicted", *common).returncode == 0
    larger = command("scripts/show_attention.py", f"runs={NETWORK},{NETWORK}_cbam", "target=class1", "size=96", *common)
    assert larger.returncode == 0, larger.stderr
    assert decode_image(str(tmp_path / "attention.png")).shape[2] > picture.shape[2]  # a fourth gate, of 3x3
    for size in ("x", "31", "1000000000"):
        refused = command("scripts/show_attention.py", f"runs={NETWORK}", "target=predicted", f"size={size}", *common)
        assert_one_line(refused, f"size={size} is not a number of pixels between 32 and 2048.")
    unknown = command("scripts/show_attention.py", f"runs={NETWORK}", "target=predicted", "sise=96", *common)
    assert_one_line(unknown, "file=FILE [size=SIZE]; got")
    twice = command("scripts/show_attention.py", f"runs={NETWORK},{NETWORK}", "target=predicted", *common)
    assert_one_line(twice, "Two of the runs are the same network with the same seed")
    wrong = command("scripts/show_attention.py", f"runs={NETWORK}", "target=class7", *common)
    assert_one_line(wrong, "target=class7 is not a class; use predicted, class0, class1, class2")
    absent = command("scripts/show_attention.py", f"runs={NETWORK}", "target=class1", "image=no.png", "file=x.png")
    assert_one_line(absent, "There is no file no.png; set image to an image file.")
    assert_one_line(
        command("scripts/show_attention.py", "runs=nowhere", "target=predicted", *common), "no finished run"
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet18_cbam"])
def test_frozen_networks_have_the_same_maps(name: str) -> None:
    torch.manual_seed(0)
    net = models.build(name, num_classes=3)
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    trainable = grad_cam.compute_maps(net, models.gates(net), pixels, torch.tensor([0, 1]), WAY)
    net.requires_grad_(False)
    frozen = grad_cam.compute_maps(net, models.gates(net), pixels, torch.tensor([0, 1]), WAY)
    assert trainable.cam.max() == 1
    np.testing.assert_array_equal(frozen.cam, trainable.cam)


def test_a_network_that_changes_its_input_has_maps() -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), Colors())
    assert grad_cam.compute_maps(net, {}, images(), torch.tensor([0]), WAY).cam.max() == 1


@pytest.mark.parametrize(("spread", "half"), [(0.04, 0.04), (0.001, 0.01)])
def test_the_figure_marks_predictions_and_shows_small_differences_of_gates(spread: float, half: float) -> None:
    pytest.importorskip("matplotlib")
    gate = np.full((2, 16, 16), 0.5, np.float32)
    gate[1, 0, 0] += spread
    cam, probability = np.zeros((2, 16, 16), np.float32), np.array([0.7, 0.2], np.float32)
    maps = grad_cam.AttentionMaps(cam, {"layer1": gate}, np.array([0, 0]), probability)
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    figure = grad_cam.draw(pixels, [0, 1], ["cat", "dog"], {"net": maps}, labeled=True, title="run, epoch 3")
    titles = [panel.get_title() for panel in figure.axes]
    assert sum("net: cat (correct)" in title for title in titles) == 1
    assert sum("net: cat (wrong)" in title for title in titles) == 1
    assert figure.get_suptitle() == "run, epoch 3"
    assert [panel.get_ylabel() for panel in figure.axes][-2:] == ["Grad-CAM, relative to its maximum", "spatial gate"]
    shown = [panel.images[-1].norm for panel in figure.axes if panel.get_title().startswith("layer1")]
    ranges = [(norm.vmin, norm.vmax) for norm in shown]
    assert ranges == [pytest.approx((0.5 - half, 0.5 + half))] * 2
