"""Speed and memory of the networks of a table: measured in evaluation, and in training from the records."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.analysis.throughput import batch_cost
from engine.comparison.columns import is_static
from engine.comparison.entry import TableEntry
from engine.config.schemas import EvaluateConfig
from engine.processes.device import PRECISIONS

Row = dict[str, Any]


def evaluation_costs(entries: Sequence[TableEntry], config: EvaluateConfig) -> list[Row]:
    """Return the speed and memory of each entry in evaluation, measured once per network; empty if not requested."""
    if not config.table.speed:
        return [{}] * len(entries)
    networks = [
        (entry.row["model"], entry.row.get("detector"), entry.row["attention"], entry.preprocessing.crop)
        for entry in entries
    ]
    models = {network: entry.model for network, entry in zip(networks, entries, strict=True)}
    measured = {}
    for network, model in models.items():
        batch_size, precision = config.runtime.eval_batch_size, PRECISIONS[config.runtime.precision]
        one = batch_cost(model, 1, network[-1], precision)
        many = batch_cost(model, batch_size, network[-1], precision)
        measured[network] = {
            "images_per_second": batch_size / many.seconds,
            "image_milliseconds": 1000 * one.seconds,
            "batch_milliseconds": 1000 * many.seconds,
            "device_memory": many.memory,
        }
    return [measured[network] for network in networks]


def training_costs(row: Row, entries: Sequence[TableEntry]) -> Row:
    """Return the speed and memory of a row's trainings from their records: means over its runs, None if unknown."""
    records = [] if is_static(row) else [entries[position].record for position in row["runs"]]
    speeds = [
        record["processes"] * record["batch_per_process"] / record["step_seconds"]
        for record in records
        if record.get("step_seconds")
    ]
    memory = [record.get("peak_device_memory") or record.get("peak_process_memory") for record in records]
    known = [value for value in memory if value]
    return {
        "train_images_per_second": float(np.mean(speeds)) if speeds else None,
        "train_memory": max(known, default=None),
    }


def training_hardware(entries: Sequence[TableEntry]) -> list[str]:
    """Return the hardware of the runs, `4 x NVIDIA A100`, each once."""
    records = [entry.record for entry in entries if entry.record.get("step_seconds")]
    return list(dict.fromkeys(f"{_times(record['processes'])}{record['device']}" for record in records))


def notes(evaluated: Mapping[str, Any]) -> list[str]:
    """Return the notes on the columns; none if nothing was measured.

    Args:
        evaluated: `evaluated` of table.json.
    """
    batch_size = evaluated["throughput_batch_size"]
    if batch_size is None:
        return []
    found = [
        f"Images/s is the speed of the network alone, in batches of {batch_size} in {evaluated['precision']} on "
        f"{evaluated['device']}."
    ]
    if "training_hardware" not in evaluated:  # a table of an earlier version
        return found
    found.append(
        "Latencies are medians of ten batches of the same size, and of one image, on the same hardware. Device memory "
        "is the peak for such a batch, weights included; it is measured on CUDA only."
    )
    if evaluated["training_hardware"]:
        found.append(
            "Images/s in training are from the median step in the records, with the loading of the images, on "
            f"{', '.join(evaluated['training_hardware'])}. Memory in training is the peak of the device, or of the "
            "main process on a CPU."
        )
    return found


def _times(processes: int) -> str:
    return "" if processes == 1 else f"{processes} x "
