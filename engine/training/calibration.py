"""Calibration of attention at the identity start."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from torch import nn

from engine.errors import UserError
from engine.processes.distributed import ProcessGroup
from engine.tasks.training_images import TrainingImages

# For each gate, by name.
Scales = dict[str, list[float]]


def calibrate(
    model: nn.Module,
    images: TrainingImages,
    measuring: Callable[[nn.Module], AbstractContextManager[Scales]],
    set_scales: Callable[[nn.Module, Scales], None],
    group: ProcessGroup,
) -> Scales:
    """Measure the scales of the model's gates on the main process, and set them on all processes.

    Args:
        measuring: yields the scales, which are complete after the context.

    Raises:
        UserError: if a feature map is not finite, or a gate does not run.
    """
    scales: Scales = {}
    if group.is_main_process:
        try:
            with measuring(model) as scales:
                images.run(model)
        except ValueError as error:
            raise UserError(f"Attention cannot be calibrated. {error}") from error
    scales = group.broadcast_object(scales)
    set_scales(model, scales)
    return scales


def facts(scales: Mapping[str, list[float]], images: TrainingImages) -> dict[str, object]:
    """Return the calibration's part of a run's record."""
    if not scales:
        return {"calibration_images": 0, "scales_sha256": None}
    digest = hashlib.sha256(json.dumps(scales, sort_keys=True).encode()).hexdigest()
    return {"calibration_images": len(images), "scales_sha256": digest}
