"""How tests call the entry points, and how errors of users look."""

import subprocess
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
    "preprocessing": {},
    "data_fingerprint": "f",
    "start_weights_sha256": "s",
    "weights_sha256": "w",
    "predictions_sha256": "p",
    "history": [],
}


def arguments(root: Path, *more: str) -> list[str]:
    """A training run of seconds: three classes of 32-pixel images, two epochs."""
    return [
        *("data=imagenet", f"data.root={root}", "data.name=small", "data.total_classes=3"),
        *("data.image_size=32", "data.resize=32", "recipe.batch_size=16", "recipe.epochs=2"),
        *("runtime.device=cpu", "runtime.workers=1", "run.log_every_steps=1", "run.pictures=0", *more),
    ]


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr
