"""Start-up with a data set as large as ImageNet: 1,281,167 and 50,000 empty files in 1,000 classes."""

import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Section
from engine.config.data import DataConfig
from engine.data.datasets import Dataset, open_dataset

CLASSES, TRAIN, VAL = 1000, 1_281_167, 50_000
WORKERS = 8
LOOKS = 100_000  # paths that each worker reads


def measure(_: Path, __: torch.device) -> Section:
    """Measure the seconds to the first path, without and with a stored list, and the memory of each worker."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "imagenet"
        _make(root)
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        config = DataConfig("imagenet", "folders", str(root), CLASSES, None, image_size=224)
        rows = []
        for title in ("cold: every folder is read", "warm: the list is stored"):
            started = time.perf_counter()
            data = open_dataset(config)
            data.train.path(TRAIN - 1)
            rows.append({"start": title, "seconds to the first path": time.perf_counter() - started})
        grown = max(_grown_per_worker(data))
        for row in rows:
            row["memory of each of 8 workers (MB)"] = grown if row is rows[-1] else "-"
    return {
        "about": f"{TRAIN:,} + {VAL:,} empty files in {CLASSES:,} classes on a local disk. They were just written, so "
        f"their folders are cached. Memory: increase of a forked worker's private memory after all eight workers "
        f"have read {LOOKS:,} paths each; the maximum over the workers.",
        "rows": rows,
    }


def _make(root: Path) -> None:
    for split, images in (("train", TRAIN), ("val", VAL)):
        for label in range(CLASSES):
            into = root / split / f"n{label:08d}"
            into.mkdir(parents=True)
            for i in range(label, images, CLASSES):
                os.close(os.open(f"{into}/n{label:08d}_{i}.JPEG", os.O_CREAT | os.O_WRONLY))


def _grown_per_worker(data: Dataset) -> list[float]:
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe(duplex=False) for _ in range(WORKERS)]
    all_done = fork.Barrier(WORKERS)
    workers = [fork.Process(target=_look, args=(data, seed, all_done, pipe[1])) for seed, pipe in enumerate(pipes)]
    for worker in workers:
        worker.start()
    grown = [pipe[0].recv() for pipe in pipes]
    for worker in workers:
        worker.join()
    return grown


def _look(data: Dataset, seed: int, all_done: Barrier, result: Connection) -> None:
    before = _own_memory()
    for index in np.random.default_rng(seed).integers(len(data.train), size=LOOKS):
        data.train.path(int(index))
    all_done.wait()  # before that, pages that no other worker has read yet would count as private
    result.send((_own_memory() - before) / 1e6)
    all_done.wait()


def _own_memory() -> int:
    """Return the bytes of this process's private memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
