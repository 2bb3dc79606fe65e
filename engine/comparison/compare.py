"""A comparison: its runs, their predictions for every image, and the table."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from engine.analysis.throughput import images_per_second
from engine.comparison import paper_results
from engine.comparison.aggregate import aggregate_seeds
from engine.comparison.baselines import config_mismatches, find_baselines
from engine.comparison.entry import TableEntry
from engine.config.schemas import EvaluateConfig
from engine.data.loader import EvalLoader
from engine.errors import UserError
from engine.processes.device import PRECISIONS, resolve_device, to_device
from engine.processes.distributed import ProcessGroup
from engine.runs import environment
from engine.runs.directory import RunDirectory
from engine.tasks.base import AnyDataset, Predictions, Task
from engine.tasks.inference import EvalModel, evaluate

SCHEMA = 2  # of table.json

Row = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """The data behind a run's row. Record and config are empty for published weights."""

    predictions: Predictions
    record: dict[str, Any]
    config: str


def find_runs(config: EvaluateConfig) -> list[RunDirectory]:
    """Return the runs that a configuration names, or every finished run of its data set, in natural order.

    Damaged runs, whose state is not known, are among them.

    Raises:
        UserError: if a named run is not finished, or there is nothing to compare.
    """
    if config.runs is not None:
        runs = [RunDirectory(Path(directory)) for directory in config.runs]
        unfinished = [str(run.directory) for run in runs if not (run.problem or run.finished)]
        if not runs and not config.published:
            raise UserError("runs=[] and published=[] leave nothing to compare; name runs, or omit runs=.")
        if unfinished:
            raise UserError(f"There is no finished run in {', '.join(unfinished)}; train it first, or omit it.")
        return runs
    data = config.data
    folder = Path(config.run.root) / (data.trained_on or data.label)
    records = sorted(folder.glob("*/seed*/record.json"), key=_natural)
    runs = [run for run in (RunDirectory(record.parent) for record in records) if run.problem or run.finished]
    if not runs and not config.published:
        raise UserError(
            f"There is no finished run in {folder.absolute()}; train one first "
            f"(python train.py data={data.trained_on or data.name} ...), select runs with runs=[DIR,...], "
            "or compare published weights with published=[resnet50,...]."
        )
    return runs


def _natural(path: Path) -> list[list[str | int]]:
    """Return the sort key by which seed 9 is before seed 10, and ResNet-18 before ResNet-101."""
    return [[int(run) if run.isdecimal() else run for run in re.split(r"(\d+)", part)] for part in path.parts]


def compare(
    entries: Sequence[TableEntry], task: Task, data: AnyDataset, config: EvaluateConfig, group: ProcessGroup
) -> tuple[dict[str, Any], list[Evidence]]:
    """Evaluate all entries in one pass over the validation images, which the processes share.

    Returns:
        The table as plain values, and the evidence for each run. The table has the data, the environment, `runs` (one
        for each entry) and `rows` (as printed, with the seeds of one network aggregated).

    Raises:
        UserError: if a run was trained on different data, or with a different recipe from the other runs.
    """
    if config.data.trained_on is None:
        _require_trained_on(entries, data, config)
    mismatches = config_mismatches(entries, config.table.allow_mixed)
    baselines = find_baselines(entries, mismatches)
    device = resolve_device(config.runtime.device, group)
    for entry in entries:
        to_device(entry.model, device, config.runtime.channels_last)
    speeds = _speeds(entries, config)  # first, because a batch may be too large for memory
    predictions = _predict(entries, task, data, config, device, group)
    runs = _runs(entries, task, mismatches, baselines, predictions)
    rows = aggregate_seeds(runs, predictions, type(task))
    for row in rows:
        row |= paper_results.columns(row, config.data)
        row["images_per_second"] = speeds[row["runs"][0]]
    table = {
        "schema": SCHEMA,
        "task": task.name,
        "data": {
            "name": data.name,
            "classes": len(data.classes),
            "train_images": len(data.train),
            "val_images": len(data.val),
            "fingerprint": data.fingerprint,
            "trained_on": config.data.trained_on,
        },
        "evaluated": {
            "precision": config.runtime.precision,
            "throughput_batch_size": config.table.throughput_batch_size,
            **environment.collect_env(device),
        },
        "rows": rows,
        "runs": runs,
    }
    return table, [Evidence(p, entry.record, entry.config) for entry, p in zip(entries, predictions, strict=True)]


def _require_trained_on(entries: Sequence[TableEntry], data: AnyDataset, config: EvaluateConfig) -> None:
    for entry in entries:
        classes = entry.record.get("classes", len(data.classes))
        if classes != len(data.classes):
            raise UserError(
                f"{entry.row['source']} was trained on {classes} classes, but {data.name} has {len(data.classes)}; set "
                "data.classes."
            )
        if entry.record.get("data_fingerprint", data.fingerprint) != data.fingerprint:
            raise UserError(
                f"{entry.row['source']} was not trained on the images in {config.data.root}; set data.root."
            )


def _speeds(entries: Sequence[TableEntry], config: EvaluateConfig) -> list[float | None]:
    """Return images/s of each entry, measured once per network; None if not requested."""
    batch_size, precision = config.table.throughput_batch_size, PRECISIONS[config.runtime.precision]
    if batch_size is None:
        return [None] * len(entries)
    networks = [
        (entry.row["model"], entry.row.get("detector"), entry.row["attention"], entry.preprocessing.crop)
        for entry in entries
    ]
    models = {network: entry.model for network, entry in zip(networks, entries, strict=True)}
    measured = {
        network: images_per_second(model, batch_size, network[-1], precision) for network, model in models.items()
    }
    return [measured[network] for network in networks]


def _predict(
    entries: Sequence[TableEntry],
    task: Task,
    data: AnyDataset,
    config: EvaluateConfig,
    device: torch.device,
    group: ProcessGroup,
) -> list[Predictions]:
    preprocessings = list(dict.fromkeys(entry.preprocessing for entry in entries))
    samples = task.eval_samples(data.val, preprocessings)
    batch_size = task.eval_batch_size or config.runtime.eval_batch_size
    loader = EvalLoader(samples, batch_size, config.runtime.workers, device, group)
    models = [EvalModel(entry.model, entry.preprocessing) for entry in entries]
    return evaluate(task, models, loader, preprocessings, PRECISIONS[config.runtime.precision], group)


def _runs(
    entries: Sequence[TableEntry],
    task: Task,
    mismatches: Sequence[str],
    baselines: Sequence[int | None],
    predictions: Sequence[Predictions],
) -> list[Row]:
    runs: list[Row] = []
    for entry, mismatch, baseline, own in zip(entries, mismatches, baselines, predictions, strict=True):
        run = entry.row | {
            "recipe_deviation": mismatch,
            **task.table_row(own.metrics()),
            "baseline": baseline,
            "difference": None,
        }
        run["published_gap"] = _published_gap(run, task)
        if baseline is not None:
            run |= asdict(task.paired([own], [predictions[baseline]]))
        run["predictions_sha256"] = own.sha256()
        run["raw"] = _raw(run, [other["raw"] for other in runs])
        runs.append(run)
    return runs


def _published_gap(run: Row, task: Task) -> float | None:
    """Return the measured minus the published metric of the start weights, in points."""
    if run["published"] is None:
        return None
    primary = task.table_metrics[0]
    measured = run[primary] if run["seed"] is None else run[f"{primary}_start"]
    return float(measured - run["published"])


def _raw(run: Row, taken: Sequence[str]) -> str:
    """Return the path of a run's raw data, without suffix: runs/resnet18_cbam_seed51."""
    attention = "" if run["attention"] == "none" else f"_{run['attention']}"
    seed = "published" if run["seed"] is None else f"seed{run['seed']}"
    detector = f"{run['detector']}-" if "detector" in run else ""
    name = f"runs/{detector}{run['model']}{attention}_{seed}"
    if not run["recipe_deviation"]:
        # Runs that differ only in this factor share the name; the first of them keeps it unchanged.
        return f"{name}_lr_factor{run['attention_lr_factor']:g}" if name in taken else name
    return f"{name}_mixed{sum(other.startswith(f'{name}_mixed') for other in taken) + 1}"
