"""Timing of alternatives that take turns, so that other load on the machine affects all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Typical:
    """The median of several rounds, and half the interquartile range."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: list[float]) -> "Typical":
        low, _, high = statistics.quantiles(values, n=4)
        return cls(statistics.median(values), (high - low) / 2)


def take_turns(
    alternatives: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, warm_up: int = 2
) -> dict[str, Typical]:
    """Return the time of each alternative in seconds. Each is run once per round, after warm-up rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for number in range(warm_up + rounds):
        for name, run in alternatives.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: Typical.of(values) for name, values in seconds.items()}
