"""Every kind of attention: the two registries agree, and each starts as the identity and learns."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cbam
import models
from engine.analysis.gate_stats import record_gates
from engine.config import attention as configured
from models.attention import timm_modules
from models.attention.blended import BlendedLayer
from tests.networks import CLASSES, plain

KINDS = list(models.ATTENTION_KINDS)
OF_TIMM = [kind.name for kind in timm_modules.KINDS]

OWN = """
import torch
from torch import nn

import cbam

class Blur(nn.Module):
    def __init__(self, channels, strength=1.0):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.drop = nn.Dropout(0.1)
        self.strength = strength

    def forward(self, x):
        return self.drop(self.strength * self.conv(x)).tanh()

class Halves(cbam.AttentionLayer):
    def __init__(self, channels):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(channels, 1, 1))
        self.gate = nn.Sigmoid()
        self.doubled = False

    def forward(self, x):
        return (2 if self.doubled else 1) * self.gate(self.logits) * x

    def init_identity_(self):
        nn.init.zeros_(self.logits)
        self.doubled = True

    def gates(self):
        return {"channel": self.gate}

class Smaller(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x[:, :, ::2]

def text(channels):
    return "layer"
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_attention.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "own_attention", raising=False)


def options(kind: str) -> dict[str, object]:
    """The options without which a kind cannot be built, and the package that it needs."""
    if kind in OF_TIMM:
        pytest.importorskip("timm", reason="timm is not installed")
    return {"factory": "own_attention:Blur"} if kind == "custom" else {}


def bits(logits: Tensor) -> Tensor:
    return logits.view(torch.int16 if logits.dtype == torch.bfloat16 else torch.int32)


def test_the_command_line_has_the_same_kinds_options_and_defaults() -> None:
    assert configured.kinds() == {"none": {}} | {
        name: dict(kind.options) for name, kind in models.ATTENTION_KINDS.items()
    }
    for name, kind in models.ATTENTION_KINDS.items():
        types = {key: type(default) for key, default in kind.options.items()}
        assert {key: type(default) for key, default in configured.kinds()[name].items()} == types


@pytest.mark.parametrize("kind", OF_TIMM)
def test_defaults_are_timms(kind: str) -> None:
    create_attn = pytest.importorskip("timm.layers", reason="timm is not installed").create_attn
    if kind == "ge":
        pytest.skip("timm 1.0.31 cannot build its MLP; test_gather_excite_is_timms covers it")
    torch.manual_seed(0)
    theirs = create_attn(kind, 48)
    torch.manual_seed(0)
    layer = models.ATTENTION_KINDS[kind].layer(48, {})
    x = torch.randn(2, 48, 6, 5)
    torch.testing.assert_close(layer.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("extent", [0, 2])
def test_gather_excite_is_timms(extent: int) -> None:
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    layer = models.ATTENTION_KINDS["ge"].layer(48, {"extent": extent}).eval()
    theirs = layers.GatherExcite(48, extent=extent, use_mlp=False).eval()
    x = torch.randn(2, 48, 8, 6)
    theirs.mlp = layer.module.mlp
    assert layer.module.mlp.fc1.out_channels == 3
    torch.testing.assert_close(layer(x), theirs(x))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_identity_start_keeps_the_logits_bitwise(name: str, tmp_path: Path) -> None:
    reference, images = plain(name), torch.randn(2, 3, 64, 64)
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    nets = {
        kind: models.build(name, kind, str(tmp_path / "weights.pt"), num_classes=CLASSES, **options(kind)).eval()
        for kind in KINDS
    }
    for autocast in (False, True):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            expected = reference(images)
            for kind, net in nets.items():
                assert torch.equal(bits(net(images)), bits(expected)), kind


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_from_the_identity(kind: str) -> None:
    torch.manual_seed(0)
    layer = models.ATTENTION_KINDS[kind].layer(256, options(kind))
    layer.init_identity_()
    x, target = torch.randn(4, 256, 8, 6), torch.randn(4, 256, 8, 6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    before = copy.deepcopy(layer.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        ((layer(x) - target) ** 2).mean().backward()
        optimizer.step()
    learned = {key for key, value in layer.named_parameters() if not torch.equal(value, before[key])}
    # A softmax does not depend on the bias before it.
    assert learned == {key for key, _ in layer.named_parameters()} - {"module.conv_attn.bias"}


@pytest.mark.parametrize("kind", KINDS)
def test_gates_are_a_half_at_the_identity(kind: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
    layer = models.ATTENTION_KINDS[kind].layer(16, options(kind))
    cbam.insert_layer(net, "1", lambda _channels: layer, image_size=32)
    for start in ("random", "identity"):
        if start == "identity":
            layer.init_identity_()
        with record_gates(cbam.gates(net)) as values:
            net(torch.randn(2, 3, 12, 10))
        assert values.keys() == cbam.gates(net).keys()
        for value in values.values():
            assert 0 < value.min() <= value.max() < 1
            assert start == "random" or torch.all(value == 0.5)
    assert bool(values) == (kind not in ("gca", "lcbam", "custom"))


@pytest.mark.parametrize("kind", [kind for kind in OF_TIMM if kind in configured.CALIBRATED])
def test_calibrated_gates_learn_at_one_pace_whatever_the_scale_of_the_features(kind: str) -> None:
    """A step on 64 times larger features gives the same gates, bitwise; without calibration it does not."""
    torch.manual_seed(0)
    features, gradient = torch.rand(4, 64, 8, 6), torch.randn(4, 64, 8, 6)
    layer = models.ATTENTION_KINDS[kind].layer(64, options(kind))
    layer.init_identity_()

    def gates_after_a_step(scale: float, calibrated: bool) -> Tensor:
        learner, x = copy.deepcopy(layer), scale * features
        if calibrated:
            cbam.calibrate(learner, x)
        assert torch.equal(learner(x), x)
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.01)
        (learner(x) * gradient / scale).sum().backward()
        optimizer.step()
        return learner(x).detach() / x

    assert torch.equal(gates_after_a_step(1, True), gates_after_a_step(64, True))
    assert not torch.allclose(gates_after_a_step(1, False), gates_after_a_step(64, False), atol=0.01)


def test_own_attention_with_its_own_start() -> None:
    net = models.build("resnet18", "custom", num_classes=2, start="identity", factory="own_attention:Halves")
    assert len(models.gates(net)) == 8
    assert not any(isinstance(module, BlendedLayer) for module in net.modules())
    x = torch.randn(1, 3, 32, 32)
    expected = models.build("resnet18", num_classes=2)
    expected.load_state_dict(models.plain_state(net))
    assert torch.equal(net.eval()(x), expected.eval()(x))


def test_options_reach_own_attention() -> None:
    net = models.build("resnet18", "custom", factory="own_attention:Blur", options={"strength": 3.0})
    found = [module.strength for module in net.modules() if type(module).__name__ == "Blur"]
    assert found == [3.0] * 8


@pytest.mark.parametrize(
    ("kind", "given", "complaint"),
    [
        ("custom", {}, r"needs attention\.factory=package\.module:Class"),
        (
            "custom",
            {"factory": "nowhere:Blur"},
            "names the module 'nowhere', which is neither",
        ),
        ("custom", {"factory": "own_attention:Smaller"}, r"returns \(2, 64, 4, 5\) for a map \(2, 64, 7, 5\)"),
        ("custom", {"factory": "own_attention:text"}, "returns str; it must return a torch.nn.Module"),
        (
            "custom",
            {"factory": "own_attention:Blur", "options": {"size": 3}},
            r"fails with \(64, size=3\): TypeError: .*unexpected keyword argument 'size'",
        ),
        ("se", {"kernel_size": 3}, "'se' has no option 'kernel_size'; it has ratio"),
        ("eca", {"ratio": 3}, "'eca' has no option 'ratio'; it has gamma, beta"),
        ("ge", {"extent": 3}, r"timm .* cannot build attention=ge"),
        ("etca", {}, "Unknown attention 'etca'; choose one of none, cbam, se"),
    ],
)
def test_errors_are_sentences(kind: str, given: dict[str, object], complaint: str) -> None:
    if kind in OF_TIMM:
        pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(models.ModelError, match=complaint):
        models.build("resnet18", kind, num_classes=2, **given)


def test_timms_kinds_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(models.ModelError, match="attention=eca needs timm, which is not installed"):
        models.build("resnet18_eca")


def test_every_kind_is_a_suffix_of_every_backbone() -> None:
    assert {models.factory.parse(f"resnet18_{kind}")[1] for kind in KINDS} == set(KINDS)
