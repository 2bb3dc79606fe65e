"""A comparison: which runs enter, how each does on every image, and the table that comes of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import device, pairing, paper, provenance, statistics, summary
from engine.config import EvaluateConfig
from engine.contender import Contender
from engine.datasets import Dataset
from engine.distributed import Ranks
from engine.errors import UserError
from engine.evaluator import Candidate, Predictions, evaluate
from engine.loader import EvalLoader, EvalSamples
from engine.run import Run
from engine.throughput import images_per_second

Row = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What a row of the table rests on; a row of published weights has neither record nor config."""

    predictions: Predictions
    record: dict[str, Any]
    config: str


def find_runs(config: EvaluateConfig) -> list[Run]:
    """The runs that a configuration names, or every finished one of its data set, in the order of their paths.

    Raises:
        UserError: if a named run is not finished, or there is nothing to compare.
    """
    if config.runs is not None:
        runs = [Run(Path(directory)) for directory in config.runs]
        unfinished = [str(run.directory) for run in runs if not run.finished]
        if not runs and not config.published:
            raise UserError("runs=[] and published=[] leave nothing to compare; name runs, or leave runs out.")
        if unfinished:
            raise UserError(f"There is no finished run in {', '.join(unfinished)}; train it first, or leave it out.")
        return runs
    folder = Path(config.run.root) / config.data.label
    records = sorted(folder.glob("*/seed*/record.json"))
    runs = [run for run in (Run(record.parent) for record in records) if run.finished]
    if not runs and not config.published:
        raise UserError(
            f"There is no finished run in {folder.absolute()}; train one first "
            f"(python train.py data={config.data.name} ...), name runs with runs=[DIR,...], "
            "or networks with published weights with published=[resnet50,...]."
        )
    return runs


def compare(
    contenders: list[Contender], data: Dataset, config: EvaluateConfig, ranks: Ranks
) -> tuple[dict[str, Any], list[Evidence]]:
    """Evaluate all contenders in one pass over the validation images, which the processes share between them.

    Returns:
        The table, of plain values: what was measured on what, `rows` (one for each run) and `cells` (the printed
        rows: the seeds of one network together); and what each row rests on.

    Raises:
        UserError: if a run was trained on other data, or differently from the others.
    """
    fingerprint = data.fingerprint
    for contender in contenders:
        if contender.record.get("data_fingerprint", fingerprint) != fingerprint:
            raise UserError(
                f"{contender.facts['source']} was trained on other images than {config.data.root}; set data.root."
            )
    deviating = pairing.deviations(contenders, config.table.allow_mixed)
    baselines = pairing.baselines(contenders, deviating)
    where = device.choose(config.runtime.device, ranks)
    for contender in contenders:
        device.place(contender.model, where, config.runtime.channels_last)
    speeds = _speeds(contenders, config)  # before the pass over the images, which a batch too large would make vain
    predictions = _predict(contenders, data, config, where, ranks)
    rows = _rows(contenders, deviating, baselines, predictions)
    cells = summary.cells(rows, [said.hits() for said in predictions])
    for cell in cells:
        known = paper.errors(cell["model"], cell["attention"]) if config.data.is_imagenet_1k else None
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
            **provenance.describe(where),
        },
        "cells": cells,
        "rows": rows,
    }
    return table, [Evidence(p, c.record, c.config) for c, p in zip(contenders, predictions, strict=True)]


def _speeds(contenders: Sequence[Contender], config: EvaluateConfig) -> list[float | None]:
    """Images per second of each contender, those of seeds alike measured once; None where it is not asked for."""
    batch_size, precision = config.table.throughput_batch_size, device.PRECISIONS[config.runtime.precision]
    if batch_size is None:
        return [None] * len(contenders)
    networks = [(c.facts["model"], c.facts["attention"], c.preprocessing.crop) for c in contenders]
    models = {network: contender.model for network, contender in zip(networks, contenders, strict=True)}
    measured = {
        network: images_per_second(model, batch_size, network[-1], precision) for network, model in models.items()
    }
    return [measured[network] for network in networks]


def _predict(
    contenders: Sequence[Contender], data: Dataset, config: EvaluateConfig, where: torch.device, ranks: Ranks
) -> list[Predictions]:
    ways = tuple(dict.fromkeys(contender.preprocessing for contender in contenders))
    samples = EvalSamples(data.val, ways)
    loader = EvalLoader(samples, config.runtime.eval_batch_size, config.runtime.workers, where, ranks)
    candidates = [Candidate(contender.model, contender.preprocessing) for contender in contenders]
    return evaluate(candidates, loader, device.PRECISIONS[config.runtime.precision], ranks)


def _rows(
    contenders: Sequence[Contender],
    deviating: Sequence[str],
    baselines: Sequence[int | None],
    predictions: Sequence[Predictions],
) -> list[Row]:
    rows: list[Row] = []
    for contender, deviation, baseline, said in zip(contenders, deviating, baselines, predictions, strict=True):
        row = contender.facts | {
            "recipe_deviation": deviation,
            "top1_error": 100 - said.top1,
            "top5_error": 100 - said.top5,
            "baseline": baseline,
            "difference": None,
        }
        row["published_gap"] = _published_gap(row)
        if baseline is not None:
            hits = [p.hits()[np.newaxis] for p in (said, predictions[baseline])]
            row |= asdict(statistics.paired_difference(*hits))
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
