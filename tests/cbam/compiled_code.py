"""Compile CBAM with Inductor for CUDA, without a GPU, and count the transfers of the map in the generated code.

    PYTHONPATH=. python tests/cbam/compiled_code.py --shape 512 28 28 --layout NHWC
    PYTHONPATH=. python tests/cbam/compiled_code.py --modules    # the modules of the gates, not the closed form

AOTAutograd differentiates with fake tensors on the CPU, because autograd's engine needs a driver for others. The graphs
are then moved to CUDA, and Inductor generates code for the properties of an H200. A transfer is a load or a store of a
tensor with as many values as the map.
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import compile_fx, config
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from cbam import CBAM, closed_form, maximum

IMAGES = 64
DEVICE = torch.device("cuda:0")
H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=141 * 2**30,
    max_threads_per_block=1024,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=60 * 2**20,
    warp_size=32,
    is_integrated=0,
    gcnArchName="",
)


_OF_INTERFACE: dict[str, object] = {"get_compute_capability": 90, "is_available": True, "is_bf16_supported": True}
_OF_TORCH: dict[str, object] = {
    "get_device_properties": H200,
    "get_device_capability": (9, 0),
    "device_count": 1,
    "current_device": 0,
    "synchronize": None,
}


class Refined(nn.Module):
    """CBAM with one output, as `cbam.CBAMLayer`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cbam = CBAM(channels)
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.cbam.refine(x, cast(Tensor, self.gain))


class _GeneratedError(Exception):
    """Ends Inductor's compilation once the code exists."""


def transfers(shape: tuple[int, int, int], layout: str, modules: bool) -> dict[str, int]:
    """Return the transfers of a map [channels, height, width] in forward and backward."""
    memory_format = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    with FakeTensorMode(), _without_device(modules) as codes:
        x = torch.empty(IMAGES, *shape, dtype=torch.bfloat16).contiguous(memory_format=memory_format).requires_grad_()
        compiled = torch.compile(Refined(shape[0]).train(), backend=_compile(codes), fullgraph=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = compiled(x)
        out.backward(torch.empty_like(out))
    forward, backward = (_transfers(code, IMAGES * math.prod(shape)) for code in codes)
    return {"forward": forward, "backward": backward}


def _returns(value: object) -> Callable[..., Any]:
    return lambda *_, **__: value


@contextmanager
def _without_device(modules: bool) -> Iterator[list[str]]:
    """Make Inductor believe in an H200, and collect the code that it generates."""
    codes: list[str] = []

    def generate(graph: GraphLowering) -> None:
        codes.append(graph.codegen()[0].value)
        raise _GeneratedError

    optimize = compile_fx._recursive_joint_graph_passes

    def optimize_and_move(graph: torch.fx.GraphModule, *arguments: Any, **options: Any) -> torch.fx.GraphModule:
        return _moved(optimize(graph, *arguments, **options))

    driver.set_active(
        SimpleNamespace(
            get_current_target=_returns(GPUTarget("cuda", 90, 32)),
            get_current_device=_returns(0),
            get_current_stream=_returns(0),
        )
    )
    with ExitStack() as stack:
        for interface in (CudaInterface, CudaInterface.Worker):
            stack.enter_context(patch.object(interface, "get_device_properties", staticmethod(_returns(H200))))
            stack.enter_context(patch.object(interface, "current_device", staticmethod(_returns(0))))
        for name, value in _OF_INTERFACE.items():
            stack.enter_context(patch.object(CudaInterface, name, staticmethod(_returns(value))))
        for name, value in _OF_TORCH.items():
            stack.enter_context(patch.object(torch.cuda, name, _returns(value)))
        stack.enter_context(patch.object(GraphLowering, "compile_to_module", generate))
        stack.enter_context(patch.object(compile_fx, "_recursive_joint_graph_passes", optimize_and_move))
        stack.enter_context(patch.object(closed_form, "compiles_modules", _returns(modules)))
        stack.enter_context(patch.object(maximum, "_is_compiling_for_cpu", _returns(False)))
        stack.enter_context(config.patch(force_disable_caches=True, compile_threads=1))
        yield codes


def _compile(codes: list[str]) -> Callable[[torch.fx.GraphModule, list[Tensor]], Any]:
    """Return a backend of torch.compile that ends when the code exists. What it compiles returns empty tensors."""

    def inner(graph: torch.fx.GraphModule, _: list[Tensor], **options: Any) -> Callable[..., list[Tensor | None]]:
        _moved(graph)
        inputs = [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]
        outputs = next(iter(graph.graph.find_nodes(op="output"))).args[0]
        known = len(codes)
        try:
            compile_fx.compile_fx_inner(graph, inputs, **options)
        except Exception:
            if len(codes) == known:
                raise

        def run(_: list[Tensor]) -> list[Tensor | None]:
            values = [None if node is None else node.meta["val"] for node in outputs]
            return [
                torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
                if isinstance(value, Tensor)
                else None
                for value in values
            ]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    return lambda graph, inputs: compile_fx.compile_fx(graph, inputs, inner_compile=inner)


def _moved(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Move a graph of fake tensors to CUDA, in place."""

    def move(value: Any) -> Any:
        if isinstance(value, FakeTensor) and value.device.type == "cpu":
            with value.fake_mode:
                return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)
        return DEVICE if isinstance(value, torch.device) else value

    for node in graph.graph.nodes:
        node.meta["val"] = _pytree.tree_map(move, node.meta.get("val"))
        node.args, node.kwargs = _pytree.tree_map(move, node.args), _pytree.tree_map(move, node.kwargs)
    graph.recompile()
    return graph


def _transfers(code: str, values: int) -> int:
    """Return how many loads and stores of the kernels have a tensor of at least so many values."""
    sizes = _sizes(code)
    kernels = dict(re.findall(r"@triton\.jit\s+def (\w+)(\(.*?)\n'''", code, re.DOTALL))
    count = 0
    for name, given in re.findall(r"(triton_\w+)\.run\((.*), stream=", code):
        parameters = re.findall(r"(\w+)(?: : [\w.]+)?[,)]", kernels[name].partition("\n")[0])
        arguments = re.findall(r"reinterpret_tensor\((\w+)(?:[^()]|\([^()]*\))*\)|(\w+)", given)
        for parameter, (view, whole) in zip(parameters, arguments, strict=False):
            if "ptr" in parameter and sizes[view or whole] >= values:
                count += len(re.findall(rf"tl\.(?:load|store)\({parameter} ", kernels[name]))
    return count


def _sizes(code: str) -> dict[str, int]:
    """Return the number of values of each tensor that the wrapper of the kernels names."""

    def size(shape: str) -> int:
        return math.prod(map(int, re.findall(r"\d+", shape)))

    sizes: dict[str, int] = {}
    for line in code.partition("def call(")[2].splitlines():
        if made := re.match(r"\s*(\w+) = (?:empty_strided_cuda\(|reinterpret_tensor\(\w+, )\(([^()]*)\)", line):
            sizes[made[1]] = size(made[2])
        elif renamed := re.match(r"\s*(\w+) = (\w+); del", line):
            sizes[renamed[1]] = sizes.get(renamed[2], 0)
        elif known := re.match(r"\s*assert_(?:size_stride|tensor_metadata)\((\w+), \(([^()]*)\)", line):
            sizes[known[1]] = size(known[2])
        elif several := re.match(r"\s*assert_size_stride_grouped\(\(([^()]*)\), \((.*?\))\), \(", line):
            shapes = re.findall(r"\(([^()]*)\)", several[2])
            sizes |= dict(zip(several[1].split(", "), map(size, shapes), strict=True))
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", action="store_true")
    parser.add_argument("--layout", choices=("NHWC", "NCHW"), default="NHWC")
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 28, 28))
    given = parser.parse_args()
    print(json.dumps(transfers(tuple(given.shape), given.layout, given.modules)))


if __name__ == "__main__":
    main()
