"""Compile the kernels without a GPU and count what the compiler knows.

    PYTHONPATH=. python tests/cbam/kernel_code.py                 # prints the table of kernel_table.json
    PYTHONPATH=. python tests/cbam/kernel_code.py --write         # writes it there
    PYTHONPATH=. python tests/cbam/kernel_code.py "sm_90 bf16"    # prints the rows of one architecture and dtype

Each launch of a pass is recorded with maps on the meta device and compiled by Triton as it would be on a GPU. The
machine code of all kernels is then disassembled at once: the disassembler takes a quarter of a second to start.
Instructions per element are those that all threads of all blocks execute for a batch
of 64 images, divided by the elements of the map: a loop counts once per iteration, everything else once.
"""

import itertools
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from cbam import fused_passes

TABLE = Path(__file__).with_name("kernel_table.json")
IMAGES = 64
CHANNELS, SIDES = (24, 40, 64, 72, 256, 512, 2048), (7, 14, 28, 56)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LAYOUTS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_Line = tuple[int, str, str]  # address, name and operands of an instruction
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_WIDTHS = {"U8": 1, "U16": 2, "64": 8, "128": 16}


class Code(NamedTuple):
    """What the machine code of a kernel shows.

    Attributes:
        once, repeated: instructions outside and inside of the loop.
        unrolled: iterations of the source's loop in one of the machine code's.
        widths: bytes that a thread loads at once.
    """

    once: int
    repeated: int
    unrolled: int
    registers: int
    spills: bool
    widths: frozenset[int]


class _NoDevice:
    """The parts of Triton's driver that compilation uses."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # Triton keeps what it has compiled for each device

    def get_current_stream(self, _: int) -> int:
        return 0


# Architecture, dtype, channels and sides: everything for one, and what differs for the others.
_CASES = [(90, "bf16", CHANNELS, SIDES)] + [
    (architecture, dtype, (256,), (28,))
    for architecture, dtype in ((80, "bf16"), (90, "fp32"), (90, "fp16"), (100, "bf16"))
]


def table(only: str = "") -> dict[str, dict[str, list[float]]]:
    """Return, for each pass, `CxP: [registers, narrowest load, widest load, instructions per element]`.

    Args:
        only: architecture and dtype of the rows; all if empty.
    """
    found: dict[str, dict[str, list[float]]] = {}
    cases = [case for case in _CASES if only in ("", f"sm_{case[0]} {case[1]}")]
    with ProcessPoolExecutor(2) as pool:
        for part in pool.map(_measure, [(*case, layout) for case in cases for layout in _LAYOUTS]):
            found |= part
    return found


def _measure(case: tuple[int, str, tuple[int, ...], tuple[int, ...], str]) -> dict[str, dict[str, list[float]]]:
    architecture, dtype, channels, sides, layout = case
    driver.set_active(_NoDevice(architecture))
    launches: dict[tuple[int, int], dict[str, list[tuple[Any, int, float]]]] = {}
    for c, side in itertools.product(channels, sides):
        x = torch.empty(IMAGES, c, side, side, device="meta", dtype=DTYPES[dtype])
        launches[c, side] = _launches(x.to(memory_format=_LAYOUTS[layout]))
    kernels = [kernel for of_size in launches.values() for each in of_size.values() for kernel, _, _ in each]
    codes = _codes({kernel.hash: kernel for kernel in kernels}, architecture)
    rows: dict[str, dict[str, list[float]]] = {}
    for (c, side), of_size in launches.items():
        for name, each in of_size.items():
            if any(codes[kernel.hash].spills for kernel, _, _ in each):
                raise AssertionError(f"{name} spills registers: sm_{architecture} {dtype} {layout} {c}x{side}")
            main = codes[each[0][0].hash]
            executed = sum(_executed(codes[kernel.hash], blocks, trips) for kernel, blocks, trips in each)
            row = [main.registers, min(main.widths), max(main.widths), round(executed / (IMAGES * c * side**2), 2)]
            rows.setdefault(f"sm_{architecture} {dtype} {layout} {name}", {})[f"{c}x{side * side}"] = row
    return rows


def _launches(x: Tensor) -> dict[str, list[tuple[Any, int, float]]]:
    """Return the compiled kernel, the number of blocks and the iterations of the loop of each launch of each pass."""
    found: list[tuple[Any, int, float]] = []

    def record(kernel: Any, grid: tuple[int, int, int], *arguments: Any, **constants: Any) -> None:
        code = kernel.warmup(*arguments, grid=grid, num_warps=1, **constants)
        named = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
        found.append((code, grid[0] * grid[1] * grid[2], _trips(kernel.__name__, named)))

    n, c, h, w = x.shape
    gate, spatial = torch.empty(n, c, device="meta"), torch.empty(n, 1, h, w, device="meta")
    planes, channel = torch.empty(n, 2, h, w, device="meta"), torch.empty(n, h, w, device="meta", dtype=torch.int32)
    pooled, position = torch.empty(2, n, c, device="meta"), torch.empty(n, c, device="meta", dtype=torch.int32)
    passes = {
        "pool_positions": (x,),
        "pool_channels": (x, gate, x),
        "scale": (x, gate, spatial, x),
        "factor_gradients": (x, x, gate, spatial, x),
        "gate_gradient": (x, planes, channel),
        "input_gradient": (x, gate, spatial, planes, channel, pooled, position, x),
    }
    launches = {}
    fused_passes._launch = record
    for name, arguments in passes.items():
        getattr(fused_passes, name)(*arguments)
        launches[name], found = found, []
    return launches


def _trips(kernel: str, named: dict[str, Any]) -> float:
    """Return the iterations of a kernel's loop, in the mean of its blocks."""
    if kernel in ("scale_kernel", "input_gradient_kernel"):
        return 0
    if kernel == "combine_kernel":
        return int(named["parts"])
    tile = named["LANES" if "lanes" in kernel else "ROWS"]
    length = named["lanes"] if "lanes" in kernel else named["rows"] // named["STEP"]
    parts = triton.cdiv(length, named.get("part", length))
    return triton.cdiv(length, tile) / parts


def _executed(code: Code, blocks: int, trips: float) -> float:
    """Return the instructions of all threads. The code after an unrolled loop, for the rest, counts as executed."""
    passes = trips / code.unrolled if trips >= code.unrolled else 0
    return 32 * blocks * (code.once + code.repeated * passes)


def _codes(kernels: dict[str, Any], architecture: int) -> dict[str, Code]:
    instructions = [_instructions(kernel.asm["cubin"]) for kernel in kernels.values()]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(instructions))
        file.flush()
        variant = "a" if architecture >= 90 else ""
        text = _output("nvdisasm", "--binary", f"SM{architecture}{variant}", file.name)
    lines = iter([(int(address, 16), name, rest) for address, name, rest in _INSTRUCTION.findall(text)])
    return {
        key: _code(kernel, list(itertools.islice(lines, len(code) // 16)))
        for (key, kernel), code in zip(kernels.items(), instructions, strict=True)
    }


def _instructions(cubin: bytes) -> bytes:
    """Return the section with the instructions, of 16 bytes each, from the ELF file of a kernel."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<3H", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + size * number) for number in range(count)]
    (code,) = (
        cubin[start : start + length]
        for name, _, _, _, start, length in sections
        if cubin.startswith(b".text.", sections[names][4] + name)
    )
    return code


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def _code(kernel: Any, lines: list[_Line]) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        (registers,) = re.findall(r"REG:(\d+)", _output("cuobjdump", "-res-usage", file.name))
    end = max(address for address, name, _ in lines if name == "EXIT")
    lines = [line for line in lines if line[0] <= end]
    loops = list(_loops(lines))
    inside = [line for line in lines if any(low <= line[0] <= high for low, high in loops)]
    loads = sum(name.startswith("LDG") for _, name, _ in inside)
    written = _loads_in_loops(kernel.asm["ptx"])
    widths = {_WIDTHS.get(name.split(".")[-1], 4) for _, name, _ in lines if name.startswith("LDG")}
    return Code(
        once=len(lines) - len(inside),
        repeated=len(inside),
        unrolled=max(1, round(loads / written)) if written else 1,
        registers=int(registers),
        spills=any(name.startswith(("STL", "LDL")) for _, name, _ in lines),
        widths=frozenset(widths),
    )


def _loops(lines: list[_Line]) -> Iterator[tuple[int, int]]:
    """Yield the first and last address of each loop: a branch to an earlier address."""
    for address, name, rest in lines:
        target = re.search(r"0x([0-9a-f]+)", rest) if name.startswith("BRA") else None
        if target and int(target[1], 16) < address:
            yield int(target[1], 16), address


def _loads_in_loops(ptx: str) -> int:
    """Return the loads in loops before the assembler unrolls them."""
    labels, count = {}, 0
    lines = ptx.splitlines()
    for number, line in enumerate(lines):
        if label := re.match(r"\s*(\$L__BB\w+):", line):
            labels[label[1]] = number
        branch = re.search(r"bra(?:\.uni)?\s+(\$L__BB\w+)", line)
        if branch and branch[1] in labels:
            count += sum("ld.global" in inner for inner in lines[labels[branch[1]] : number])
    return count


if __name__ == "__main__":
    found = table(*(argument for argument in sys.argv[1:] if argument != "--write"))
    text = "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in sorted(found.items())) + "\n}\n"
    if "--write" in sys.argv:
        TABLE.write_text(text)
    else:
        print(text)
