"""Every network: attention is inserted without changing its outputs, and it trains from there."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import cbam
import models
from cbam import CBAM, CBAMLayer
from engine.config.presets import default_weights
from models.attention.squeeze_excitation import SELayer
from tests.networks import CLASSES, FAMILIES, plain, side

pytestmark = pytest.mark.usefixtures("narrow_classifiers", "fast_initialization")


def other_networks() -> list[str]:
    return [name for name in models.names() if name not in FAMILIES]


class Pretrained(NamedTuple):
    """A network without attention, in evaluation mode."""

    name: str
    images: Tensor
    logits: Tensor
    weights: str  # the file of its state dict
    keys: set[str]  # of its state dict


@pytest.fixture(params=FAMILIES, scope="module")
def pretrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return pretrain(request.param, tmp_path_factory.mktemp("weights"))


def test_configuration_lists_every_network() -> None:
    assert list(default_weights()) == models.names()
    for name, weights in default_weights().items():
        assert weights == next(iter(models.published(name)), None), name


def pretrain(name: str, folder: Path) -> Pretrained:
    reference, images, weights = plain(name), torch.randn(2, 3, 64, 64), folder / f"{name}.pt"
    if name == "inception_v3":
        images = torch.randn(2, 3, 96, 96)
    torch.save(reference.state_dict(), weights)
    with torch.inference_mode():
        logits = reference(images)
    return Pretrained(name, images, logits, str(weights), set(reference.state_dict()))


@pytest.mark.parametrize("kind", ["none", "cbam", "se"])
def test_it_starts_as_the_pretrained_network(pretrained: Pretrained, kind: str, tmp_path: Path) -> None:
    start_train_and_load(pretrained, kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", other_networks())
def test_other_networks_start_as_pretrained(name: str, tmp_path: Path) -> None:
    start_train_and_load(pretrain(name, tmp_path), "cbam", tmp_path)


# torchvision computes RegNet's widths with tensors, which the meta device does not have.
@pytest.mark.parametrize("name", [name for name in other_networks() if not name.startswith("regnet")])
def test_every_other_network_keeps_its_names(name: str) -> None:
    with torch.device("meta"):
        without, net = models.build(name), models.build(f"{name}_cbam")
    assert models.plain_state(net).keys() == without.state_dict().keys()
    assert len(cbam.check(net)) == sum(isinstance(module, CBAMLayer) for module in net.modules()) > 0


def start_train_and_load(pretrained: Pretrained, kind: str, folder: Path) -> None:
    """The logits are those of the pretrained network, training moves attention, and the state dict loads again."""
    name, images, logits, weights, keys = pretrained
    net = models.build(name, kind, weights, num_classes=CLASSES).eval()
    with torch.inference_mode():
        assert torch.equal(net(images), logits)
    added = net.state_dict().keys() - keys
    assert keys <= net.state_dict().keys()
    assert bool(added) == (kind != "none")
    assert all(".attention." in key for key in added)
    if kind == "se" or (kind == "none" and name in torchvision.models.list_models()):
        return  # SE is where CBAM is, and learns in test_attention_kinds.py; the other is torchvision's own network

    train_one_step(net, torch.randn(2, 3, side(name), side(name)))
    torch.save(net.state_dict(), folder / "trained.pt")
    again = models.build(f"{name}_{kind}", weights=str(folder / "trained.pt"), num_classes=CLASSES).eval()
    with torch.inference_mode():
        trained = net.eval()(images)
        assert torch.equal(again(images), trained)
        assert not torch.equal(logits, trained)


def train_one_step(net: nn.Module, images: torch.Tensor) -> None:
    """A step on all classifiers, after which every attention parameter with a gradient has moved."""
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.01)
    before = {name: parameter.clone() for name, parameter in net.named_parameters() if ".attention." in name}
    outputs = net(images)
    logits = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = torch.stack([F.cross_entropy(each, torch.arange(len(images))) for each in logits]).sum()
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    optimizer.step()
    for name, parameter in net.named_parameters():
        if name in before and parameter.grad is not None and parameter.grad.abs().max() > 1e-6:
            assert not torch.equal(parameter, before[name]), name


VARIANTS: list[dict[str, object]] = [
    {"mlp_bias": True, "spatial_norm": True},
    {"pooling": "avg", "order": "channel"},
    {"pooling": "max", "order": "spatial_channel"},
    {"order": "parallel", "kernel_size": 3},
    {"order": "spatial", "spatial_norm": True},
    {"spatial_pooling": "conv", "ratio": 4},
    {"spatial_pooling": "conv", "spatial_norm": True, "mlp_bias": True},
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("output", ["refined", "residual"])
def test_variants_start_as_pretrained(options: dict[str, object], output: str, tmp_path: Path) -> None:
    """To the bit where the factor of the gates is a power of two, which 1 + 1/4 and 1 + 1/2 are not."""
    reference = plain("resnet18")
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    weights = str(tmp_path / "weights.pt")
    net = models.build("resnet18_cbam", weights=weights, num_classes=CLASSES, output=output, **options).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected, got = reference(images), net(images)
    if output == "refined":
        assert torch.equal(got, expected)
    else:
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["resnet50", "vgg11", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_residual_output_starts_near_identity(name: str, tmp_path: Path) -> None:
    reference = plain(name)
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    images = torch.randn(2, 3, 64, 64)
    weights = str(tmp_path / "weights.pt")
    with torch.inference_mode():
        net = models.build(name, "cbam", weights=weights, num_classes=CLASSES, output="residual").eval()
        expected = reference(images)
        assert (net(images) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("resnet18", 8),
        ("resnet50", 16),
        ("resnet152", 50),
        ("vgg16", 5),
        ("mobilenet_v1", 26),
        ("mobilenet_v2", 17),
        ("mobilenet_v3_small", 11),
    ],
)
def test_attention_goes_into_every_block_or_stage(name: str, modules: int) -> None:
    for kind, layer in (("cbam", CBAMLayer), ("se", SELayer)):
        with torch.device("meta"):
            net = models.build(f"{name}_{kind}", num_classes=CLASSES)
        assert sum(isinstance(module, layer) for module in net.modules()) == modules


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet18_w15", "resnet50", "vgg11_bn", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"]
)
def test_attention_precedes_shortcut_or_pooling(name: str) -> None:
    """Scaling one attention layer's output must scale exactly the branch that the paper puts it on."""
    net = models.build(f"{name}_cbam", num_classes=CLASSES).eval()
    seen: list[tuple[int, ...]] = []
    for module in net.modules():
        if isinstance(module, CBAM):
            module.ca.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[1:])))
    net(torch.randn(1, 3, 64, 64))
    expected = {
        "resnet18": [(64, 16, 16)] * 2 + [(128, 8, 8)] * 2 + [(256, 4, 4)] * 2 + [(512, 2, 2)] * 2,
        "resnet18_w15": [(96, 16, 16)] * 2 + [(192, 8, 8)] * 2 + [(384, 4, 4)] * 2 + [(768, 2, 2)] * 2,
        "resnet50": [(256, 16, 16)] * 3 + [(512, 8, 8)] * 4 + [(1024, 4, 4)] * 6 + [(2048, 2, 2)] * 3,
        "vgg11_bn": [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)],
        "mobilenet_v1": [(32, 32, 32), (64, 32, 32), (64, 16, 16)] + [(128, 16, 16)] * 3 + [(128, 8, 8)]
        + [(256, 8, 8)] * 3 + [(256, 4, 4)] + [(512, 4, 4)] * 11 + [(512, 2, 2)] + [(1024, 2, 2)] * 3,
        "mobilenet_v2": [(16, 32, 32)] + [(24, 16, 16)] * 2 + [(32, 8, 8)] * 3 + [(64, 4, 4)] * 4 + [(96, 4, 4)] * 3
        + [(160, 2, 2)] * 3 + [(320, 2, 2)],
        "mobilenet_v3_small": [(16, 16, 16)] + [(24, 8, 8)] * 2 + [(40, 4, 4)] * 3 + [(48, 4, 4)] * 2
        + [(96, 2, 2)] * 3,
    }  # fmt: skip
    assert seen == expected[name]


def test_a_closed_gate_leaves_the_shortcut() -> None:
    """Attention stands on the branch, before the addition: with its output at zero a block is its shortcut alone."""
    net = models.build("resnet18_cbam", num_classes=CLASSES).eval()
    block = net.layer1[1]
    block.bn2.attention = nn.Threshold(float("inf"), 0.0)
    x = torch.rand(1, 64, 8, 8)
    assert torch.equal(block(x), x)


def test_attention_goes_where_it_is_told() -> None:
    net = models.build("resnet18_cbam", num_classes=CLASSES, after=r"layer[34]")
    assert cbam.check(net) == ["layer3", "layer4"]
    with pytest.raises(models.ModelError, match=r"does not match any module's full name"):
        models.build("resnet18_cbam", after="layer9")


@pytest.mark.parametrize("kind", ["cbam", "se"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11_bn", "mobilenet_v1_a07", "mobilenet_v3_small"])
def test_attention_of_earlier_versions_loads(name: str, kind: str, tmp_path: Path) -> None:
    """It had other names: `layer1.0.attention`, `features.3.1`, `features.1.0.2`, `features.1.conv.3`."""
    net = models.build(f"{name}_{kind}", num_classes=CLASSES).eval()
    earlier = [
        (r"(layer\d\.\d+)\.bn\d\.attention", r"\1.attention"),
        (r"(features\.\d+\.\d)\.1\.attention", r"\1.2"),
        (r"(features\.\d+\.block)\.attention", r"\1.9"),
        (r"(features\.\d+)\.attention", r"\1.1"),
    ]
    state = {}
    for key, value in net.state_dict().items():
        name_then = next((re.sub(new, old, key) for new, old in earlier if re.match(new, key)), key)
        state[name_then] = value
    assert state.keys() != net.state_dict().keys()
    identity = {"model.attention": kind, "attention.start": None}
    torch.save({"model": state, "identity": identity}, tmp_path / "earlier.pt")
    again = models.build(f"{name}_{kind}", weights=str(tmp_path / "earlier.pt"), num_classes=CLASSES).eval()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in again.state_dict().items())


def test_attention_elsewhere_is_not_an_earlier_version(tmp_path: Path) -> None:
    elsewhere = models.build("resnet18_cbam", num_classes=CLASSES, after=r"layer\d\.\d+")
    torch.save(elsewhere.state_dict(), tmp_path / "elsewhere.pt")
    with pytest.raises(models.ModelError, match=r"unexpected: layer1\.0\.attention"):
        models.build("resnet18_cbam", weights=str(tmp_path / "elsewhere.pt"), num_classes=CLASSES)


@pytest.mark.parametrize("name", ["resnet18_cbam", "vgg11_bn_cbam", "efficientnet_b0_cbam"])
def test_sync_batchnorm_converts_every_norm_and_keeps_attention(name: str) -> None:
    plain, net = (
        models.build(name, num_classes=CLASSES, spatial_norm=True, sync_batchnorm=sync).eval() for sync in (False, True)
    )
    assert not any(type(module) is nn.BatchNorm2d for module in net.modules())
    assert cbam.check(net) == cbam.check(plain)
    net.load_state_dict(plain.state_dict())
    assert list(net.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(net(images), plain(images))


@pytest.mark.parametrize("kind", ["cbam", "se"])
@pytest.mark.parametrize("name", ["resnet18", "resnet18_w15", "vgg11_bn", "mobilenet_v1", "mobilenet_v2"])
def test_backbone_start_does_not_depend_on_attention(name: str, kind: str) -> None:
    torch.manual_seed(51)
    without = models.build(name, num_classes=CLASSES).state_dict()
    torch.manual_seed(51)
    with_attention = models.build(name, kind, num_classes=CLASSES).state_dict()
    assert all(torch.equal(with_attention[key], value) for key, value in without.items())


def test_random_start_draws_gates_and_keeps_weights(tmp_path: Path) -> None:
    reference = plain("resnet18")
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    net = models.build("resnet18_cbam", weights=str(tmp_path / "weights.pt"), num_classes=CLASSES, start="random")
    assert torch.equal(net.layer1[0].bn2.weight, reference.layer1[0].bn2.weight)
    assert net.layer1[0].bn2.attention.cbam.sa.conv.weight.abs().min() > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": "resnet51"}, "Unknown model 'resnet51'; choose one of resnet18"),
        ({"name": "resnet50", "attention": "cbma"}, "Unknown attention 'cbma'; choose one of none, cbam, se"),
        ({"name": "resnet50_cbam", "attention": "none"}, "select an attention module; use 'resnet50'"),
        ({"name": "resnet18", "weights": "IMAGENET1K_V9"}, "published for resnet18; published weights:"),
        ({"name": "resnet18_cbam", "ratio": 0}, "^Attention 'cbam' cannot be built: ratio must be a positive integer"),
        ({"name": "resnet18_cbam", "kernel_size": 4}, "kernel_size must be odd"),
        ({"name": "resnet18_cbam", "output": "both"}, "output must be one of refined, residual"),
        ({"name": "resnet18_cbam", "order": "both"}, "order must be one of channel_spatial, spatial_channel"),
        ({"name": "resnet18_cbam", "pooling": "mean"}, "pooling must be one of avg, max, both"),
        ({"name": "resnet18_cbam", "spatial_pooling": "max"}, "spatial_pooling must be one of mean_max, conv"),
        ({"name": "resnet18_cbam", "flavour": 1}, "flavour"),
        ({"name": "resnet18_se", "ratio": 0}, "ratio must be a positive integer"),
        ({"name": "resnet18_se", "kernel_size": 3}, "kernel_size"),
        ({"name": "mobilenet_v1", "weights": "DEFAULT"}, "nor published for mobilenet_v1; published weights: none"),
        ({"name": "resnet18", "num_classes": 0}, "num_classes must be at least 1"),
        ({"name": "resnet18_cbam", "start": "warm"}, "Unknown start 'warm'"),
        (
            {"name": "inception_v3", "image_size": 298},
            "needs images of at least 299 pixels for its auxiliary",
        ),
    ],
)
def test_unbuildable_networks_are_refused(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(models.ModelError, match=complaint):
        models.build(**arguments)
