"""Insertion of CBAM into a network of every family, without changes to its parameter names or logits."""

import pytest
import torch
from torch import nn

import cbam
from cbam import CBAMLayer
from models import timm_networks
from tests.networks import plain, randomize_norms

pytestmark = pytest.mark.usefixtures("fast_initialization")

FAMILIES = [
    ("alexnet", r"features\.(1|4|11)", 3),
    ("vgg11_bn", r"features\.(2|6|13|20|27)", 5),
    ("resnet18", r"layer\d\.\d+\.bn2", 8),
    ("resnet50", r"layer\d\.\d+\.bn3", 16),
    ("mobilenet_v2", r"features\.\d+\.conv", 17),
    ("mobilenet_v3_small", r"features\.\d+\.block", 11),
    ("densenet121", r"features\.denseblock\d\.denselayer\d+\.conv2", 58),
    ("efficientnet_b0", r"features\.\d+\.\d+\.block", 16),
    ("efficientnet_v2_s", r"features\.\d+\.\d+\.block", 40),
    ("convnext_tiny", r"features\.\d+\.\d+\.block", 18),
    ("regnet_y_400mf", r"trunk_output\.block\d\.block\d-\d+\.f", 16),
    ("shufflenet_v2_x0_5", r"stage\d\.\d+\.branch2", 16),
    ("googlenet", r"inception\d\w", 9),
    ("inception_v3", r"Mixed_\d\w", 11),
    ("mnasnet0_5", r"layers\.\d+\.\d+\.layers", 16),
    ("squeezenet1_0", r"features\.(3|4|5|7|8|9|10|12)", 8),
]


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize(("name", "after", "count"), FAMILIES)
def test_torchvision_names_and_logits_stay(name: str, after: str, count: int) -> None:
    inception = name == "inception_v3"
    assert_names_and_logits_stay(plain(name), after, count, 299 if inception else 224, 96 if inception else 64)


@pytest.mark.parametrize(
    ("name", "after", "count"),
    [
        ("resnet18", r"layer\d\.\d+\.bn2", 8),
        ("convnext_atto", r"stages\.\d\.blocks\.\d+\.drop_path", 12),
        ("efficientnet_b0", r"blocks\.0\.\d+\.bn2|blocks\.[1-9]\.\d+\.bn3", 16),
        ("regnety_004", r"s\d\.b\d+\.conv3", 16),
    ],
)
def test_names_and_logits_of_timm_networks_stay(name: str, after: str, count: int) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    net = timm.create_model(name, num_classes=5).eval()
    randomize_norms(net)
    assert_names_and_logits_stay(net, after, count, 224, 64)


def assert_names_and_logits_stay(net: nn.Module, after: str, count: int, image_size: int, side: int) -> None:
    state, images = net.state_dict(), torch.randn(2, 3, side, side)
    with torch.inference_mode():
        expected = net(images)
    insertions = cbam.insert(net, after, image_size=image_size)
    with torch.inference_mode():
        assert torch.equal(net(images), expected)
    names = [insertion.name for insertion in insertions]
    assert len(names) == count
    assert cbam.check(net) == names

    missing, unexpected = net.load_state_dict(state, strict=False)
    assert unexpected == []
    assert {key.split(".attention.")[0] for key in missing} == set(names)

    for layer in net.modules():
        if isinstance(layer, CBAMLayer):
            layer.gain.fill_(3)
    with torch.inference_mode():
        assert not torch.equal(net(images), expected)


@pytest.mark.parametrize(("name", "after", "count"), FAMILIES)
def test_places_are_suggested_by_family(name: str, after: str, count: int) -> None:
    size = 299 if name == "inception_v3" else 64
    net = plain(name)
    found = cbam.places(net, image_size=size)
    assert found == cbam.places(net, after, image_size=size)
    assert len(found) == count


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18d", "seresnet50", "tf_efficientnetv2_b0", "efficientnetv2_rw_t", "tf_efficientnet_lite0"),
        *("mobilenetv2_050", "mobilenetv3_small_050", "convnext_atto", "regnetx_002", "densenet121"),
    ],
)
def test_places_are_suggested_in_timms_networks(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    net = timm.create_model(name)
    after = timm_networks.spec(f"timm/{name}").after
    assert [place.name for place in cbam.places(net)] == [place.name for place in cbam.places(net, after)]


def test_places_of_an_unknown_network_need_a_pattern() -> None:
    with pytest.raises(cbam.InsertionError, match="No place for attention is known in Sequential; give `after`"):
        cbam.places(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
