"""The passes that torch.compile traces, against autograd in float64. test_compiled_code.py counts their transfers."""

import copy

import pytest
import torch

from cbam import CBAM, closed_form, traced_passes
from tests.cbam.steps import DEVICE, GAIN, autograd_results, cbam, feature_map, is_near, results


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(closed_form, "_passes", lambda _: traced_passes)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("kind", ["random", "zeros", "ties", "negative", "constant"])
@pytest.mark.parametrize("shape", [(2, 70, 9, 8), (2, 16, 1, 1), (1, 1, 3, 3)], ids=str)
def test_outputs_and_gradients_match_float64_autograd(
    shape: tuple[int, ...], kind: str, dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format
) -> None:
    module = cbam(shape[1], mlp_bias=kind == "ties")
    x = feature_map(kind, shape, dtype).contiguous(memory_format=memory_format)
    gradient = torch.randn(shape).to(DEVICE, dtype)
    ours = results(module, x, gradient, fused=False)
    exact = autograd_results(copy.deepcopy(module).double(), x.double(), gradient.double())
    assert is_near(ours, exact, tolerance)
    assert ours[0].dtype == dtype
    assert ours[0].stride() == x.stride()


def test_float64_stays_float64() -> None:
    module, x = cbam(8).double(), feature_map("random", (2, 8, 5, 6)).double()
    assert is_near(results(module, x, x, fused=False), autograd_results(module, x, x), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_identity_start_is_exact(dtype: torch.dtype) -> None:
    module, x = CBAM(70).to(DEVICE), feature_map("random", (2, 70, 9, 8), dtype)
    gain = 1 / module.zero_gates_()
    assert gain == GAIN
    assert torch.equal(module._refine_in_closed_form(x, gain, False), x)
