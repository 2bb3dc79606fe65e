"""Closed-form CBAM on maps of odd sizes and of any strides. The kernels run on CUDA, or in Triton's interpreter."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.cbam.steps import DEVICE, autograd_results, cbam, feature_map, is_near, results

pytest.importorskip("triton", reason="the kernels need Triton")
pytestmark = pytest.mark.usefixtures("fast_interpreter")

both_passes = pytest.mark.parametrize("fused", [False, True], ids=["operations", "kernels"])

# Channels of the MobileNets, not divisible by 16; maps of one position, and of an odd number.
SHAPES = [(1, 24, 7, 7), (2, 40, 13, 17), (1, 72, 13, 17), (1, 480, 7, 7), (1, 960, 1, 1)]

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "columns": lambda x: x[..., ::2],
    "channels": lambda x: x[:, 1:],
    "channels of channels_last": lambda x: x.contiguous(memory_format=torch.channels_last)[:, 1:],
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "transposed": lambda x: x.mT,
    "expanded batch": lambda x: x[:1].expand(3, -1, -1, -1),
    "expanded channels": lambda x: x[:, :1].expand(-1, 8, -1, -1),
    "expanded positions": lambda x: x[:, :, :1].expand(-1, -1, 4, -1),
}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@both_passes
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_sizes_match_float64_autograd(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format, fused: bool
) -> None:
    if dtype == torch.bfloat16 and not fused:
        pytest.skip("the operations round the map between the gates")
    module = cbam(shape[1])
    x = feature_map("random", shape, dtype).contiguous(memory_format=memory_format)
    exact = autograd_results(copy.deepcopy(module).double(), x.double(), x.double())
    assert is_near(results(module, x, x, fused), exact, tolerance)


@both_passes
@pytest.mark.parametrize("name", VIEWS)
def test_maps_and_gradients_of_any_strides_are_accepted(name: str, fused: bool) -> None:
    x = VIEWS[name](feature_map("random", (3, 9, 5, 7)))
    module = cbam(x.shape[1])
    exact = autograd_results(copy.deepcopy(module).double(), x.double(), x.double())
    assert is_near(results(module, x, x, fused), exact, 1e-5)
    expanded = torch.ones((), device=DEVICE).expand_as(x)
    assert is_near(results(module, x, expanded, fused), autograd_results(module, x, expanded), 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_offsets_beyond_32_bits(memory_format: torch.memory_format) -> None:
    """The last of three images of 2^30 values starts at the offset 2^31."""
    from cbam import fused_passes

    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("needs 24 GB of free memory")
    n, c, h, w = shape = 3, 4096, 512, 512
    x = torch.empty(shape, device=DEVICE, dtype=torch.bfloat16, memory_format=memory_format).normal_()
    gate, spatial = torch.rand(n, c, device=DEVICE), torch.rand(n, 1, h, w, device=DEVICE)
    whole, last = torch.empty_like(x), x[2:].clone(memory_format=torch.preserve_format)
    out = torch.empty_like(last)
    pooled, position = fused_passes.pool_positions(x)
    torch.testing.assert_close(pooled[:, 2:], fused_passes.pool_positions(last)[0])
    assert torch.equal(position[2:], fused_passes.pool_positions(last)[1])
    planes, channel = fused_passes.pool_channels(x, gate, whole)
    torch.testing.assert_close(planes[2:], fused_passes.pool_channels(last, gate[2:], out)[0])
    fused_passes.scale(x, gate, spatial, whole)
    fused_passes.scale(last, gate[2:], spatial[2:], out)
    assert torch.equal(whole[2:], out)
    for of_all, of_last in zip(
        fused_passes.factor_gradients(x, x, gate, spatial, whole),
        fused_passes.factor_gradients(last, last, gate[2:], spatial[2:], out),
        strict=True,
    ):
        torch.testing.assert_close(of_all[2:], of_last, rtol=1e-3, atol=1e-2)  # the order of a sum depends on the batch
    of_all, of_last = (
        fused_passes.gate_gradient(x, planes, channel)[2:],
        fused_passes.gate_gradient(last, planes[2:], channel[2:]),
    )
    torch.testing.assert_close(of_all, of_last, rtol=1e-3, atol=1e-2)
    fused_passes.input_gradient(x, gate, spatial, planes, channel, pooled, position, whole)
    fused_passes.input_gradient(
        last, gate[2:], spatial[2:], planes[2:], channel[2:], pooled[:, 2:].contiguous(), position[2:], out
    )
    assert torch.equal(whole[2:], out)
