"""A comparison: which runs enter, how each does on every image, and the table that comes of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import environment
from engine.analysis.throughput import images_per_second
from engine.comparison import aggregate, paired_stats, paper_results
from engine.comparison.baselines import config_mismatches, find_baselines
from engine.comparison.entry import TableEntry
from engine.config import EvaluateConfig
from engine.data.datasets import Dataset
from engine.data.loader import EvalLoader, EvalSamples
from engine.device import PRECISIONS, resolve_device, to_device
from engine.distributed import ProcessGroup
from engine.errors import UserError
from engine.run_dir import RunDirectory
from engine.tasks.classification import EvalModel, Predictions, evaluate

Row = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What a row of the table rests on; a row of published weights has neither record nor config."""

    predictions: Predictions
    record: dict[str, Any]
    config: str


def find_runs(config: EvaluateConfig) -> list[RunDirectory]:
    """The runs that a configuration names, or every finished one of its data set, in the order of their paths.

    Raises:
        UserError: if a named run is not finished, or there is nothing to compare.
    """
    if config.runs is not None:
        runs = [RunDirectory(Path(directory)) for directory in config.runs]
        unfinished = [str(run.directory) for run in runs if not run.finished]
        if not runs and not config.published:
            raise UserError("runs=[] and published=[] leave nothing to compare; name runs, or leave runs out.")
        if unfinished:
            raise UserError(f"There is no finished run in {', '.join(unfinished)}; train it first, or leave it out.")
        return runs
    folder = Path(config.run.root) / config.data.label
    records = sorted(folder.glob("*/seed*/record.json"))
    runs = [run for run in (RunDirectory(record.parent) for record in records) if run.finished]
    if not runs and not config.published:
        raise UserError(
            f"There is no finished run in {folder.absolute()}; train one first "
            f"(python train.py data={config.data.name} ...), name runs with runs=[DIR,...], "
            "or networks with published weights with published=[resnet50,...]."
        )
    return runs


def compare(
    entries: list[TableEntry], data: Dataset, config: EvaluateConfig, group: ProcessGroup
) -> tuple[dict[str, Any], list[Evidence]]:
    """Evaluate all contenders in one pass over the validation images, which the processes share between them.

    Returns:
        The table, of plain values: what was measured on what, `rows` (one for each run) and `cells` (the printed
        rows: the seeds of one network together); and what each row rests on.

    Raises:
        UserError: if a run was trained on other data, or differently from the others.
    """
    fingerprint = data.fingerprint
    for entry in entries:
        if entry.record.get("data_fingerprint", fingerprint) != fingerprint:
            raise UserError(
                f"{entry.facts['source']} was trained on other images than {config.data.root}; set data.root."
            )
    deviating = config_mismatches(entries, config.table.allow_mixed)
    baselines = find_baselines(entries, deviating)
    device = resolve_device(config.runtime.device, group)
    for entry in entries:
        to_device(entry.model, device, config.runtime.channels_last)
    speeds = _speeds(entries, config)  # before the pass over the images, which a batch too large would make vain
    predictions = _predict(entries, data, config, device, group)
    rows = _rows(entries, deviating, baselines, predictions)
    cells = aggregate.cells(rows, [said.hits() for said in predictions])
    for cell in cells:
        known = paper_results.errors(cell["model"], cell["attention"]) if config.data.is_imagenet_1k else None
        cell["paper_top1_error"], cell["paper_top5_error"] = known or (None, None)
        cell["images_per_second"] = speeds[cell["rows"][0]]
    table = {
        "data": {
            "name": data.name,
            "classes": len(data.classes),
            "train_images": len(data.train),
            "val_images": len(data.val),
            "fingerprint": fingerprint,
        },
        "evaluated": {
            "precision": config.runtime.precision,
            "throughput_batch_size": config.table.throughput_batch_size,
            **environment.collect_env(device),
        },
        "cells": cells,
        "rows": rows,
    }
    return table, [Evidence(p, c.record, c.config) for c, p in zip(entries, predictions, strict=True)]


def _speeds(entries: Sequence[TableEntry], config: EvaluateConfig) -> list[float | None]:
    """Images per second of each contender, those of seeds alike measured once; None where it is not asked for."""
    batch_size, precision = config.table.throughput_batch_size, PRECISIONS[config.runtime.precision]
    if batch_size is None:
        return [None] * len(entries)
    networks = [(c.facts["model"], c.facts["attention"], c.preprocessing.crop) for c in entries]
    models = {network: entry.model for network, entry in zip(networks, entries, strict=True)}
    measured = {
        network: images_per_second(model, batch_size, network[-1], precision) for network, model in models.items()
    }
    return [measured[network] for network in networks]


def _predict(
    entries: Sequence[TableEntry], data: Dataset, config: EvaluateConfig, device: torch.device, group: ProcessGroup
) -> list[Predictions]:
    ways = tuple(dict.fromkeys(entry.preprocessing for entry in entries))
    samples = EvalSamples(data.val, ways)
    loader = EvalLoader(samples, config.runtime.eval_batch_size, config.runtime.workers, device, group)
    candidates = [EvalModel(entry.model, entry.preprocessing) for entry in entries]
    return evaluate(candidates, loader, PRECISIONS[config.runtime.precision], group)


def _rows(
    entries: Sequence[TableEntry],
    deviating: Sequence[str],
    baselines: Sequence[int | None],
    predictions: Sequence[Predictions],
) -> list[Row]:
    rows: list[Row] = []
    for entry, deviation, baseline, said in zip(entries, deviating, baselines, predictions, strict=True):
        row = entry.facts | {
            "recipe_deviation": deviation,
            "top1_error": 100 - said.top1,
            "top5_error": 100 - said.top5,
            "baseline": baseline,
            "difference": None,
        }
        row["published_gap"] = _published_gap(row)
        if baseline is not None:
            hits = [p.hits()[np.newaxis] for p in (said, predictions[baseline])]
            row |= asdict(paired_stats.paired_difference(*hits))
        row["predictions_sha256"] = said.sha256()
        row["raw"] = _raw(row, [other["raw"] for other in rows])
        rows.append(row)
    return rows


def _published_gap(row: Row) -> float | None:
    """Points of top-1 error by which the start weights, as measured here, are worse than as published."""
    if row["published_top1_error"] is None:
        return None
    measured = row["top1_error"] if row["seed"] is None else row["top1_error_start"]
    return float(measured - row["published_top1_error"])


def _raw(row: Row, taken: Sequence[str]) -> str:
    """Where a row's raw data go, without ending: rows/resnet18_cbam_seed51."""
    attention = "" if row["attention"] == "none" else f"_{row['attention']}"
    seed = "published" if row["seed"] is None else f"seed{row['seed']}"
    name = f"rows/{row['model']}{attention}_{seed}"
    if not row["recipe_deviation"]:
        return name
    return f"{name}_mixed{sum(other.startswith(f'{name}_mixed') for other in taken) + 1}"
