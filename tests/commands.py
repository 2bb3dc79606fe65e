"""How tests call the entry points, and how errors of users look."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

# The least that the record of a finished run has.
RECORD: dict[str, object] = {
    "status": "finished",
    "model": "resnet18",
    "attention": "none",
    "seed": 51,
    "epochs": 2,
    "classes": 3,
    "class_names": ["a", "b", "c"],
    "parameters": 11,
    "gflops": 0.5,
    "preprocessing": {"resize": 32, "crop": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
    "data_fingerprint": "f",
    "start_weights_sha256": "s",
    "weights_sha256": "w",
    "predictions_sha256": "p",
    "history": [],
}

# A recipe with everything that draws random numbers or keeps a state of its own.
EVERYTHING = [
    *("recipe.augment=trivialaugment", "recipe.erase=0.5", "recipe.mixup=0.2", "recipe.cutmix=1.0"),
    *("recipe.repeated_augmentation=2", "recipe.optimizer=adamw", "recipe.lr=0.001", "recipe.layer_decay=0.8"),
    *("recipe.attention_lr_factor=10", "recipe.ema_decay=0.99", "recipe.ema_every_steps=2", "recipe.clip_grad_norm=1"),
]


def arguments(root: Path, *more: str) -> list[str]:
    """A training run of seconds: three classes of 32-pixel images, two epochs, with the keys of `more` instead."""
    given = [
        *("data=imagenet", f"data.root={root}", "data.name=small", "data.total_classes=3"),
        *("data.image_size=32", "data.resize=32", "recipe.batch_size=16", "recipe.epochs=2"),
        *("runtime.device=cpu", "runtime.workers=1", "run.log_every_steps=1", "run.pictures=0"),
    ]
    return replaced(given, *more)


def replaced(given: Sequence[str], *more: str) -> list[str]:
    """Return the arguments with those of `more`, which replace those with the same keys."""
    keys = {argument.partition("=")[0] for argument in more}
    return [*(argument for argument in given if argument.partition("=")[0] not in keys), *more]


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr
