"""timm's networks: places, preprocessing and pretrained weights."""

import importlib
import importlib.util
import logging
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torchvision.transforms import InterpolationMode

import cbam
import models
from engine.config.data import DataConfig
from engine.data.transforms import Preprocessing
from models import timm_networks
from tests.networks import CLASSES, randomize_norms

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


@pytest.fixture
def timm() -> ModuleType:
    return importlib.import_module("timm")


@pytest.fixture
def hub() -> ModuleType:
    return importlib.import_module("huggingface_hub")


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("resnet18", 8),
        ("resnet50", 16),
        ("seresnet50", 16),
        ("mobilenetv2_050", 17),
        ("mobilenetv3_small_050", 11),
        ("efficientnet_b0", 16),
        ("efficientnetv2_s", 40),
        ("efficientnetv2_m", 57),
        ("convnext_atto", 12),
        ("regnety_004", 16),
        ("densenet121", 58),
    ],
)
def test_families_have_a_place_in_every_block(name: str, places: int) -> None:
    with torch.device("meta"):
        net = models.build(f"timm/{name}", "cbam")
    assert len(cbam.check(net)) == places


def test_other_families_ask_for_places() -> None:
    with pytest.raises(models.ModelError, match=r"no default place for attention in VGG; set attention\.after=REGEX"):
        models.build("timm/vgg11", "cbam")
    assert cbam.check(models.build("timm/test_resnet", "cbam", after=r"layer[34]")) == ["layer3", "layer4"]


@pytest.mark.parametrize("kind", ["none", "cbam", "se"])
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_pretrained_logits_are_unchanged(
    name: str, kind: str, timm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = timm.create_model(name, num_classes=CLASSES).eval()
    randomize_norms(reference)
    monkeypatch.setattr(timm_networks, "_pretrained_state", lambda _: reference.state_dict())
    net = models.build(f"timm/{name}", kind, weights="default", num_classes=CLASSES).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(net(images), reference(images))
    assert models.plain_state(net).keys() == reference.state_dict().keys()
    assert any(".attention." in key for key in net.state_dict()) == (kind != "none")


def test_the_head_starts_anew_for_other_classes(timm: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(timm.create_model("convnext_atto", num_classes=7).state_dict(), file)
    net = models.build("timm/convnext_atto", "cbam", weights=str(file), num_classes=CLASSES)
    assert isinstance(net.head.fc, nn.Linear)
    assert net.head.fc.out_features == CLASSES


def test_the_data_config_is_the_preprocessing(timm: ModuleType) -> None:
    transforms = models.transforms("timm/tf_efficientnetv2_b0", None)
    assert transforms is not None
    assert (transforms.crop_size, transforms.resize_size) == ([192], [219])
    assert transforms.interpolation == InterpolationMode.BICUBIC
    data = DataConfig("imagenet", "folders", "x", 1000, image_size=192)
    half = (0.5, 0.5, 0.5)
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("tf_efficientnetv2_b0").to_dict())
    assert Preprocessing.choose(data, transforms) == Preprocessing(219, 192, "bicubic", config["mean"], config["std"])
    inception = models.transforms("timm/inception_v3", None)
    smaller = DataConfig("imagenet", "folders", "x", 1000, image_size=64, resize=64)
    assert Preprocessing.choose(smaller, inception) == Preprocessing(64, 64, "bilinear", half, half)


def test_earlier_names_are_the_current_networks(timm: ModuleType) -> None:
    """All that timm lists; it gives two of them a current name that it does not have."""
    renamed = timm.models.get_deprecated_models()
    assert len(renamed) > 200
    unknown = []
    for earlier, current in renamed.items():
        try:
            expected = timm_networks.spec(f"timm/{current}")
        except models.ModelError:
            unknown.append(earlier)
            continue
        spec = timm_networks.spec(f"timm/{earlier}")
        assert spec.heads == expected.heads != ()
        assert vars(spec.transforms) == vars(expected.transforms), earlier
    assert len(unknown) <= 2
    advprop = models.transforms("timm/tf_efficientnet_b0_ap", None)
    assert advprop is not None
    assert [*advprop.mean, *advprop.std] == 6 * [0.5]


@pytest.mark.parametrize(
    ("name", "weights", "complaint"),
    [
        ("convnext_ato", None, "timm has no network 'convnext_ato'; perhaps convnext_atto"),
        ("resnet50.none", None, r"timm has no weights 'resnet50\.none'; it has resnet50\.a1_in1k"),
        (
            "convnext_atto",
            "IMAGENET1K_V1",
            "neither a file nor published for timm/convnext_atto; published weights: def",
        ),
        ("resnet50t", "default", r"cannot load the pretrained weights of resnet50t \(No pretrained weights exist"),
    ],
)
def test_errors_are_sentences(name: str, weights: str | None, complaint: str) -> None:
    with pytest.raises(models.ModelError, match=complaint):
        models.build(f"timm/{name}", weights=weights)


def test_without_internet_it_says_at_once_what_to_copy(
    timm: ModuleType, hub: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's own attempt, which repeats each request five times, is not made."""

    def unreachable(url: str) -> None:
        raise OSError(f"Name or service not known: {url}")

    monkeypatch.setattr(hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm, "create_model", None)
    with pytest.raises(models.ModelError) as refused:
        timm_networks._pretrained_state("tf_efficientnet_lite0")
    command = "python -c 'import timm; timm.create_model(\"tf_efficientnet_lite0\", pretrained=True)'"
    assert str(refused.value) == (
        "timm cannot load the pretrained weights of tf_efficientnet_lite0 (Name or service not known: "
        "https://huggingface.co/timm/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors). On a machine with "
        f"internet, run `{command}` and copy the folder models--timm--tf_efficientnet_lite0.in1k from its cache "
        f"(~/.cache/huggingface/hub) to {tmp_path}, or start from a file or random weights (model.weights=PATH or "
        "null)."
    )


def test_cached_weights_need_no_request_and_print_nothing(
    timm: ModuleType,
    hub: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def load(name: str, pretrained: bool) -> nn.Module:
        assert (name, pretrained) == ("tf_efficientnet_lite0", True)
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        logging.getLogger("timm.models._builder").info("Loading pretrained weights")
        logging.getLogger("timm.models._builder").warning("Using random initialization.")
        return nn.Linear(2, 1)

    (tmp_path / "models--timm--tf_efficientnet_lite0.in1k").mkdir()
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "get_hf_file_metadata", None)
    monkeypatch.setattr(timm, "create_model", load)
    levels = [logging.getLogger(name).level for name in ("timm", "huggingface_hub")]
    with caplog.at_level(logging.INFO):
        assert timm_networks._pretrained_state("tf_efficientnet_lite0").keys() == {"weight", "bias"}
    assert caplog.messages == ["Using random initialization."]
    assert [logging.getLogger(name).level for name in ("timm", "huggingface_hub")] == levels


def test_without_timm_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(models.ModelError, match=re.escape("run `pip install timm`")):
        models.build("timm/convnext_atto")
