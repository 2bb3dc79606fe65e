"""The scales of the gates: their definition, their measurement at the identity start, and their state dicts."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import cbam
import models
from cbam import CBAM, CBAMLayer


def network(features: float = 1.0) -> nn.Sequential:
    """Return a small CNN in evaluation mode; `features` multiplies its feature maps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8))
    for norm in (net[1], net[4]):
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.normal_(norm.bias, std=1.0).data.mul_(features)
        nn.init.uniform_(norm.weight, 0.5, 1.5).data.mul_(features)
    return net.eval()


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def layer(net: nn.Module, name: str) -> CBAMLayer:
    found = net.get_submodule(f"{name}.attention")
    assert isinstance(found, CBAMLayer)
    return found


def scale(gate: cbam.ScaledGate) -> list[float]:
    assert gate.scale is not None
    return gate.scale.tolist()


def test_scales_are_the_root_mean_squares_of_what_the_gates_pool() -> None:
    net, x = network(), images()
    features = net(x)
    cbam.insert(net, after=["4"], image_size=20, calibrate=x)
    attention = layer(net, "4").cbam
    expected = [features.mean((2, 3)), features.amax((2, 3))]
    assert scale(attention.ca) == pytest.approx([p.square().mean().sqrt().item() for p in expected])
    halved = 0.5 * features  # by the channel gate
    planes = [halved.mean(1), halved.amax(1)]
    root = math.sqrt(2 * 7 * 7)
    assert scale(attention.sa) == pytest.approx([root * p.square().mean().sqrt().item() for p in planes])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "avg"},
        {"pooling": "max"},
        {"spatial_norm": True},
        {"spatial_pooling": "conv"},
        {"mlp_bias": True},
    ]
    + [{"order": order} for order in ("spatial_channel", "parallel", "channel", "spatial")]
    + [{"output": "residual"}],
)
def test_calibration_leaves_the_identity_start_exact(options: dict[str, object]) -> None:
    net, x = network(), images()
    before = net(x)
    cbam.insert(net, after=["1", "4"], image_size=20, calibrate=x, **options)
    after = net(x)
    assert torch.equal(after, before) or "output" in options
    torch.testing.assert_close(after, before)
    gates = [module for module in net.modules() if isinstance(module, cbam.ScaledGate)]
    assert gates
    assert all(gate.scale is not None and bool((gate.scale > 0).all()) for gate in gates)


def test_calibrated_gates_do_not_depend_on_the_scale_of_the_features() -> None:
    """The same step of their weights changes them equally in networks whose features differ 64-fold."""
    outputs = []
    for factor in (1.0, 64.0):
        net, x = network(), images()
        net[4].weight.data.mul_(factor)
        net[4].bias.data.mul_(factor)
        cbam.insert(net, after=["4"], image_size=20, calibrate=x)
        attention = layer(net, "4")
        torch.manual_seed(1)
        for parameter in attention.parameters():
            nn.init.normal_(parameter)
        outputs.append(net(x) / factor)
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_training_divides_as_evaluation_does(dtype: torch.dtype) -> None:
    """Outputs and gradients of the closed form equal those of the gates' modules, written here as in the paper."""
    torch.manual_seed(0)
    module = CBAM(12, ratio=3, mlp_bias=True).to(dtype)
    module.ca.set_scale_([0.3, 7.0])
    module.sa.set_scale_([2.0, 5.0])
    x = torch.randn(2, 12, 9, 7, dtype=dtype, requires_grad=True)

    def as_in_the_paper() -> Tensor:
        first, _, last = module.ca.shared_MLP
        logits = [last(F.relu(first(p))) for p in (x.mean((2, 3), True) / 0.3, x.amax((2, 3), True) / 7)]
        refined = torch.sigmoid(logits[0] + logits[1]) * x
        planes = torch.cat([refined.mean(1, True) / 2, refined.amax(1, True) / 5], 1)
        return 4 * torch.sigmoid(F.conv2d(planes, module.sa.conv.weight, padding=3)) * refined

    results = []
    for function in (as_in_the_paper, lambda: module.train().refine(x, 4.0), lambda: module.eval().refine(x, 4.0)):
        module.zero_grad()
        x.grad = None
        output = function()
        (output * torch.arange(output.numel(), dtype=dtype).view_as(output).cos()).sum().backward()
        gradients = [p.grad.clone() for p in (x, *module.parameters()) if p.grad is not None]
        assert len(gradients) == 6
        results.append([output.detach(), *gradients])
    for result in results[1:]:
        for got, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(got, expected, **({"rtol": 0, "atol": 1e-9} if dtype == torch.float64 else {}))


def test_uncalibrated_attention_is_the_paper_s_module() -> None:
    """It has no further entry in its state dict, so that files of earlier versions and their digests stay valid."""
    assert CBAM(8).state_dict().keys() == {"ca.shared_MLP.0.weight", "ca.shared_MLP.2.weight", "sa.conv.weight"}
    module, ones = CBAM(8), CBAM(8)
    ones.load_state_dict(module.state_dict())
    ones.ca.set_scale_([1.0, 1.0])
    ones.sa.set_scale_([1.0, 1.0])
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(module(x)[0], ones(x)[0])


def test_state_dicts_carry_the_scales_in_both_directions() -> None:
    trained, fresh = network(), network()
    cbam.insert(trained, after=["4"], image_size=20, calibrate=images())
    cbam.insert(fresh, after=["4"], image_size=20)
    paper_s = copy.deepcopy(fresh.state_dict())
    fresh.load_state_dict(trained.state_dict())
    assert scale(layer(fresh, "4").cbam.sa) == scale(layer(trained, "4").cbam.sa)
    fresh.load_state_dict(paper_s)
    assert layer(fresh, "4").cbam.sa.scale is None
    backbone = {key: value for key, value in paper_s.items() if "attention" not in key}
    trained.load_state_dict(backbone, strict=False)  # says nothing about attention
    assert layer(trained, "4").cbam.sa.scale is not None


def test_calibration_changes_neither_modes_nor_statistics() -> None:
    net = network().train()
    cbam.insert(net, after=["4"], image_size=20)
    net[1].eval()
    before = copy.deepcopy(net.state_dict())
    scales = cbam.calibrate(net, [images(4), images(2)])
    assert scales.keys() == {"4.attention.cbam.ca", "4.attention.cbam.sa"}
    assert net.training
    assert not net[1].training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items() if key in before)


def test_learned_attention_keeps_its_scale() -> None:
    net = network()
    cbam.insert(net, after=["1"], image_size=20, calibrate=images())
    for parameter in layer(net, "1").parameters():
        nn.init.ones_(parameter)
    cbam.insert(net, after=["4"], image_size=20)
    before = scale(layer(net, "1").cbam.sa)
    assert cbam.calibrate(net, images() * 5).keys() == {"4.attention.cbam.ca", "4.attention.cbam.sa"}
    assert scale(layer(net, "1").cbam.sa) == before
    for parameter in layer(net, "4").parameters():
        nn.init.ones_(parameter)
    with pytest.raises(ValueError, match="No gate is at the identity start"):
        cbam.calibrate(net, images())


@pytest.mark.parametrize(
    ("given", "message"),
    [(lambda: [], "did not run: there are no images"), (lambda: images() * math.nan, "is not finite")],
)
def test_a_failed_calibration_leaves_the_network_as_it_was(given: Callable[[], Any], message: str) -> None:
    net = network()
    keys = net.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        cbam.insert(net, after=["4"], image_size=20, calibrate=given())
    assert net.state_dict().keys() == keys
    cbam.insert(net, after=["4"], image_size=20)


def test_other_starts_cannot_be_calibrated() -> None:
    with pytest.raises(ValueError, match='Calibration needs start="identity"'):
        cbam.insert(network(), after=["4"], start="random", image_size=20, calibrate=images())


def test_a_map_of_zeros_has_the_scale_one() -> None:
    net = network(features=0.0)
    cbam.insert(net, after=["4"], image_size=20, calibrate=images())
    assert scale(layer(net, "4").cbam.ca) == [1.0, 1.0]


def test_without_images_the_scales_follow_from_the_norm() -> None:
    """On features as the norm describes them, the estimate is within a factor of 2 of the measurement."""
    net = network()
    for norm in (net[1], net[4]):
        assert isinstance(norm, nn.BatchNorm2d)
        norm.momentum = None  # exact statistics
    net.train()(images(64))
    cbam.insert(net.eval(), after=["1", "4"], image_size=20)
    measured = cbam.calibrate(net, images(64))
    estimated = cbam.calibrate(net)
    assert estimated.keys() == measured.keys()
    for name, values in measured.items():
        for value, estimate in zip(values, estimated[name], strict=True):
            assert 0.5 < estimate / value < 2
    without_norm = nn.Sequential(nn.Conv2d(3, 8, 3))
    cbam.insert(without_norm, after=["0"], image_size=20)
    with pytest.raises(ValueError, match="no BatchNorm in the module that it follows"):
        cbam.calibrate(without_norm)


def test_without_images_the_last_norm_of_a_block_counts() -> None:
    net, other = network(), network()
    other.load_state_dict(net.state_dict())
    block = nn.Sequential(nn.Sequential(*list(other)[:5]))
    cbam.insert(net, after=["4"], image_size=20)
    cbam.insert(block, after=["0"], image_size=20)
    (of_norm, of_block) = (list(cbam.calibrate(one).values()) for one in (net, block))
    assert of_norm == of_block


def test_batches_of_images_and_labels_are_accepted() -> None:
    nets = [network() for _ in range(2)]
    for net in nets:
        cbam.insert(net, after=["4"], image_size=20)
    loader = DataLoader(TensorDataset(images(), torch.zeros(len(images()))), batch_size=2)
    by_loader, at_once = cbam.calibrate(nets[0], loader), cbam.calibrate(nets[1], images())
    for name, values in at_once.items():
        assert by_loader[name] == pytest.approx(values)


def test_other_images_are_refused() -> None:
    net = network()
    cbam.insert(net, after=["4"], image_size=20)
    with pytest.raises(ValueError, match=r"preprocessed floating point tensors \[N, 3, H, W\]; got torch.uint8"):
        cbam.calibrate(net, torch.zeros(2, 3, 20, 20, dtype=torch.uint8))
    with pytest.raises(ValueError, match="got str"):
        cbam.calibrate(net, ["a.jpg"])  # type: ignore[list-item]


def test_grayscale_images_for_a_color_network_are_refused() -> None:
    net = network()
    cbam.insert(net, after=["4"], image_size=20)
    with pytest.raises(ValueError, match=r"cannot process images of shape \[4, 1, 20, 20\] \(.*3 channels, but got 1"):
        cbam.calibrate(net, torch.randn(4, 1, 20, 20))


def test_squeeze_and_excitation_is_calibrated_too() -> None:
    net = models.build("resnet18_se", num_classes=3, start="identity").eval()
    x = torch.randn(4, 3, 64, 64)
    before = net(x)
    scales = cbam.calibrate(net, x)
    assert torch.equal(net(x), before)
    assert len(scales) == 8
    assert all(len(values) == 1 for values in scales.values())
