"""Training from JPEG files as in train.py: images/s, and the share of the time spent waiting for them."""

import time
from pathlib import Path

import torch

import models
from benchmarks.evaluation import repeated
from benchmarks.report import Section
from engine.config.data import DataConfig
from engine.config.model import ModelConfig
from engine.config.recipe import RecipeConfig
from engine.config.runtime import RuntimeConfig
from engine.config.schemas import TrainConfig
from engine.data.loader import TrainLoader
from engine.data.transforms import Preprocessing
from engine.processes.distributed import ProcessGroup
from engine.tasks.classification import Classification
from engine.training.trainer import Trainer


def measure(images: Path, device: torch.device) -> Section:
    """Measure a row for each network: the second of two epochs."""
    on_gpu = device.type == "cuda"
    names = ("resnet50", "resnet50_cbam") if on_gpu else ("resnet18", "resnet18_cbam")
    batch_size, steps, size = (256, 40, 224) if on_gpu else (32, 8, 64)
    runtime = RuntimeConfig(
        device=device.type, precision="bf16" if on_gpu else "fp32", compile=on_gpu, deterministic=not on_gpu
    )
    recipe = RecipeConfig(epochs=2, batch_size=batch_size, lr=0.1, weight_decay=1e-4)
    split = repeated(images, at_least=batch_size * steps)
    rows = []
    for name, fused in [(name, False) for name in names] + [(names[1], True)] * on_gpu:
        net = models.build(name)
        if fused:
            models.fuse(net)
        task, group = Classification(DataConfig(image_size=size)), ProcessGroup()
        loader = TrainLoader(task.train_samples(split, 51), batch_size, 51, runtime.workers, device, group)
        config = TrainConfig(model=ModelConfig(name), recipe=recipe, runtime=runtime)
        trainer = Trainer(net, task, Preprocessing(size, size), loader, config, group)
        _epoch(trainer)  # warm-up: kernels are chosen and compiled
        trainer.end_epoch()
        seconds = _epoch(trainer)
        rows.append(
            {
                "network": f"{name}, fused" if fused else name,
                "images/s": trainer.timer.steps * batch_size / seconds,
                "waiting for images (%)": 100 * trainer.timer.waiting / seconds,
            }
        )
    return {
        "about": f"Training from full-size JPEGs in crops of {size} px, in {loader.steps_per_epoch} batches of "
        f"{batch_size}, {runtime.precision}, {'compiled' if runtime.compile else 'eager'}, runtime.workers at its "
        "default; the second of two epochs, with the loader already running.",
        "rows": rows,
    }


def _epoch(trainer: Trainer) -> float:
    """Return the seconds of one epoch, until the device has finished it."""
    started = time.perf_counter()
    for _ in trainer.steps():
        pass
    trainer.metrics()  # waits for the device
    return time.perf_counter() - started
