"""Speed and memory of a network in evaluation."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

WARM_UP, TIMED = 3, 10


@dataclass(frozen=True)
class BatchCost:
    """The cost of one batch in evaluation.

    Attributes:
        seconds: median duration.
        memory: peak of the allocated device memory in bytes, weights included; None on a CPU, whose allocator does not
            record it.
    """

    seconds: float
    memory: int | None


def batch_cost(model: nn.Module, batch_size: int, image_size: int, precision: torch.dtype) -> BatchCost:
    """Return the cost of a batch of noise on the model's device in evaluation mode, from ten batches."""
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    model.eval()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
        for _ in range(WARM_UP + TIMED):
            started = time.perf_counter()
            model(images)
            if on_gpu:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated(device) if on_gpu else None
    return BatchCost(statistics.median(seconds[WARM_UP:]), memory)
