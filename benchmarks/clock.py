"""Timing: several ways of doing a thing take turns, so that whatever else the machine does meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Typical:
    """Of several rounds the median, and half of the distance between the quartiles."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: list[float]) -> "Typical":
        low, _, high = statistics.quantiles(values, n=4)
        return cls(statistics.median(values), (high - low) / 2)


def take_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, warm_up: int = 2
) -> dict[str, Typical]:
    """Seconds of each way, run once a round, after rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: Typical.of(values) for name, values in seconds.items()}
