"""The networks outside this repository: pip, torch.hub, ONNX Runtime, torch.export, torchvision's detection models."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN

import hubconf
import models
from engine.analysis.export import export
from engine.errors import UserError
from tests.conftest import Command
from tests.networks import CLASSES, randomize_norms
from tests.processes import REPOSITORY
from tests.test_commands import arguments, assert_one_line

pytestmark = pytest.mark.usefixtures("narrow_classifiers")

PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
ONE_OF_EACH_FAMILY = ["resnet18", "vgg11_bn", "mobilenet_v1_a07", "mobilenet_v2", "mobilenet_v3_small"]


def with_cbam(name: str) -> nn.Module:
    torch.manual_seed(4)
    net = models.build(f"{name}_cbam", num_classes=CLASSES, mlp_bias=True, spatial_norm=True)
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


def test_an_export_that_computes_something_else_is_an_error(tmp_path: Path) -> None:
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.rand_like(x[:, 0, 0])

    with pytest.raises(UserError, match="differ from the network's by"):
        export(Noise(), 8, tmp_path / "net.pt2")


def test_where_an_export_cannot_go_is_said_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no folder .*/no for net\.pt2"):
        export(nn.Identity(), 8, tmp_path / "no" / "net.pt2")


def test_the_export_command_writes_a_program_with_the_same_logits(command: Command, tmp_path: Path) -> None:
    net = models.build("resnet18_cbam", num_classes=CLASSES, kernel_size=3)
    torch.save(net.state_dict(), tmp_path / "ours.pt")
    given = ["model=resnet18_cbam", "attention.kernel_size=3", "model.weights=ours.pt", f"classes={CLASSES}"]
    done = command("scripts/export.py", *given, "image_size=64", "file=net.pt2")
    assert done.returncode == 0, done.stderr
    assert "net.pt2: its logits differ from PyTorch's by at most" in done.stdout
    images = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        got = torch.export.load(tmp_path / "net.pt2").module()(images)
        torch.testing.assert_close(got, net.eval()(images), rtol=1e-4, atol=1e-4)


def test_a_runs_weights_are_exported_as_the_network_that_was_trained(command: Command, folders: Path) -> None:
    trained = ["model=mobilenet_v3_small_cbam", "attention.order=parallel"]
    given = arguments(folders, *trained, "model.weights=null", "recipe.epochs=1", "run.dir=run")
    assert command("train.py", *given).returncode == 0
    export = [*trained, "model.weights=run/checkpoint/last.pt", "image_size=32", "file=net.pt2"]
    assert_one_line(command("scripts/export.py", *export), "for the same, set classes=3.")
    assert_one_line(command("scripts/export.py", *export[:1], *export[2:], "classes=3"), "attention.order=parallel.")
    done = command("scripts/export.py", *export, "classes=3")
    assert done.returncode == 0, done.stderr


def test_weights_for_other_classes_are_not_exported_with_a_random_head(command: Command, tmp_path: Path) -> None:
    torch.save(models.build("resnet18", num_classes=CLASSES).state_dict(), tmp_path / "ours.pt")
    done = command("scripts/export.py", "model=resnet18", "model.weights=ours.pt", "file=net.pt2")
    assert_one_line(done, "The weights do not fit resnet18; reshaped: fc.bias, fc.weight")


def test_an_export_to_an_unknown_format_is_one_line(command: Command) -> None:
    assert_one_line(command("scripts/export.py", "file=net.tflite"), "file=net.tflite has to end in .onnx or .pt2")


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18_cbam", [64, 128, 256, 512]), ("vgg11", [256, 512, 512, 512])]
)
def test_a_backbone_gives_a_pyramid_of_strides_4_to_64(name: str, channels: list[int]) -> None:
    extractor = models.backbone(name)
    assert [block[0].in_channels for block in extractor.fpn.inner_blocks] == channels
    maps = extractor(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape) for level in maps.values()] == [
        (1, extractor.out_channels, max(1, 64 // stride), max(1, 96 // stride + (96 % stride > 0)))
        for stride in (4, 8, 16, 32, 64)
    ]


def test_torchvisions_detector_takes_a_training_step_on_a_backbone() -> None:
    torch.manual_seed(0)
    detector = FasterRCNN(models.backbone("resnet18_cbam"), num_classes=3, min_size=96, max_size=96).train()
    before = {name: value.clone() for name, value in detector.named_parameters()}
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]), "labels": torch.tensor([label])} for label in (1, 2)]
    losses = detector([torch.rand(3, 96, 96), torch.rand(3, 96, 96)], targets)
    torch.stack(list(losses.values())).sum().backward()
    torch.optim.SGD(detector.parameters(), lr=0.01).step()
    after = dict(detector.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    for part in ("conv1", "cbam.ca", "cbam.sa", "fpn", "rpn", "roi_heads"):
        assert any(part in name and not torch.equal(value, before[name]) for name, value in after.items()), part


def test_torch_hub_loads_every_name(tmp_path: Path) -> None:
    entries = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert entries == {name + suffix for name in models.names() for suffix in ("", "_cbam", "_se")}
    net = models.build("resnet18_cbam", num_classes=CLASSES)
    torch.save(net.state_dict(), tmp_path / "ours.pt")
    loaded = torch.hub.load(
        str(REPOSITORY), "resnet18_cbam", source="local", weights=str(tmp_path / "ours.pt"), num_classes=CLASSES
    )
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.eval()(images), net.eval()(images))


def test_fetching_weights_that_nobody_publishes_is_one_line(command: Command) -> None:
    assert_one_line(
        command("scripts/download_weights.py", "model=mobilenet_v1"), "publishes no weights for mobilenet_v1"
    )


def test_pip_installs_the_module_alone(tmp_path: Path) -> None:
    clone, site = tmp_path / "clone", tmp_path / "site"
    shutil.copytree(REPOSITORY / "cbam", clone / "cbam")
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / file, clone)
    subprocess.run([*PIP, "--target", site, clone], check=True)
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"cbam"}
    use = "import cbam, torch; print(cbam.__file__, cbam.CBAM(8)(torch.rand(1, 8, 5, 5))[0].shape)"
    used = subprocess.run([sys.executable, "-c", use], cwd=site, capture_output=True, text=True, check=True)
    assert used.stdout == f"{site / 'cbam' / '__init__.py'} torch.Size([1, 8, 5, 5])\n"
