"""How far gates moved: |gate x gain - 1| over every image."""

import pytest
import torch
from torch import nn

import models
from engine.analysis.gate_movement import gather_movement, measure_movement
from engine.processes.distributed import ProcessGroup


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_mean_and_largest_over_all_batches() -> None:
    gates = {"a channel": Fixed(), "b spatial": Fixed()}
    with measure_movement(gates, {"a channel": 2.0, "b spatial": 1.0}) as measured:
        for values in ([0.5, 0.6], [0.1]):
            gates["a channel"](torch.tensor(values))
            gates["b spatial"](torch.tensor(values))
    summary = gather_movement(measured, ProcessGroup()).summary()
    assert summary["gate_movement"]["a channel"] == pytest.approx([(0 + 0.2 + 0.8) / 3, 0.8])
    assert summary["gate_movement"]["b spatial"] == pytest.approx([(0.5 + 0.4 + 0.9) / 3, 0.9])
    assert summary["gate_movement_mean"] == pytest.approx((1 / 3 + 0.6) / 2)
    assert summary["gate_movement_largest"] == pytest.approx(0.9)
    assert not gates["a channel"]._forward_hooks


@pytest.mark.parametrize("name", ["resnet18_cbam", "resnet18_se"])
def test_movement_is_zero_at_the_identity_start(name: str) -> None:
    for start in ("identity", "random"):
        net = models.build(name, num_classes=3, start=start).eval()
        with measure_movement(models.gates(net), models.gate_gains(net)) as measured, torch.no_grad():
            net(torch.randn(2, 3, 64, 64))
        summary = gather_movement(measured, ProcessGroup()).summary()
        assert (summary["gate_movement_largest"] == 0) == (start == "identity")


def test_a_network_without_attention_has_no_movement() -> None:
    with measure_movement({}, {}) as measured:
        pass
    assert gather_movement(measured, ProcessGroup()).summary() == {}
