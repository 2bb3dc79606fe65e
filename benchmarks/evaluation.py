"""Evaluation of several networks in one pass over the images, compared with one pass for each."""

import os
import time
from pathlib import Path

import numpy as np
import torch

import models
from benchmarks.report import Section
from engine.config.data import DataConfig
from engine.data.datasets import Split
from engine.data.loader import EvalLoader
from engine.data.other_files import EXTENSIONS
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.processes.device import to_device
from engine.processes.distributed import ProcessGroup
from engine.tasks.classification import Classification
from engine.tasks.inference import EvalModel, evaluate


def measure(images: Path, device: torch.device) -> Section:
    """Measure four networks in one pass over full-size images, and in four passes.

    The networks are cheap (random weights, inputs of 64 px), so that decoding dominates, as it does with a GPU.
    """
    # Decoding and computing each get a share of the cores: if both used all of them, each would wait for the other.
    torch.set_num_threads(max(1, _cores() - _workers()))
    split = repeated(images, at_least=384)
    preprocessing = Preprocessing(resize=73, crop=64)
    names = 2 * ["mobilenet_v3_small", "mobilenet_v3_small_cbam"]
    candidates = [EvalModel(to_device(models.build(name), device, channels_last=True), preprocessing) for name in names]
    _pass(candidates, split, preprocessing, device)  # warm-up: kernels are chosen, files are read from the disk
    decoding, apart, together = [], [], []
    for _ in range(5):  # taking turns, so that other load on the machine affects all of them
        decoding.append(_pass([], split, preprocessing, device))
        apart.append(
            sum((_pass([candidate], split, preprocessing, device) for candidate in candidates), start=np.zeros(2))
        )
        together.append(_pass(candidates, split, preprocessing, device))
    rows = []
    for i, clock in enumerate(("wall", "processor")):
        none, four, one = (min(float(clocks[i]) for clocks in each) for each in (decoding, apart, together))
        rows.append(
            {
                "clock": clock,
                "decoding alone (s)": none,
                "four passes (s)": four,
                "one pass (s)": one,
                "one pass / four passes": one / four,
            }
        )
    return {
        "about": f"{', '.join(names)}, random weights, inputs of 64 px, fp32, over {len(split)} full-size JPEGs; "
        f"the fastest of five. Each pass has its own loader (decoding processes: {_workers()}, computing threads: "
        f"{torch.get_num_threads()}). Processor time counts all of them and excludes other load on the "
        "machine.",
        "rows": rows,
    }


def repeated(folder: Path, at_least: int) -> Split:
    """Return the images below a folder, repeated to at least the given number."""
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.name.lower().endswith(EXTENSIONS))
    if not files:
        raise UserError(f"There are no images below {folder.absolute()}; set --images to a folder of JPEGs.")
    repeats = -(-at_least // len(files))
    return Split(folder, np.array([bytes(file) for file in files] * repeats), np.zeros(len(files) * repeats, np.int64))


def _pass(candidates: list[EvalModel], split: Split, preprocessing: Preprocessing, device: torch.device) -> np.ndarray:
    """Return the seconds to evaluate the networks together: [wall clock, processor time with the loader's workers]."""
    started = _clocks()
    task, group = Classification(DataConfig(image_size=preprocessing.crop)), ProcessGroup()
    loader = EvalLoader(task.eval_samples(split, [preprocessing]), 64, _workers(), device, group)
    evaluate(task, candidates, loader, [preprocessing], torch.float32, group)
    del loader  # a process's time counts when it has ended
    return _clocks() - started


def _clocks() -> np.ndarray:
    return np.array([time.perf_counter(), sum(os.times()[:4])])


def _workers() -> int:
    return min(8, _cores() // 2 or 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
