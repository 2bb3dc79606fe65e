"""Compile the kernels for Hopper with bf16 maps, without a GPU: `python tests/cbam/compile_kernels.py NHWC`.

The layout is NCHW or NHWC, with numbers of channels and positions divisible by 16, or `NHWC, odd sides`, where only the
number of channels is. Prints, for each kernel, the bytes of spilled registers and the number of loads of a single bf16.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cbam import kernels

MAPS = ("x", "gradient", "scaled", "input_gradient")
POSITIONS = ("position", "channel")
INTEGERS = ("channels", "positions", "stride_c", "stride_p")


def compile_for_hopper(kernel: triton.JITFunction, layout: str) -> str:
    """Return the PTX of a kernel, specialized as Triton specializes it when it is called."""
    adjacent = "stride_p" if layout == "NCHW" else "stride_c"
    odd = {adjacent} | ({"positions"} if layout.endswith("odd sides") else set())
    signature = dict.fromkeys(kernel.arg_names, "*fp32")
    signature |= {name: "*bf16" for name in MAPS if name in signature}
    signature |= {name: "*i32" for name in POSITIONS if name in signature}
    signature |= dict.fromkeys(INTEGERS, "i32")
    signature[adjacent] = "constexpr"
    divisible = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in odd}
    source = ASTSource(kernel, signature, {adjacent: 1}, divisible)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


def spilled(ptx: str) -> str:
    """Return the bytes of registers that the assembler spills to memory."""
    (assembler,) = (Path(triton.__file__).parent / "backends/nvidia/bin").glob("ptxas")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [assembler, "-arch=sm_90a", "-v", file, "-o", file.with_suffix(".cubin")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (count,) = re.findall(r"(\d+) bytes spill stores", report)
    return str(count)


if __name__ == "__main__":
    for name, kernel in vars(kernels).items():
        if name.endswith("_kernel"):
            ptx = compile_for_hopper(kernel, sys.argv[1])
            print(name, spilled(ptx), len(re.findall(r"ld\.global\S*\.b16", ptx)))
