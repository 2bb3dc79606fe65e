"""Measure the speed of this repository on this machine.

    python scripts/benchmark.py --machine two-cores --images /path/to/class/folders
    python scripts/benchmark.py --machine two-cores --images /path/to/class/folders --sections evaluation

Writes results/benchmark/MACHINE.json and .md. Sections that are not measured are kept from an earlier report.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

import torch

from benchmarks import evaluation, file_index, module, network, pipeline, report, training
from benchmarks.report import Section
from engine import cli
from engine.errors import UserError
from engine.logging import print_line
from engine.processes import determinism
from engine.processes.device import resolve_device
from engine.processes.distributed import ProcessGroup

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmark"

SECTIONS: dict[str, Callable[[Path, torch.device], Section]] = {
    "index": file_index.measure,  # first: its workers would copy the memory that the others leave
    "pipeline": pipeline.measure,
    "evaluation": evaluation.measure,
    "module": module.measure,
    "network": network.measure,
    "training": training.measure,
}


def main(arguments: argparse.Namespace) -> None:
    if not arguments.images.is_dir():  # checked first: a section may take minutes
        raise UserError(f"There is no folder {arguments.images}; set --images to a folder with full-size images.")
    device = resolve_device(arguments.device, ProcessGroup())
    determinism.set_determinism(51, deterministic=False)  # the fastest kernels
    sections = {}
    for name, measure in SECTIONS.items():
        if name in arguments.sections:
            torch.set_num_threads(len(os.sched_getaffinity(0)))  # an earlier section may have lowered it
            sections[name] = {**measure(arguments.images, device), "measured": report.circumstances(device)}
    print_line(report.write(RESULTS, arguments.machine, sections))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", required=True, help="name of the report")
    parser.add_argument("--images", type=Path, required=True, help="folder with full-size images, at any depth")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    with cli.one_line_errors():
        main(parser.parse_args())
