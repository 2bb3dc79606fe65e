"""Logits of exported networks."""

from pathlib import Path

import pytest
import torch
from torch import nn

import cbam
import models
from engine.analysis.export import export
from engine.errors import UserError
from tests.commands import arguments, assert_one_line
from tests.conftest import Command
from tests.networks import CLASSES, SMALL_CBAM, randomize_norms

pytestmark = pytest.mark.usefixtures("narrow_classifiers")


ONE_OF_EACH_FAMILY = ["resnet18", "vgg11_bn", "mobilenet_v1_a07", "mobilenet_v2", "mobilenet_v3_small"]


def with_cbam(name: str) -> nn.Module:
    """The first layers of a network with CBAM in two places: an export takes half a second for each place and block.

    The later layers repeat the same blocks.
    """
    places = {
        "resnet18": ["layer1.0.bn2", "layer1.1.bn2"],
        "vgg11_bn": ["features.2", "features.6"],
        "mobilenet_v1_a07": ["features.1.0.1", "features.2.1.1"],
        "mobilenet_v2": ["features.1", "features.3"],
        "mobilenet_v3_small": ["features.1.block", "features.4.block"],
    }
    torch.manual_seed(4)
    net = models.build(
        *(name, "cbam"), num_classes=CLASSES, after="|".join(places[name]), mlp_bias=True, spatial_norm=True
    )
    assert cbam.check(net) == places[name]
    if name == "resnet18":
        net.layer2 = net.layer3 = net.layer4 = nn.Identity()
        net.fc = nn.Linear(64, CLASSES)
    else:
        net.features = net.features[: 8 if name == "vgg11_bn" else 5]
        maps = net.features(torch.zeros(2, 3, 64, 64))
        pooled = net.avgpool(maps).flatten(1) if name == "vgg11_bn" else maps.mean((2, 3))
        net.classifier = nn.Linear(pooled.shape[1], CLASSES)
    randomize_norms(net)
    return net


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_onnx_runtime_computes_the_same_logits(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, file = with_cbam(name), tmp_path / "net.onnx"
    assert export(net, 64, file) <= 1e-4
    images = torch.randn(5, 3, 64, 64)
    session = onnxruntime.InferenceSession(file)
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(got), net(images), rtol=1e-4, atol=1e-4)


def test_wrong_export_is_refused(tmp_path: Path) -> None:
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.rand_like(x[:, 0, 0])

    with pytest.raises(UserError, match="differ from the network's by"):
        export(Noise(), 8, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_export_checks_its_folder_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The folder .*/no for net\.pt2 does not exist"):
        export(nn.Identity(), 8, tmp_path / "no" / "net.pt2")
    with pytest.raises(UserError, match=r"/proc/net\.pt2 cannot be written \(.*\); set file to another path\."):
        export(nn.Identity(), 8, Path("/proc/net.pt2"))


def test_export_command_keeps_the_logits(command: Command, tmp_path: Path) -> None:
    net = models.build("resnet18_cbam", num_classes=CLASSES, kernel_size=3, after="layer4")
    torch.save(net.state_dict(), tmp_path / "ours.pt")
    attention = ["attention.kernel_size=3", "attention.after=layer4"]
    given = ["model=resnet18_cbam", *attention, "model.weights=ours.pt", f"classes={CLASSES}"]
    done = command("scripts/export.py", *given, "image_size=64", "file=net.pt2")
    assert done.returncode == 0, done.stderr
    assert "net.pt2: its logits differ from PyTorch's by at most" in done.stdout
    images = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        got = torch.export.load(tmp_path / "net.pt2").module()(images)
        torch.testing.assert_close(got, net.eval()(images), rtol=1e-4, atol=1e-4)


def test_export_requires_the_trained_network(command: Command, folders: Path) -> None:
    trained = [*SMALL_CBAM, "attention.order=parallel"]
    start = ["model.weights=null", "attention.init=random", "recipe.epochs=1"]  # without influence on the network
    given = arguments(folders, *trained, *start, "run.dir=run")
    assert command("train.py", *given).returncode == 0
    files = ["model.weights=run/checkpoint/last.pt", "image_size=32", "file=net.pt2"]
    export = [*trained, *files]
    assert_one_line(command("scripts/export.py", *export), "was trained as another network; set classes=3.")
    other_order = command("scripts/export.py", *trained[:-1], *files, "classes=3")
    assert_one_line(other_order, "attention.order=parallel.")
    other = command("scripts/export.py", "model=timm", "model.name=resnet18", *trained[2:], *files, "classes=3")
    assert_one_line(other, "set model=custom model.factory=tests.networks:small.")
    done = command("scripts/export.py", *export, "classes=3")
    assert done.returncode == 0, done.stderr


def test_export_refuses_weights_for_other_classes(command: Command, tmp_path: Path) -> None:
    torch.save(models.build("resnet18", num_classes=CLASSES).state_dict(), tmp_path / "ours.pt")
    done = command("scripts/export.py", "model=resnet18", "model.weights=ours.pt", "file=net.pt2")
    assert_one_line(done, "The weights do not fit resnet18: they have no head (fc) for 1000 classes.")


def test_an_export_to_an_unknown_format_is_one_line(command: Command) -> None:
    assert_one_line(command("scripts/export.py", "file=net.tflite"), "file=net.tflite must end in .onnx or .pt2")


def test_failed_replacement_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").mkdir()
    with pytest.raises(IsADirectoryError):
        export(nn.Flatten(), 8, tmp_path / "net.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]
