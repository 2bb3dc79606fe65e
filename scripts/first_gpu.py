"""Measure on one GPU, in under ten minutes, whether CBAM's kernels are correct and how fast they are.

    python scripts/first_gpu.py --images /path/to/photographs
    python scripts/first_gpu.py --images /path/to/photographs --name h200 --sections results times

Writes results/benchmark/NAME.json and .md, and prints the same rows. The sections results, times and convolution need
only torch. With --device cpu, everything runs on small sizes, and the kernels in Triton's interpreter.
"""

import argparse
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

# After which no further network starts, and no further test. torch.compile takes over a minute for a network.
MINUTES = {"networks": 6.5, "tests": 9.2}
SECTIONS = ("results", "times", "convolution", "networks", "tests")
WIDTH = 200  # characters of a printed line


def main(arguments: argparse.Namespace) -> None:
    """Measure the sections, write the report and print it."""
    import torch

    from benchmarks import gpu_tests, kernels, report

    if "networks" in arguments.sections:
        _require_images(arguments.images)
    deadlines = {name: time.monotonic() + 60 * minutes for name, minutes in MINUTES.items()}
    device = torch.device(arguments.device)
    torch.backends.cudnn.benchmark = True
    measures: dict[str, Callable[[], report.Section]] = {
        "results": lambda: kernels.results(device),
        "times": lambda: kernels.times(device),
        "convolution": lambda: kernels.convolution(device),
        "networks": lambda: _networks(arguments.images, device, deadlines["networks"]),
        "tests": lambda: gpu_tests.measure(deadlines["tests"]),
    }
    name = arguments.name or _name(report.circumstances(device)["device"])
    failed = []
    for section in arguments.sections:
        try:
            measured = {**measures[section](), "measured": report.circumstances(device)}
        except Exception:  # the others are measured still
            traceback.print_exc()
            failed.append(section)
            continue
        report.write(arguments.into, name, {section: measured})
        print("\n".join(_lines(section, measured["rows"])), flush=True)
    print(f"The whole report is {arguments.into / name}.md.")
    if failed:
        raise SystemExit(f"error: {', '.join(failed)} failed; the traceback is above.")


def _require_images(images: Path) -> None:
    from benchmarks import gpu_networks  # imports torchvision
    from models import ModelError

    try:
        gpu_networks.files(images, 1)
    except ModelError as error:
        _fail(str(error))


def _networks(images: Path, device: Any, deadline: float) -> dict[str, Any]:
    from benchmarks import gpu_networks

    return gpu_networks.measure(images, device, deadline)


def _name(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _lines(section: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return a section as a table of columns of equal width."""
    titles = list(rows[0])
    cells = [titles, *([_text(row[title]) for title in titles] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))[:WIDTH] for row in cells]
    return [f"{section}: {lines[0]}", *(f"{'':{len(section) + 2}}{line}" for line in lines[1:])]


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def parse() -> argparse.Namespace:
    """Return the arguments. Errors end in one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder with photographs, at any depth")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--name", help="name of the report; by default, that of the device")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--into", type=Path, default=REPOSITORY / "results" / "benchmark", help="folder of the report")
    arguments = parser.parse_args()
    if not arguments.images.is_dir():
        _fail(f"There is no folder {arguments.images}; set --images to a folder with photographs.")
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        return arguments
    import torch

    if not torch.cuda.is_available():
        _fail("torch sees no GPU; check the driver, or try the script with --device cpu.")
    return arguments


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main(parse())
