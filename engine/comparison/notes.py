"""The notes below a table: first on the whole table, then on single rows."""

from collections.abc import Iterator, Sequence
from typing import Any

from engine.comparison.static_gates import IMAGES, SUFFIX
from engine.tasks.base import Task
from engine.tasks.columns import DAGGER, TOLERANCE, is_as_published, lr_factor

Row = dict[str, Any]


def table_notes(table: dict[str, Any], task: type[Task]) -> list[str]:
    """Return the notes of a table, each of one or more sentences."""
    data, evaluated, rows = table["data"], table["evaluated"], table["rows"]
    notes = [
        _images(data, task),
        "GFLOPs are billions of multiply-adds in convolutions and linear layers for one image, as in the paper.",
        *task.notes,
        f"Evaluated in {evaluated['precision']} on {evaluated['device']} with torch {evaluated['packages']['torch']}.",
    ]
    if any(len(row["seeds"]) > 1 for row in rows):
        notes.append(task.several_seeds_note)
    if evaluated["throughput_batch_size"] is not None:
        notes.append(
            f"Images/s is the speed of the network alone, in batches of {evaluated['throughput_batch_size']} in "
            f"{evaluated['precision']} on {evaluated['device']}."
        )
    notes += _notes_on_gates(rows)
    if any(row["attention"].endswith(SUFFIX) for row in rows):
        notes.append(
            f"In the rows with static_gates, each gate is replaced by its mean over at most {IMAGES} training images: "
            "a channel gate by one value per channel, a spatial gate by one value per position. Their difference is "
            "relative to the same network with its own gates: if it is close to 0, the network has a learned scale, "
            "not attention."
        )
    if any(lr_factor(row) for row in rows):
        notes.append("Attention's lr factor multiplies the learning rate of the attention parameters.")
    averaged = [row for row in rows if row.get("weights") == "moving average"]
    if averaged:
        names = (" ".join((row["model"], row["attention"], row.get("recipe") or "")) for row in averaged)
        named = ", ".join(name.strip() for name in names)
        notes.append(
            f"The weights of {named} are the exponential moving average; those of other runs are from the last step."
        )
    if any(value is not None for row in rows for key, value in row.items() if key.startswith("paper_")):
        notes.append(task.paper_note)
    return notes + row_notes(table, task)


def _notes_on_gates(rows: Sequence[Row]) -> list[str]:
    if any(row.get("gate_saturation_mean") is not None for row in rows):
        return [
            "Gates moved is |gate / start - 1| over the validation images at the end of training, from the records, "
            "where start is the gate's mean before the first step. It is 0 if attention does what it did then.",
            "Gates saturated is the share of gate values below 0.02 or above 0.98 over the validation images. A "
            "saturated gate has almost no gradient: it is a fixed mask, not attention.",
        ]
    if any(row.get("gate_movement_mean") is not None for row in rows):  # a table of an earlier version
        return [
            "Gates moved is |gate x gain - 1| over the validation images at the end of training, from the records. It "
            "is 0 if attention leaves every feature map unchanged."
        ]
    return []


def row_notes(table: dict[str, Any], task: type[Task]) -> list[str]:
    """Return the notes on single rows: deviations from the table's recipe, published values and records."""
    return [note for row in table["rows"] for note in _row_notes(row, table["runs"], task, table["evaluated"])]


def _images(data: Row, task: type[Task]) -> str:
    if data.get("trained_on") is None:
        return (
            f"{data['name']}: {data['classes']} classes, {data['train_images']:,} training images and "
            f"{data['val_images']:,} validation images; each is evaluated {task.view_note}."
        )
    return (
        f"{data['name']}: {data['classes']} classes and {data['val_images']:,} images; each is evaluated "
        f"{task.view_note}. The networks were trained on {data['trained_on']}, not on these images. Only the logits of "
        "these classes are compared."
    )


def _row_notes(row: Row, runs: Sequence[Row], task: type[Task], evaluated: Row) -> Iterator[str]:
    name, (primary, *_) = f"{row['model']} {row['attention']}", task.table_metrics
    metric = task.table_metric_label.partition(" (")[0].replace("Top", "top")
    if row["recipe_deviation"]:
        yield f"{DAGGER} {name} was trained differently: {row['recipe_deviation']}."
    if row["baseline"] is not None and row["baseline_seeds"] != row["seeds"]:
        seeds = ", ".join(map(str, row["baseline_seeds"]))
        yield f"{name}: the difference covers the seeds with a baseline, {seeds}."
    if row["published_gap"] is not None:
        yield (
            f"{name}: the published {metric} of the start weights is {row['published']:.2f}%; the measured one differs "
            f"by {row['published_gap']:+.2f} points, {_publication_verdict(row, evaluated['precision'])}."
        )
    for run in (runs[i] for i in row["runs"]):
        if run["recorded"] is not None and run["recorded"] != run[primary]:
            yield f"{run['source']}: {metric} differs from {run['recorded']:.2f}% in its record."


def _publication_verdict(row: Row, precision: str) -> str:
    if is_as_published(row):
        return f"within the tolerance of {TOLERANCE}"
    if precision == "fp32":
        return "which is NOT as published: the images or the pipeline differ from the published evaluation"
    return f"which is NOT as published: {precision} alone can be the cause; evaluate in fp32 to decide"
