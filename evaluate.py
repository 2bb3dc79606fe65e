"""Compare networks with and without attention on one data set.

    python evaluate.py data=imagenet                               # every finished run under runs/imagenet
    python evaluate.py data=imagenet runs=[DIR,DIR]                # these runs
    python evaluate.py data=imagenet published=[resnet50,vgg16]    # published weights as they are, no run needed
    python evaluate.py data=imagenet published=[timm/NAME] weights=FILE    # a file's weights, of any network
    python evaluate.py data=coco published=[resnet50,vgg16]        # published detectors on these backbones
    python evaluate.py data=imagenet_v2 data.root=DIR              # runs trained on ImageNet, on another test set
    python evaluate.py data=imagenet table.speed=true              # latency, images/s and memory too
    python evaluate.py data=imagenet table.static_gates=true       # with constant gates too: is it attention?

Writes the table to results/DATA (table.dir=DIR) and prints its main columns.
"""

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()
    from engine import cli

    cli.check_arguments("evaluate")  # before the imports that take seconds

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
from engine import cli
from engine.comparison import corruptions, markdown, report, static_gates, transfer
from engine.comparison.compare import compare, find_runs
from engine.comparison.entry import TableEntry
from engine.comparison.omitted import omitted_runs
from engine.comparison.one_class import one_class_networks, warn_of_one_class
from engine.config.presets import detector_preset
from engine.config.schemas import EvaluateConfig, TrainConfig
from engine.data.datasets import Dataset
from engine.data.evaluation_sets import open_evaluation_sets
from engine.errors import UserError
from engine.logging import log, print_line, setup_logging
from engine.processes.cluster import world_info_from_env
from engine.processes.determinism import set_determinism
from engine.processes.device import resolve_device
from engine.processes.distributed import ProcessGroup, init_distributed
from engine.runs.directory import RunDirectory
from engine.tasks.base import AnyDataset, Task
from engine.tasks.classification import Classification
from engine.tasks.detection import Detection
from engine.tasks.registry import TASKS
from train import build_model


def main(config: EvaluateConfig) -> None:
    set_determinism(seed=0, deterministic=config.runtime.deterministic)
    with init_distributed(world_info_from_env(os.environ), "table") as group:
        evaluate(config, group)


def evaluate(config: EvaluateConfig, group: ProcessGroup) -> None:
    setup_logging(group.is_main_process)
    replaced = report.replaced_runs(config, report.folder(config))
    task = TASKS[config.data.task](config.data)  # type: ignore[call-arg]  # every task is a dataclass of its data
    with group.main_process_first():
        parts = open_parts(task, config)
    for data in parts:
        data.require_same_images(group)
    with group.main_process_first():
        entries = [
            entry for name in config.published for entry in published_entries(name, task, config, parts[0].classes)
        ]
        is_published = any(":" not in name for name in config.published) and not Path(config.weights or "").is_file()
        if is_published and isinstance(task, Classification) and config.data.trained_on is None:
            transfer.require_outputs_in_order(parts[0], models.imagenet_classes())
    # All processes use the list of the main process, because another run may finish at the same time.
    directories = group.broadcast_object([str(run.directory) for run in find_runs(config)])
    trained, problems = run_entries(directories, task, needed=not entries)
    entries += trained
    report.require_kept_runs(config, replaced, [entry.row["source"] for entry in entries])
    note_sizes(trained, config)
    if isinstance(task, Classification) and isinstance(parts[0], Dataset) and config.data.trained_on is not None:
        entries, task = transfer.prepare(entries, task, parts[0], models.imagenet_classes())
    if config.table.static_gates:
        device = resolve_device(config.runtime.device, group)
        entries = static_gates.with_static_gates(entries, models.gates, task, parts[0], device, group)
    tables, folder, one_class = {}, report.folder(config), []
    compared = [Path(entry.row["source"]) for entry in trained]
    damaged = [path for path in map(Path, directories) if path not in compared]
    for data in parts:
        omitted = omitted_runs(config, compared, damaged, folder / data.part / "table.json")
        tables[data.part], evidence = compare(entries, task, data, config, group, omitted)
        one_class.append(one_class_networks(tables[data.part], evidence))
        if group.is_main_process:
            report.write(tables[data.part], evidence, folder / data.part)
    if group.is_main_process:
        part = parts[0].part  # empty unless the data set has several
        print_line(corruptions.write(tables, folder) if part else markdown.summary(tables[part]))
        note = f"; this replaces a table of {len(replaced)} run{'s' if len(replaced) > 1 else ''}" if replaced else ""
        log.info(f"Written to {folder / ('corruptions.md' if part else 'table.md')}{note}.")
    warn_of_one_class(one_class)
    if problems:
        raise UserError(f"{len(problems)} of {len(directories)} runs are not in the table. {problems[0]}")


def open_parts(task: Task, config: EvaluateConfig) -> Sequence[AnyDataset]:
    """Return the data set; for ImageNet-C, one for each corruption and severity."""
    return (
        [task.open(needs_training_images=config.table.static_gates)]
        if config.data.trained_on is None
        else open_evaluation_sets(config.data)
    )


def note_sizes(trained: Sequence[TableEntry], config: EvaluateConfig) -> None:
    """Log the sizes at which runs are evaluated if they are not those of `data`, which are for published weights."""
    size, resize = config.data.image_size, config.data.resize
    own = {(entry.preprocessing.crop, entry.preprocessing.resize) for entry in trained}
    if config.data.task == "classification" and any(crop != size or resize not in (None, side) for crop, side in own):
        sizes = " and ".join(f"data.image_size={crop} data.resize={side}" for crop, side in sorted(own))
        log.info(f"Runs are evaluated at the sizes of their training: {sizes}.")


def run_entries(directories: Sequence[str], task: Task, needed: bool) -> tuple[list[TableEntry], list[str]]:
    """Return the entries of finished runs, and a sentence for each run that is damaged.

    Args:
        needed: whether there is nothing to compare without these runs.

    Raises:
        UserError: if the runs are needed and all of them are damaged.
    """
    entries, problems = [], []
    for directory in directories:
        try:
            entries.append(run_entry(RunDirectory(Path(directory)), task))
        except (UserError, models.ModelError) as error:
            problems.append(str(error))
            log.warning(f"Without {directory}: {error}")
    if problems and not entries and needed:
        raise UserError(problems[0])
    return entries, problems


def run_entry(run: RunDirectory, task: Task) -> TableEntry:
    """Return the entry of a finished run, with its final weights."""
    state = run.final_state()  # rejects files that do not belong together
    config, record = run.config(), run.record()
    if config.detector.architecture == "none":
        model = models.build(  # which renames the attention of checkpoints of earlier versions
            config.model.network,
            config.model.attention,
            weights=str(run.last),
            num_classes=record["classes"],
            image_size=config.data.image_size,
            **config.attention_options,
        )
    else:
        model = build_model(config, record["class_names"], read_weights=False)
        model.load_state_dict(state["model"])
    return TableEntry.of_run(run, model, task, published_start(config))


def published_start(config: TrainConfig) -> Any | None:
    """Return torchvision's entry for a run's start weights; None if they are not published."""
    detector = config.detector
    if detector.weights is None:
        return models.published_entry(config.model.network, config.model.weights)
    return models.published_detector(detector.architecture, config.model.network, detector.weights)


def published_entries(name: str, task: Task, config: EvaluateConfig, classes: Sequence[str]) -> list[TableEntry]:
    """Return the entries of a network without training: the network itself, or the published detectors on it."""
    is_other = name.startswith("timm/") or ":" in name
    if name not in models.names() and not (is_other and isinstance(task, Classification)):
        raise UserError(
            f"published={name} is not a backbone; choose one of {', '.join(models.names())}"
            + (", timm/NAME or package.module:function." if isinstance(task, Classification) else ".")
        )
    if isinstance(task, Detection):
        return published_detectors(name, task, config, classes)
    return [published_network(name, task, config, classes)]


def published_network(name: str, task: Task, config: EvaluateConfig, data_classes: Sequence[str]) -> TableEntry:
    """Return the entry of a network without training, with its published weights, a file's or its function's.

    Args:
        data_classes: names of the data set's classes, into whose order the head of a file with class names is put.
    """
    weights = config.weights or default_weights(name)
    entry = models.published_entry(name, weights)
    classes = (
        transfer.trained_classes(config.data, len(data_classes)) if entry is None else len(entry.meta["categories"])
    )
    if config.data.trained_on is None and len(data_classes) != classes:
        raise UserError(
            f"The published weights of {name} have {classes} classes, but {config.data.label} has "
            f"{len(data_classes)}. Remove published=[{name}] or fine-tune it."
        )
    model = models.build(
        name,
        weights=weights,
        num_classes=classes,
        new_head=False,
        image_size=config.data.image_size,
        weights_key=config.weights_key,
        classes=data_classes if config.data.trained_on is None and Path(weights or "").is_file() else None,
    )
    transforms = models.transforms(name, weights)
    default = task.preprocessing(transforms, unmodified=True)
    preprocessing = default.adjusted(config.preprocessing)
    return TableEntry.of_published(name, model, config.data, preprocessing, source(name, weights, entry), entry)


def default_weights(name: str) -> str | None:
    """Return the weights of `published` without `weights=`; None for those that a user's function loads itself."""
    if ":" in name:
        return None
    return "default" if name.startswith("timm/") else "IMAGENET1K_V1"


def source(name: str, weights: str | None, entry: Any | None) -> str:
    """Return the origin of the weights of a network without training."""
    if entry is not None:
        return f"torchvision {entry.name}"
    if weights is None:
        return name
    return f"timm {weights}" if weights == "default" else Path(weights).name


def published_detectors(name: str, task: Detection, config: EvaluateConfig, classes: Sequence[str]) -> list[TableEntry]:
    """Return the entries of the unmodified published detectors on a backbone."""
    weights, entries = config.weights or "COCO_V1", []
    for architecture, entry in models.published_detectors(name):
        if entry.name != weights:
            continue
        unknown = [known for known in classes if known not in entry.meta["categories"]]
        if unknown:
            raise UserError(
                f"The published detector on {name} has no outputs for {len(unknown)} of the {len(classes)} classes of "
                f"{config.data.label} (first: {unknown[0]}). Remove published=[{name}] or fine-tune it."
            )
        detector = replace(detector_preset(architecture), weights=weights)
        model = models.build_detector(models.DetectorSpec(**detector.options), name, classes=classes)
        own_task = replace(task, detector=detector)
        preprocessing = own_task.preprocessing(entry.transforms(), unmodified=True)
        origin = source(name, weights, entry)
        entries.append(TableEntry.of_published(name, model, config.data, preprocessing, origin, entry, detector.name))
    if not entries:
        known = ", ".join(one for one in models.names() if models.published_detectors(one))
        raise UserError(
            f"torchvision publishes no detector on {name} with weights={weights}; it has COCO_V1 on {known}."
        )
    return entries


if __name__ == "__main__":
    cli.run("evaluate", main, models.ModelError)
