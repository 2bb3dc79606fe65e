"""The official implementation's checkpoint, its module's mathematics written anew here, converts to the same logits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

import models
from engine import cli
from models import convert
from tests.commands import assert_one_line
from tests.conftest import Command
from tests.networks import CLASSES, randomize_norms


class Stub(nn.Module):
    """Modules under given names: the official state dict's names are made of them."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class OfficialCBAM(nn.Module):
    """Channel gate of an MLP with biases; then 7x7 over (maximum, mean) and BatchNorm."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        hidden = planes // 16
        mlp = nn.Sequential(nn.Flatten(), nn.Linear(planes, hidden), nn.ReLU(), nn.Linear(hidden, planes))
        self.ChannelGate = Stub(mlp=mlp)
        conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.SpatialGate = Stub(spatial=Stub(conv=conv, bn=nn.BatchNorm2d(1)))

    def forward(self, x: Tensor) -> Tensor:
        mlp, spatial = self.ChannelGate.mlp, self.SpatialGate.spatial
        logits = mlp(F.avg_pool2d(x, x.shape[2:])) + mlp(F.max_pool2d(x, x.shape[2:]))
        x = x * torch.sigmoid(logits)[:, :, None, None]
        planes = torch.stack([x.amax(dim=1), x.mean(dim=1)], dim=1)
        return x * torch.sigmoid(spatial.bn(spatial.conv(planes)))


class OfficialBottleneck(Bottleneck):
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.cbam = OfficialCBAM(self.bn3.num_features)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.cbam(self.bn3(self.conv3(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


@pytest.fixture(scope="module")
def official_net() -> nn.Module:
    torch.manual_seed(2)
    net = ResNet(OfficialBottleneck, [3, 4, 6, 3], num_classes=CLASSES)
    randomize_norms(net)
    # At the usual initialisation the gates hardly depend on their input.
    for name, parameter in net.named_parameters():
        if "Gate" in name and name.endswith("weight") and parameter.dim() > 1:
            nn.init.normal_(parameter, 0, 0.2)
    return net.eval()


def save_as_released(net: nn.Module, file: Path) -> None:
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"epoch": 100, "arch": "resnet", "state_dict": state, "best_prec1": 77.622}, file)


def logits(weights: Path, images: Tensor) -> Tensor:
    net = models.build(
        "resnet50", "cbam", str(weights), num_classes=CLASSES, mlp_bias=True, spatial_norm=True
    )  # fmt: skip
    with torch.inference_mode():
        return net.eval()(images)


def test_converted_checkpoint_gives_official_logits(official_net: nn.Module, command: Command, tmp_path: Path) -> None:
    save_as_released(official_net, tmp_path / "official.pth")
    done = command("scripts/convert_official.py", "model=resnet50", "source=official.pth", "target=ours.pt")
    assert done.returncode == 0, done.stderr
    assert "model=resnet50 attention=cbam_official model.weights=ours.pt" in done.stdout
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = official_net(images)
    scale = expected.abs().max()
    assert (logits(tmp_path / "ours.pt", images) - expected).abs().max() <= 1e-5 * scale

    # Without the swap of the 7x7's planes the logits differ.
    unswapped = torch.load(tmp_path / "ours.pt", weights_only=True)["model"]
    for name in unswapped:
        if name.endswith("sa.conv.weight"):
            unswapped[name] = unswapped[name].flip(1)
    torch.save(unswapped, tmp_path / "unswapped.pt")
    assert (logits(tmp_path / "unswapped.pt", images) - expected).abs().max() > 1e-3 * scale


def test_foreign_checkpoint_is_refused(command: Command, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "plain.pt")
    done = command("scripts/convert_official.py", "model=resnet18", "source=plain.pt", "target=ours.pt")
    assert_one_line(done, "does not contain the official implementation's CBAM")
    assert not (tmp_path / "ours.pt").exists()


def test_unknown_script_arguments_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["convert", "model=resnet50", "sauce=official.pth"])
    with pytest.raises(SystemExit) as caught:
        cli.run_script(lambda model, source: print(model, source))
    assert caught.value.code == 2
    complaint = "error: Expected the arguments model=MODEL source=SOURCE; got model=resnet50 sauce=official.pth.\n"
    assert capsys.readouterr() == ("", complaint)
    with pytest.raises(SystemExit):
        cli.run_script(lambda: None)
    complaint = "error: Expected no arguments; got model=resnet50 sauce=official.pth.\n"
    assert capsys.readouterr() == ("", complaint)


def test_unknown_official_name_is_refused() -> None:
    with pytest.raises(models.ModelError, match=r"layer1\.0\.cbam\.ChannelGate\.norm\.weight is not a parameter"):
        convert.convert({"layer1.0.cbam.ChannelGate.norm.weight": torch.zeros(1)})
