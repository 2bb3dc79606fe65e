"""The fused CBAM against the plain one in float64: by Triton's interpreter, or on CUDA where there is one.

That the interpreter runs a kernel does not show that it compiles: it is compiled for Hopper too, which needs no GPU.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import models
from cbam import CBAM, fused
from tests.commands import arguments, assert_one_line
from tests.conftest import Command
from tests.processes import REPOSITORY

pytest.importorskip("triton", reason="the kernels need Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Less than a tile, none whole, more than one; odd sides, one position, one channel.
SHAPES = [(2, 8, 7, 7), (2, 70, 9, 8), (3, 130, 5, 13), (2, 16, 1, 1), (1, 1, 3, 3)]
GAIN = 4.0


def refine(module: CBAM, x: torch.Tensor, gain: torch.Tensor | float) -> torch.Tensor:
    return fused.refine(x, module.ca.shared_MLP, module.sa.conv, gain)


def cbam(planes: int, **options: object) -> CBAM:
    torch.manual_seed(51)
    module = CBAM(planes, **options).to(DEVICE)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return module


def feature_map(kind: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(52)
    values = {
        "random": torch.randn(shape),
        "zeros": torch.zeros(shape),
        "ties": torch.randint(0, 3, shape).float(),
        "negative": -1 - torch.rand(shape),
    }
    return values[kind].to(DEVICE, dtype)


def results(module: CBAM, x: Tensor, gradient: Tensor, fuse: bool) -> list[Tensor]:
    """The refined map, and the gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    refined = (refine if fuse else CBAM.refine)(module, x, GAIN)
    refined.backward(gradient)
    return [refined.detach(), *(gradient_of(tensor) for tensor in (x, *module.parameters()))]


def gradient_of(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def is_near(ours: list[Tensor], reference: list[Tensor], tolerance: float) -> bool:
    """Each relative to the reference's length; a reference of zeros is to be met exactly."""
    lengths = [tensor.double().norm().item() for tensor in reference]
    distances = [(a.double() - b.double()).norm().item() for a, b in zip(ours, reference, strict=True)]
    return all(d <= tolerance * length for d, length in zip(distances, lengths, strict=True))


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)], ids=str
)
@pytest.mark.parametrize("kind", ["random", "zeros", "ties", "negative"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_the_plain_module_in_float64(
    shape: tuple[int, ...], kind: str, dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format
) -> None:
    module = cbam(shape[1], mlp_bias=kind == "ties", kernel_size=3 if kind == "negative" else 7)
    x = feature_map(kind, shape, dtype).contiguous(memory_format=memory_format)
    gradient = torch.randn(shape).to(DEVICE, dtype)
    ours = results(module, x, gradient, fuse=True)
    reference = results(copy.deepcopy(module).double(), x.double(), gradient.double(), fuse=False)
    assert is_near(ours, reference, tolerance)
    assert ours[0].dtype == dtype
    assert ours[0].stride() == x.stride()


def test_the_same_input_gives_the_same_bits_twice() -> None:
    module, x = cbam(70), feature_map("random", (2, 70, 9, 8))
    twice = [results(module, x, x, fuse=True) for _ in range(2)]
    assert all(map(torch.equal, *twice))


def test_the_identity_start_is_exact() -> None:
    module, x = CBAM(70).to(DEVICE), feature_map("random", (2, 70, 9, 8))
    gain = 1 / module.zero_gates_()
    assert torch.equal(refine(module, x, gain), x)


def test_a_map_that_is_dense_in_neither_order_is_taken_too() -> None:
    module, x = cbam(8), feature_map("random", (2, 8, 9, 7))[:, :, ::2]
    ours, plain = (results(module, x, torch.ones_like(x), fuse) for fuse in (True, False))
    assert is_near(ours, plain, 1e-5)


def test_no_feature_map_is_kept_but_the_input() -> None:
    module, x = cbam(64), feature_map("random", (2, 64, 16, 16)).requires_grad_()
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        refined = refine(module, x, GAIN)
    del kept[x.untyped_storage().data_ptr()]
    assert sum(kept.values()) < refined.numel() / 4


def test_torch_finds_the_operator_well_formed() -> None:
    """Its schema, its shapes without data, its gradients' registration, and that it can be compiled."""
    module, x = cbam(8, mlp_bias=True), feature_map("random", (2, 8, 5, 6)).requires_grad_()
    first, _, last = module.ca.shared_MLP
    gain = torch.tensor(GAIN, device=DEVICE)
    arguments = (x, first.weight, first.bias, last.weight, last.bias, module.sa.conv.weight, gain)
    torch.library.opcheck(fused._refine, arguments)


def test_under_autocast_the_gates_stay_fp32() -> None:
    module, x = cbam(8), feature_map("random", (2, 8, 5, 6), torch.bfloat16)
    outside = results(module, x, x, fuse=True)
    with torch.autocast(DEVICE, torch.bfloat16):
        within = results(module, x, x, fuse=True)
    assert all(map(torch.equal, outside, within))


def test_compiled_it_computes_the_same() -> None:
    module, x = cbam(8), feature_map("random", (2, 8, 5, 6))
    compiled = torch.compile(lambda x: refine(module, x, GAIN) * 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), refine(module, x, GAIN))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_data_parallel_training_meets_its_gradients() -> None:
    class Refine(torch.nn.Module):
        def __init__(self, inner: CBAM) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return refine(self.inner, x, GAIN)

    module, x = cbam(8), feature_map("random", (2, 8, 5, 6))
    expected = results(module, x, torch.ones_like(x), fuse=True)[2:]
    module.zero_grad()
    DistributedDataParallel(Refine(module))(x).sum().backward()
    assert all(torch.equal(parameter.grad, e) for parameter, e in zip(module.parameters(), expected, strict=True))


def test_activation_checkpointing_changes_nothing() -> None:
    module, x = cbam(8), feature_map("random", (2, 8, 5, 6))
    expected = results(module, x, torch.ones_like(x), fuse=True)
    x = x.detach().requires_grad_()
    module.zero_grad()
    checkpoint(refine, module, x, GAIN, use_reentrant=False).sum().backward()
    assert all(map(torch.equal, (x.grad, *(parameter.grad for parameter in module.parameters())), expected[1:]))


@pytest.mark.parametrize("shape", [(5, 4, 6), (2, 6, 4, 6), (2, 5, 4, 6, 1), (2, 5, 0, 6)], ids=str)
def test_what_is_no_feature_map_of_the_module_is_a_clear_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        refine(CBAM(5), torch.ones(shape), GAIN)


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
def test_a_kind_of_cbam_that_the_kernels_do_not_compute_is_refused(options: dict[str, object]) -> None:
    assert CBAM(8).is_fusible
    assert not CBAM(8, **options).is_fusible
    with pytest.raises(models.ModelError, match=r"set runtime\.fused_cbam=false"):
        models.fuse(models.build("resnet18_cbam", num_classes=10, **options))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The MLPs that the kernels were asked to compute with; they are taken to accept every input."""
    found: list[nn.Module] = []
    refine = fused.refine

    def note(x: Tensor, mlp: nn.Sequential, conv: nn.Conv2d, gain: Tensor | float) -> Tensor:
        found.append(mlp)
        return refine(x, mlp, conv, gain)

    monkeypatch.setattr(fused, "refine", note)
    monkeypatch.setattr(fused, "accepts", lambda *_: True)
    return found


def test_a_network_that_was_told_so_trains_by_the_kernels_and_is_evaluated_without(calls: list[nn.Module]) -> None:
    net = models.build("resnet18_cbam", num_classes=10).to(DEVICE)
    images = torch.randn(2, 3, 32, 32, device=DEVICE)
    plain = net.train()(images)
    assert not calls
    models.fuse(net)
    torch.testing.assert_close(net(images), plain, rtol=1e-2, atol=1e-3)  # norms over two images: rounding grows
    assert len(calls) == 8
    net.eval()(images)
    assert len(calls) == 8


def test_training_asks_for_them_by_a_key_on_cuda_alone(command: Command, folders: Path) -> None:
    given = arguments(folders, "model=mobilenet_v3_small_cbam", "model.weights=null", "runtime.fused_cbam=true")
    assert_one_line(command("train.py", *given), "runtime.fused_cbam=true needs CUDA")
    assert_one_line(command("train.py", *given, "attention.order=parallel"), "set runtime.fused_cbam=false")


@pytest.mark.skipif(DEVICE == "cuda", reason="on CUDA they are accepted")
def test_the_cpu_is_left_to_the_plain_module() -> None:
    assert not fused.accepts(torch.ones(1, 8, 2, 2), GAIN)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_what_is_accepted_on_cuda() -> None:
    x = torch.ones(1, 8, 2, 2, device=DEVICE)
    assert fused.accepts(x, GAIN)
    assert not fused.accepts(x.double(), GAIN)
    assert not fused.accepts(x[:0], GAIN)
    assert not fused.accepts(x, torch.ones((), device=DEVICE, requires_grad=True))
    module = CBAM(8).to(DEVICE)
    module.fused = True
    assert "cbam_refine" in module.refine(x).grad_fn.name()


@pytest.mark.parametrize("layout", ["NHWC", "NHWC, odd sides", "NCHW"])
def test_every_kernel_compiles_for_hopper_with_wide_loads_and_spills_no_register(layout: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": ".", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "tests/cbam/compile_kernels.py", layout],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    for line in lines:
        kernel, spilled, narrow = line.split()
        assert spilled == "0", kernel
        assert narrow == "0", kernel
