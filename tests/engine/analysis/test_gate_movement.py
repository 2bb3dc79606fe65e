"""How far gates moved from the start of the run, and their saturation, over every image."""

import pytest
import torch
from torch import nn

import models
from engine.analysis.gate_movement import GateMeans, GateMovement, gather_movement, measure_movement
from engine.processes.distributed import ProcessGroup


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_mean_and_largest_over_all_batches() -> None:
    gates = {"a channel": Fixed(), "b spatial": Fixed()}
    with measure_movement(gates, {"a channel": [0.5], "b spatial": [1.0]}) as measured:
        for values in ([0.5, 0.6], [0.1]):
            gates["a channel"](torch.tensor(values)[None, None])
            gates["b spatial"](torch.tensor(values)[None, None])
    summary = gather_movement(measured, ProcessGroup()).summary()
    assert summary["gate_movement"]["a channel"] == pytest.approx([(0 + 0.2 + 0.8) / 3, 0.8])
    assert summary["gate_movement"]["b spatial"] == pytest.approx([(0.5 + 0.4 + 0.9) / 3, 0.9])
    assert summary["gate_movement_mean"] == pytest.approx((1 / 3 + 0.6) / 2)
    assert summary["gate_movement_largest"] == pytest.approx(0.9)
    assert not gates["a channel"]._forward_hooks


def movement(net: nn.Module, start: GateMeans | None) -> GateMovement:
    torch.manual_seed(0)
    with measure_movement(models.gates(net), start) as measured, torch.no_grad():
        net.eval()(torch.randn(4, 3, 64, 64))
    return gather_movement(measured, ProcessGroup())


@pytest.mark.parametrize("start", ["identity", "random"])
@pytest.mark.parametrize("name", ["resnet18_cbam", "resnet18_se"])
def test_movement_is_from_the_run_s_own_start(name: str, start: str) -> None:
    net = models.build(name, num_classes=3, start=start)
    at_start = movement(net, None)
    assert at_start.summary()["gate_movement_largest"] == 0
    later = movement(net, at_start.means)
    if start == "identity":
        assert later.summary()["gate_movement_largest"] == 0
        assert {value for means in at_start.means.values() for value in means} == {0.5}
    else:  # the gates differ between images
        assert 0 < later.summary()["gate_movement_mean"] < 0.2


def test_a_run_of_an_earlier_version_started_at_the_identity() -> None:
    gate = Fixed()
    with measure_movement({"a spatial": gate}, {}) as measured:
        gate(torch.full((2, 1, 3, 3), 0.75))
    assert gather_movement(measured, ProcessGroup()).mean == {"a spatial": 0.5}


def test_a_channel_that_starts_at_0_has_a_finite_movement() -> None:
    gate = Fixed()
    with measure_movement({"a channel": gate}, {"a channel": [0.0, 0.5]}) as measured:
        gate(torch.tensor([0.0, 0.5])[None])
        gate(torch.tensor([0.1, 0.5])[None])
    found = gather_movement(measured, ProcessGroup())
    assert found.largest["a channel"] == pytest.approx(0.1)
    assert found.mean["a channel"] == pytest.approx(0.1 / 4)


def test_saturation_is_the_share_of_values_near_0_and_1() -> None:
    gates = {"a spatial": Fixed(), "b spatial": Fixed()}
    with measure_movement(gates, None) as measured:
        gates["a spatial"](torch.tensor([[[[0.01, 0.5, 0.985, 0.999]]]]))
        gates["b spatial"](torch.tensor([[[[0.02, 0.5, 0.98, 0.97]]]]))
    found = gather_movement(measured, ProcessGroup())
    assert found.saturation == {"a spatial": 0.75, "b spatial": 0.0}
    assert found.saturated() == ["a spatial"]
    assert found.scalars()["gates/saturation_mean"] == 0.375
    assert found.scalars()["gates/saturation_largest"] == 0.75
    assert found.describe() == "gates moved 0.000, 37.5% saturated"


def test_a_network_without_attention_has_no_movement() -> None:
    with measure_movement({}, {}) as measured:
        pass
    assert gather_movement(measured, ProcessGroup()).summary() == {}
