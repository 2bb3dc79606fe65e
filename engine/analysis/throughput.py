"""Throughput of a network in evaluation."""

import statistics
import time

import torch
from torch import nn

WARM_UP, TIMED = 3, 10


def images_per_second(model: nn.Module, batch_size: int, image_size: int, precision: torch.dtype) -> float:
    """Return the median images/s over ten batches of noise on the model's device, in evaluation mode."""
    device = next(model.parameters()).device
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    model.eval()
    seconds = []
    with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
        for _ in range(WARM_UP + TIMED):
            started = time.perf_counter()
            model(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    return batch_size / statistics.median(seconds[WARM_UP:])
