"""A comparison: its runs, their predictions for every image, and the table."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from engine.comparison import paper_results, speed
from engine.comparison.aggregate import Settings, aggregate
from engine.comparison.baselines import config_mismatches, find_baselines
from engine.comparison.entry import TableEntry
from engine.comparison.view import VIEWS, View
from engine.config.data import DataConfig
from engine.config.presets import CONFIGS
from engine.config.schemas import EvaluateConfig
from engine.data.groups import ImageGroups
from engine.data.loader import EvalLoader
from engine.errors import UserError
from engine.processes.device import PRECISIONS, resolve_device, to_device
from engine.processes.distributed import ProcessGroup
from engine.runs import environment
from engine.runs.directory import RunDirectory
from engine.tasks.base import AnyDataset, Predictions, Task
from engine.tasks.inference import EvalModel, evaluate

SCHEMA = 3  # of table.json; docs/methodology.md describes it

Row = dict[str, Any]


@dataclass(frozen=True)
class RunEvidence:
    """The data behind a run's row. Record and config are empty for published weights."""

    predictions: Predictions
    record: dict[str, Any]
    config: str


@dataclass(frozen=True)
class Evidence:
    """The data behind a table.

    Attributes:
        runs: of each run.
        groups: groups of the validation images; None if all are independent.
    """

    runs: list[RunEvidence]
    groups: ImageGroups | None


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
            f"(python train.py {_preset(data)} ...), select runs with runs=[DIR,...], "
            "or compare published weights with published=[resnet50,...]."
        )
    return runs


def _preset(data: DataConfig) -> str:
    """Return the arguments that select a data set for training."""
    name = data.trained_on or data.name
    # A layout is the name of its preset.
    is_preset = (CONFIGS / "data" / f"{name}.yaml").is_file()
    return f"data={name}" if is_preset else f"data={data.layout} data.name={name}"


def _natural(path: Path) -> list[list[str | int]]:
    """Return the sort key by which seed 9 is before seed 10, and ResNet-18 before ResNet-101."""
    return [[int(run) if run.isdecimal() else run for run in re.split(r"(\d+)", part)] for part in path.parts]


def compare(
    entries: Sequence[TableEntry],
    task: Task,
    data: AnyDataset,
    config: EvaluateConfig,
    group: ProcessGroup,
    omitted: Sequence[Row] = (),
) -> tuple[dict[str, Any], Evidence]:
    """Evaluate all entries in one pass over the validation images, which the processes share.

    Args:
        entries: in the order of the rows, except that the plain network of a backbone is moved before its others.
        omitted: result of `omitted_runs`, for the notes.

    Returns:
        The table as plain values, and the evidence for each run. The table has the data, the environment, `runs` (one
        for each entry), `rows` (as printed, with the seeds of one network aggregated) and `direct` (the contrasts
        between kinds of attention).

    Raises:
        UserError: if a run was trained on different data, or with a different recipe from the other runs.
    """
    entries = _plain_first(entries)
    if config.data.trained_on is None:
        _require_trained_on(entries, data, config)
    groups = None
    if config.data.groups is not None:
        groups = ImageGroups.of_split(Path(config.data.groups), data.val.files.tolist())
    mismatches = config_mismatches(entries, config.table.allow_mixed)
    baselines = find_baselines(entries, mismatches)
    device = resolve_device(config.runtime.device, group)
    for entry in entries:
        to_device(entry.model, device, config.runtime.channels_last)
    costs = speed.evaluation_costs(entries, config)  # first, because a batch may be too large for memory
    predictions = _predict(entries, task, data, config, device, group)
    view = VIEWS[config.data.task]
    runs = _runs(entries, view, mismatches, baselines, predictions)
    ids = None if groups is None else groups.ids
    outcomes = [one.outcome(ids) for one in predictions]
    settings = Settings(config.table.margin, config.table.contrasts and list(config.table.contrasts))
    rows, direct = aggregate(runs, outcomes, view, settings)
    for row in rows:
        row |= paper_results.columns(row, config.data)
        row |= {"images_per_second": None, **costs[row["runs"][0]]}
        if config.table.speed:
            row |= speed.training_costs(row, entries)
    table = {
        "schema": SCHEMA,
        "task": config.data.task,
        "data": _facts(data, config.data.trained_on, groups),
        "settings": asdict(settings),
        "evaluated": _circumstances(entries, config, device),
        "rows": rows,
        "direct": direct,
        "runs": runs,
        "omitted": list(omitted),
    }
    evidence = [RunEvidence(p, entry.record, entry.config) for entry, p in zip(entries, predictions, strict=True)]
    return table, Evidence(evidence, groups)


def _plain_first(entries: Sequence[TableEntry]) -> list[TableEntry]:
    """Return the entries, the plain network first of each backbone: the recipe of others is compared with its."""
    backbones = [(entry.row["model"], entry.row.get("detector")) for entry in entries]
    return sorted(
        entries,
        key=lambda entry: (
            backbones.index((entry.row["model"], entry.row.get("detector"))),
            entry.row["attention"] != "none",
        ),
    )


def _facts(data: AnyDataset, trained_on: str | None, groups: ImageGroups | None) -> Row:
    """Return the table's facts on its data set."""
    return {
        "name": data.name,
        "classes": len(data.classes),
        "class_names": list(data.classes),
        "train_images": len(data.train),
        "val_images": len(data.val),
        "fingerprint": data.fingerprint,
        "trained_on": trained_on,
        "groups": None if groups is None else len(set(groups.groups)),
    }


def _circumstances(entries: Sequence[TableEntry], config: EvaluateConfig, device: torch.device) -> Row:
    """Return the table's facts on its evaluation and, for its speeds, on the hardware of the training."""
    return {
        "precision": config.runtime.precision,
        "throughput_batch_size": config.runtime.eval_batch_size if config.table.speed else None,
        **({"training_hardware": speed.training_hardware(entries)} if config.table.speed else {}),
        **environment.collect_env(device),
    }


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
                f"{entry.row['source']} was not trained on the images in {config.data.root}; set data.root and the "
                "other keys of data, such as data.val_fraction, as in its config.yaml."
            )


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
    view: View,
    mismatches: Sequence[str],
    baselines: Sequence[int | None],
    predictions: Sequence[Predictions],
) -> list[Row]:
    runs: list[Row] = []
    for entry, mismatch, baseline, own in zip(entries, mismatches, baselines, predictions, strict=True):
        run = entry.row | {"recipe_deviation": mismatch, "baseline": baseline}
        run |= run_numbers(own, None if baseline is None else predictions[baseline], view)
        run["published_gap"] = _published_gap(run, view.keys[0])
        run["predictions_sha256"] = own.sha256()
        run["raw"] = _raw(run, [other["raw"] for other in runs])
        runs.append(run)
    return runs


def run_numbers(own: Predictions, baseline: Predictions | None, view: View) -> Row:
    """Return the numbers of a run that follow from its predictions and those of its baseline."""
    values = view.values(own.metrics())
    if baseline is None:
        return {**values, "difference": None}
    (primary, *_) = view.keys
    other = view.values(baseline.metrics())[primary]
    difference = None if None in (values[primary], other) else values[primary] - other
    return {**values, "difference": difference, **own.exact_test(baseline)}


def _published_gap(run: Row, primary: str) -> float | None:
    """Return the measured minus the published metric of the start weights, in points."""
    if run["published"] is None:
        return None
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
