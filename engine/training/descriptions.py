"""Metrics as texts for the log and the progress bar."""

from collections.abc import Iterable, Mapping

from engine.tasks.base import Task
from engine.tasks.classification import TOP_K, Classification


def shown(task: Task, names: Iterable[str]) -> list[str]:
    """Return the metrics that are worth showing: with 5 classes or fewer, top-5 accuracy is always 100%."""
    is_trivial = isinstance(task, Classification) and 0 < task.data.num_classes <= TOP_K
    return [name for name in names if not (is_trivial and name.endswith("top5"))]


def describe(task: Task, metrics: Mapping[str, float]) -> str:
    """Format training or validation metrics without the loss, e.g. `top-1 76.13%, top-5 92.86%`."""
    if "mixed_top1" in metrics:
        own = {"top1": metrics["mixed_top1"], "top5": metrics["mixed_top5"]}
        return f"on mixed images, against the label of the larger share: {describe(task, own)}"
    if "top1" in metrics:
        titles = {"top1": "top-1", "top5": "top-5"}
        return ", ".join(f"{titles[name]} {metrics[name]:.2f}%" for name in shown(task, titles))
    if "ap" in metrics:
        mean = f"mAP {metrics['ap_11_points']:.2f}% (11 points), " if "ap_11_points" in metrics else ""
        return f"{mean}AP {metrics['ap']:.2f}%, AP50 {metrics['ap50']:.2f}%, AP75 {metrics['ap75']:.2f}%"
    losses = {name.removeprefix("loss_"): value for name, value in metrics.items() if name.startswith("loss_")}
    return ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
