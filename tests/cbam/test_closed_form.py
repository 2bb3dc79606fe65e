"""Closed-form CBAM, as PyTorch operations and as Triton kernels, against autograd in float64.

The kernels run on CUDA if available, otherwise in Triton's interpreter. The interpreter does not show that a kernel
compiles; test_kernel_code.py compiles them, which needs no GPU.
"""

import copy
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import models
from cbam import CBAM, closed_form
from tests.cbam.steps import DEVICE, GAIN, autograd_results, backward, cbam, feature_map, is_near, results
from tests.commands import arguments, assert_one_line
from tests.conftest import Command

pytest.importorskip("triton", reason="the kernels need Triton")
pytestmark = pytest.mark.usefixtures("fast_interpreter")

# Smaller than a tile, several tiles in whole vectors and in parts of vectors, one position, one channel.
SHAPES = [(2, 8, 7, 7), (2, 70, 9, 8), (2, 70, 5, 13), (2, 16, 1, 1), (1, 1, 3, 3)]

# Values without a structure, and with equal maxima, at each size; others at two sizes.
INPUTS = [
    *itertools.product(SHAPES, ["random", "ties"]),
    *itertools.product([SHAPES[0], SHAPES[2]], ["zeros", "negative", "constant"]),
]

both_passes = pytest.mark.parametrize("fused", [False, True], ids=["operations", "kernels"])


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("fused", "dtype", "tolerance"),
    [(False, torch.float32, 1e-5), (True, torch.float32, 1e-5), (True, torch.bfloat16, 2e-2)],
    ids=str,
)
@pytest.mark.parametrize(("shape", "kind"), INPUTS, ids=str)
def test_outputs_and_gradients_match_float64_autograd(
    shape: tuple[int, ...],
    kind: str,
    fused: bool,
    dtype: torch.dtype,
    tolerance: float,
    memory_format: torch.memory_format,
) -> None:
    module = cbam(shape[1], mlp_bias=kind == "ties", kernel_size=3 if kind == "negative" else 7)
    x = feature_map(kind, shape, dtype).contiguous(memory_format=memory_format)
    gradient = torch.randn(shape).to(DEVICE, dtype)
    ours = results(module, x, gradient, fused)
    reference = autograd_results(copy.deepcopy(module).double(), x.double(), gradient.double())
    assert is_near(ours, reference, tolerance)
    assert ours[0].dtype == dtype
    assert ours[0].stride() == x.stride()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float16_outputs_and_gradients_match_float64_autograd(shape: tuple[int, ...]) -> None:
    """The kernels compute in float32, whatever they load."""
    module, x = cbam(shape[1]), feature_map("random", shape, torch.float16)
    reference = autograd_results(copy.deepcopy(module).double(), x.double(), x.double())
    assert is_near(results(module, x, x, fused=True), reference, 2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_half_precision_error_is_at_most_autograds(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Both round the map between the gates, which ties nearly equal channels; the kernels do not."""
    module, x = cbam(shape[1]), feature_map("random", shape, dtype)
    reference = autograd_results(copy.deepcopy(module).double(), x.double(), x.double())
    autograd = autograd_results(copy.deepcopy(module).to(dtype), x, x)
    for ours, theirs, exact in zip(results(module, x, x, fused=False), autograd, reference, strict=True):
        error, their_error = ((tensor.double() - exact).norm() for tensor in (ours, theirs))
        assert error <= 1.5 * their_error + 0.05 * exact.norm()


@both_passes
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_a_nan_stays_visible(fused: bool, memory_format: torch.memory_format) -> None:
    module, x = cbam(8), feature_map("random", (2, 8, 5, 6)).contiguous(memory_format=memory_format)
    x[0, 3, 2, 2] = torch.nan
    refined, of_input, *_ = results(module, x, torch.ones_like(x), fused)
    for result in (refined, of_input):
        assert result[0].isnan().all()
        assert not result[1].isnan().any()


def test_every_row_and_lane_is_pooled_once() -> None:
    """Also where rows do not consist of whole vectors, and where they are divided into parts."""
    from cbam import fused_passes

    for shape in ((1, 8, 7, 7), (1, 16, 15, 15), (1, 272, 3, 3), (2, 6, 5, 7), (1, 2, 1, 3)):
        x = feature_map("ties", shape)
        x[:, -1, -1, -1] = 7  # the maximum is the last value
        for memory_format in (torch.contiguous_format, torch.channels_last):
            for dtype in (torch.float32, torch.bfloat16):
                seen = x.to(dtype).contiguous(memory_format=memory_format)
                gate = torch.arange(1.0, shape[1] + 1, device=DEVICE).repeat(shape[0], 1)
                (mean, maximum), position = fused_passes.pool_positions(seen)
                planes, channel = fused_passes.pool_channels(seen, gate, seen)
                expected, at = x.flatten(2).max(2)
                assert torch.equal(maximum, expected)
                assert torch.equal(position, at.int())
                torch.testing.assert_close(mean, x.mean((2, 3)))
                scaled, at = (x * gate[..., None, None]).max(1)
                assert torch.equal(planes[:, 1], scaled)
                assert torch.equal(channel, at.int())
                torch.testing.assert_close(planes[:, 0], (x * gate[..., None, None]).mean(1))


@both_passes
def test_the_same_input_gives_the_same_bits_twice(fused: bool) -> None:
    module, x = cbam(70), feature_map("random", (2, 70, 9, 8))
    twice = [results(module, x, x, fused) for _ in range(2)]
    assert all(map(torch.equal, *twice))


@both_passes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_identity_start_is_exact(fused: bool, dtype: torch.dtype) -> None:
    module, x = CBAM(70).to(DEVICE), feature_map("random", (2, 70, 9, 8), dtype)
    gain = 1 / module.zero_gates_()
    assert torch.equal(module._refine_in_closed_form(x, gain, fused), x)


@both_passes
def test_no_feature_map_is_kept_but_the_input(fused: bool) -> None:
    module, x = cbam(256), feature_map("random", (1, 256, 16, 16)).requires_grad_()
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *module.parameters())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        refined = module._refine_in_closed_form(x, GAIN, fused)
    assert sum(kept.values()) < 0.1 * refined.untyped_storage().nbytes()


@both_passes
def test_torch_finds_the_operators_well_formed(fused: bool) -> None:
    """Checks their schemas, their shapes on the meta device and their compilation."""
    module, x = cbam(8, mlp_bias=True), feature_map("random", (2, 8, 5, 6))
    first, _, last = (layer.requires_grad_(False) for layer in module.ca.shared_MLP)
    kernel, gain = module.sa.conv.weight.detach(), torch.tensor(GAIN, device=DEVICE)
    for scale in (None, torch.tensor([0.5, 2.0], device=DEVICE)):
        arguments = x, first.weight, first.bias, last.weight, last.bias, kernel, scale, gain, fused
        torch.library.opcheck(closed_form._refine, arguments)
        _, gate, spatial_gate, _, *kept = closed_form._refine(*arguments)
        gates = gate, spatial_gate
        torch.library.opcheck(
            closed_form._refine_backward, (x, x, first.weight, last.weight, kernel, scale, gain, *gates, *kept, fused)
        )


@both_passes
def test_under_autocast_the_gates_stay_fp32(fused: bool) -> None:
    module, x = cbam(8), feature_map("random", (2, 8, 5, 6), torch.bfloat16)
    outside = results(module, x, x, fused)
    with torch.autocast(DEVICE, torch.bfloat16):
        within = results(module, x, x, fused)
    assert all(map(torch.equal, outside, within))


@both_passes
def test_compiled_it_computes_the_same(fused: bool) -> None:
    if not fused and not closed_form.IS_TRACEABLE:
        pytest.skip("torch traces it wrongly; the modules are compiled instead")
    module, x = cbam(8), feature_map("random", (2, 8, 5, 6))
    refine = module._refine_in_closed_form
    expected = backward(module, x, x, lambda x: refine(x, GAIN, fused) * 1)
    compiled = torch.compile(lambda x: refine(x, GAIN, fused) * 1, backend="aot_eager", fullgraph=True)
    found = backward(module, x, x, compiled)
    assert all(map(torch.equal, found, expected)) if fused else is_near(found, expected, 1e-5)


@both_passes
def test_a_second_derivative_is_refused(fused: bool) -> None:
    module, x = cbam(8), feature_map("random", (2, 8, 5, 6)).requires_grad_()
    refined = module._refine_in_closed_form(x, GAIN, fused)
    with pytest.raises(RuntimeError, match="no second derivative; to use create_graph=True, set has_closed_form=False"):
        torch.autograd.grad(refined.sum(), x, create_graph=True)


def test_closed_form_is_default_without_hooks() -> None:
    module, x = cbam(8), feature_map("random", (2, 8, 5, 6)).requires_grad_()
    refined = module.refine(x)
    assert type(refined.grad_fn).__name__ == "_RefineBackward"
    torch.testing.assert_close(module.eval().refine(x), refined)
    called: list[str] = []
    module.train().sa.register_forward_hook(lambda *_: called.append("sa"))
    module.refine(x)
    assert called == ["sa"]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@both_passes
@pytest.mark.usefixtures("process_group")
def test_data_parallel_training_meets_its_gradients(fused: bool) -> None:
    class Refine(torch.nn.Module):
        def __init__(self, inner: CBAM) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner._refine_in_closed_form(x, GAIN, fused)

    module, x = cbam(8), feature_map("random", (2, 8, 5, 6))
    expected = results(module, x, torch.ones_like(x), fused)[2:]
    module.zero_grad()
    DistributedDataParallel(Refine(module))(x).sum().backward()
    assert all(torch.equal(parameter.grad, e) for parameter, e in zip(module.parameters(), expected, strict=True))


@both_passes
def test_activation_checkpointing_changes_nothing(fused: bool) -> None:
    module, x = cbam(8), feature_map("random", (2, 8, 5, 6))
    expected = results(module, x, torch.ones_like(x), fused)
    x = x.detach().requires_grad_()
    module.zero_grad()
    checkpoint(module._refine_in_closed_form, x, GAIN, fused, use_reentrant=False).sum().backward()
    assert all(map(torch.equal, (x.grad, *(parameter.grad for parameter in module.parameters())), expected[1:]))


@pytest.mark.parametrize("shape", [(5, 4, 6), (2, 6, 4, 6), (2, 5, 4, 6, 1), (2, 5, 0, 6)], ids=str)
def test_wrong_inputs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        CBAM(5)._refine_in_closed_form(torch.ones(shape), GAIN, False)


@pytest.mark.parametrize(
    "options",
    [
        {"order": "parallel"},
        {"order": "channel"},
        {"order": "spatial"},
        {"pooling": "avg"},
        {"spatial_pooling": "conv"},
        {"spatial_norm": True},
    ],
    ids=str,
)
def test_unsupported_variant_is_refused_by_kernels(options: dict[str, object]) -> None:
    assert CBAM(8).has_closed_form
    assert not CBAM(8, **options).has_closed_form
    with pytest.raises(models.ModelError, match=r"set runtime\.fused_cbam=false"):
        models.fuse(models.build("resnet18_cbam", num_classes=10, **options))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record, for each closed-form CBAM, whether it used the kernels, which are made to accept every input."""
    found: list[bool] = []
    refine = closed_form.refine

    def note(*arguments: Any) -> Tensor:
        found.append(arguments[-1])
        return refine(*arguments)

    monkeypatch.setattr(closed_form, "refine", note)
    monkeypatch.setattr(closed_form, "kernels_accept", lambda _: True)
    return found


def test_fused_network_uses_kernels_in_training_only(calls: list[bool]) -> None:
    net = models.build("resnet18_cbam", num_classes=10).to(DEVICE)
    images = torch.randn(2, 3, 32, 32, device=DEVICE)
    plain = net.train()(images)
    assert calls == 8 * [False]
    models.fuse(net)
    torch.testing.assert_close(net(images), plain, rtol=1e-2, atol=1e-3)  # norms over two images amplify rounding
    assert calls == 8 * [False] + 8 * [True]
    net.eval()(images)
    assert len(calls) == 16


@pytest.mark.skipif(importlib.util.find_spec("hydra") is None, reason="train.py needs Hydra")
def test_training_asks_for_them_by_a_key_on_cuda_alone(command: Command, folders: Path) -> None:
    given = arguments(folders, "model=mobilenet_v3_small_cbam", "model.weights=null", "runtime.fused_cbam=true")
    assert_one_line(command("train.py", *given), "runtime.fused_cbam=true needs CUDA")
    assert_one_line(command("train.py", *given, "attention.order=parallel"), "set runtime.fused_cbam=false")


@pytest.mark.skipif(DEVICE == "cuda", reason="on CUDA they are accepted")
def test_the_cpu_is_left_to_the_operations() -> None:
    assert not closed_form.kernels_accept(torch.ones(1, 8, 2, 2))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_what_the_kernels_accept_on_cuda() -> None:
    x = torch.ones(1, 8, 2, 2, device=DEVICE)
    assert closed_form.kernels_accept(x)
    assert not closed_form.kernels_accept(x.double())


def test_learned_gain_and_empty_batch_use_autograd() -> None:
    x = torch.ones(1, 8, 2, 2)
    assert closed_form.accepts(x, GAIN)
    assert not closed_form.accepts(x[:0], GAIN)
    assert not closed_form.accepts(x, torch.ones((), requires_grad=True))
