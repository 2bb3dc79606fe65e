"""The examples of docs/examples: each inserts attention that runs, learns, and changes no output at the start."""

import copy
import runpy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cbam
import models
from tests.networks import CLASSES, plain
from tests.processes import REPOSITORY

EXAMPLES = REPOSITORY / "docs" / "examples"


def builder(example: str) -> Callable[..., nn.Module]:
    build: Callable[..., nn.Module] = runpy.run_path(str(EXAMPLES / f"{example}.py"))["build"]
    return build


def assert_identity_start(net: nn.Module, images: Any) -> None:
    """CBAM runs, the same network without it has the same outputs, and every layer has a gradient."""
    assert len(cbam.check(net)) > 0
    without = copy.deepcopy(net)
    cbam.remove(without)
    with torch.no_grad():
        outputs, expected = (flat(one.eval()(images)) for one in (net, without))
    assert len(outputs) == len(expected) > 0
    assert all(torch.equal(output, other) for output, other in zip(outputs, expected, strict=True))
    sum(output.sum() for output in flat(net(images))).backward()
    gates = cbam.gates(net)
    assert gates
    assert all(any(p.grad is not None for p in gate.parameters()) for gate in gates.values())


def flat(outputs: Any) -> list[Tensor]:
    """Return the floating-point tensors in nested lists and dictionaries."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    return [tensor for one in (outputs.values() if isinstance(outputs, dict) else outputs) for tensor in flat(one)]


def test_unet() -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed")
    torch.manual_seed(0)
    net = builder("unet")(encoder_weights=None)
    assert len(cbam.check(net)) == 16
    assert_identity_start(net, torch.rand(2, 3, 64, 64))


def test_detector() -> None:
    torch.manual_seed(0)
    net = builder("detector")(weights=None, min_size=64, max_size=64, box_score_thresh=0.0)
    assert len(cbam.check(net)) == 16
    assert_identity_start(net, [torch.rand(3, 64, 64)])


def test_segmentation() -> None:
    torch.manual_seed(0)
    net = builder("segmentation")(weights=None)
    assert len(cbam.check(net)) == 15
    assert_identity_start(net, torch.rand(2, 3, 64, 64))


def test_features_of_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    net = builder("features")(pretrained=False)
    assert len(cbam.check(net)) == 8
    assert_identity_start(net, torch.rand(2, 3, 64, 64))


def test_attention_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    torch.manual_seed(0)
    factory = "docs.examples.simam:SimAM"
    net = models.build("resnet18", "custom", num_classes=CLASSES, start="identity", factory=factory).eval()
    reference = plain("resnet18")
    net.load_state_dict(reference.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(net(images), reference(images))
    net.train()(images).sum().backward()
    layers = [layer for layer in net.modules() if isinstance(layer, cbam.AttentionLayer)]
    assert len(layers) == 8
    assert all(layer.amount.grad.abs() > 0 for layer in layers)
