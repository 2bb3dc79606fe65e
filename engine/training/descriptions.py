"""Metrics as texts for the log and the progress bar."""

from collections.abc import Mapping


def describe(metrics: Mapping[str, float]) -> str:
    """Format training or validation metrics without the loss, e.g. `top-1 76.13%, top-5 92.86%`."""
    if "mixed_top1" in metrics:
        return (
            f"on mixed images, against the label of the larger share: top-1 {metrics['mixed_top1']:.2f}%, "
            f"top-5 {metrics['mixed_top5']:.2f}%"
        )
    if "top1" in metrics:
        return f"top-1 {metrics['top1']:.2f}%, top-5 {metrics['top5']:.2f}%"
    if "ap" in metrics:
        mean = f"mAP {metrics['ap_11_points']:.2f}% (11 points), " if "ap_11_points" in metrics else ""
        return f"{mean}AP {metrics['ap']:.2f}%, AP50 {metrics['ap50']:.2f}%, AP75 {metrics['ap75']:.2f}%"
    losses = {name.removeprefix("loss_"): value for name, value in metrics.items() if name.startswith("loss_")}
    return ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
