"""Compare networks with and without attention on one data set.

    python evaluate.py data=imagenet                               # every finished run under runs/imagenet
    python evaluate.py data=imagenet runs=[DIR,DIR]                # these runs
    python evaluate.py data=imagenet published=[resnet50,vgg16]    # published weights as they are, no run needed
    python evaluate.py data=imagenet table.throughput_batch_size=64    # images/s too

Writes the table to results/DATA (table.dir=DIR) and prints it.
"""

import os
from pathlib import Path

import models
from engine import cli, cluster, determinism, distributed
from engine.comparison import compare, report
from engine.comparison.entry import TableEntry
from engine.config import EvaluateConfig
from engine.data.datasets import open_dataset
from engine.distributed import ProcessGroup
from engine.errors import UserError
from engine.logging import log, setup_logging
from engine.run_dir import RunDirectory


def evaluate(config: EvaluateConfig) -> None:
    determinism.set_determinism(seed=0, deterministic=config.runtime.deterministic)
    with distributed.init_distributed(cluster.world_info_from_env(os.environ), "table") as group:
        evaluate_together(config, group)


def evaluate_together(config: EvaluateConfig, group: ProcessGroup) -> None:
    setup_logging(group.is_main_process)
    data = group.first_alone(lambda: open_dataset(config.data))
    entries = group.first_alone(lambda: [published(name, config) for name in config.published])
    found = [str(run.directory) for run in compare.find_runs(config)]
    entries += [
        finished(RunDirectory(Path(directory))) for directory in group.broadcast_object(found)
    ]  # another may end just now
    table, evidence = compare.compare(entries, data, config, group)
    if group.is_main_process:
        print(report.write(table, evidence, report.folder(config)))
        log.info(f"Written to {report.folder(config)}.")


def finished(run: RunDirectory) -> TableEntry:
    """A finished run with its final weights."""
    trained, record = run.config(), run.record()
    if not run.last.is_file():
        raise UserError(f"The weights {run.last} are gone; restore them, or delete {run.directory} and repeat the run.")
    model = models.build(
        trained.model.name,
        trained.model.attention,
        weights=str(run.last),
        num_classes=record["classes"],
        **trained.attention_options,
    )
    return TableEntry.of_run(run, model, models.published_entry(trained.model.name, trained.model.weights))


def published(name: str, config: EvaluateConfig) -> TableEntry:
    """A network with its published weights, as they are."""
    if name not in models.names():
        raise UserError(f"published={name} is no backbone; they are {', '.join(models.names())}.")
    entry = models.published_entry(name, config.weights)
    if entry is None:
        known = ", ".join(models.published(name)) or "none"
        raise UserError(f"weights={config.weights} are not published for {name}; published are {known}.")
    if config.data.num_classes != len(entry.meta["categories"]):
        raise UserError(
            f"The published weights of {name} tell {len(entry.meta['categories'])} classes apart, "
            f"{config.data.label} has {config.data.num_classes}; leave published=[{name}] out, or train it."
        )
    model = models.build(name, weights=config.weights)
    return TableEntry.of_published(name, model, entry, config.data)


if __name__ == "__main__":
    cli.run("evaluate", evaluate, models.ModelError)
