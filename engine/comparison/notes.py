"""The notes below a table: first those on the table as a whole, then those on single rows."""

from collections.abc import Iterator, Sequence
from typing import Any

from engine.tasks.base import Task
from engine.tasks.columns import DAGGER, is_as_published

Row = dict[str, Any]


def table_notes(table: dict[str, Any], task: type[Task]) -> list[str]:
    """Return the notes of a table, one sentence or more each."""
    data, evaluated, rows = table["data"], table["evaluated"], table["rows"]
    notes = [
        _images(data),
        "GFLOPs are multiply-adds of convolutions and linear layers for one image, in 1e9, as the paper counts.",
        *task.notes,
        f"Evaluated in {evaluated['precision']} on {evaluated['device']} with torch {evaluated['packages']['torch']}.",
    ]
    if any(len(row["seeds"]) > 1 for row in rows):
        notes.append(task.several_seeds_note)
    if evaluated["throughput_batch_size"] is not None:
        notes.append(
            f"Images/s: the network alone, in batches of {evaluated['throughput_batch_size']} in "
            f"{evaluated['precision']} on {evaluated['device']}."
        )
    if any(row.get("gate_movement_mean") is not None for row in rows):
        notes.append(
            "Gates moved: |gate x gain - 1| at the end of training over the validation images, as the record says; 0 "
            "where attention leaves every feature map as it is."
        )
    averaged = [row for row in rows if row.get("weights") == "moving average"]
    if averaged:
        names = (" ".join((row["model"], row["attention"], row.get("recipe") or "")) for row in averaged)
        named = ", ".join(name.strip() for name in names)
        notes.append(f"Weights: the exponential moving average, for {named}; else those of the last step.")
    if any(row["paper_top1_error"] is not None for row in rows):
        notes.append(
            "Paper: arXiv 1807.06521v2, Tables 4 and 5, trained from scratch for 90 epochs by its authors; compare "
            "with rows of that recipe only."
        )
    return notes + [note for row in rows for note in _row_notes(row, table["runs"], task, evaluated)]


def _images(data: Row) -> str:
    if data.get("trained_on") is None:
        return (
            f"{data['name']}: {data['classes']} classes, {data['train_images']} training images, every one of the "
            f"{data['val_images']} validation images once, one crop."
        )
    return (
        f"{data['name']}: {data['classes']} classes, every one of the {data['val_images']} images once, one crop. The "
        f"networks were trained on {data['trained_on']} and on no image of this set; only the logits of its classes "
        "are compared."
    )


def _row_notes(row: Row, runs: Sequence[Row], task: type[Task], evaluated: Row) -> Iterator[str]:
    name, (primary, *_) = f"{row['model']} {row['attention']}", task.table_metrics
    metric = primary.replace("_", " ").replace("top1", "top-1")
    if row["recipe_deviation"]:
        yield f"{DAGGER} {name} was trained differently: {row['recipe_deviation']}."
    if row["baseline"] is not None and row["baseline_seeds"] != row["seeds"]:
        seeds = ", ".join(map(str, row["baseline_seeds"]))
        yield f"{name}: the difference is over seeds {seeds}, for which there is a baseline."
    if row["published_gap"] is not None:
        yield (
            f"{name}: start weights of published {metric} {row['published']:.2f}%, measured "
            f"{row['published_gap']:+.2f}; {_publication_verdict(row, evaluated['precision'])}."
        )
    for run in (runs[i] for i in row["runs"]):
        if run["recorded"] is not None and run["recorded"] != run[primary]:
            yield f"{run['source']}: its record says {run['recorded']:.2f}% {metric}, this evaluation differs."


def _publication_verdict(row: Row, precision: str) -> str:
    if is_as_published(row):
        return "as published"
    if precision == "fp32":
        return "NOT as published: the pipeline is at fault, not the model"
    return f"NOT as published, which {precision} alone can cause; evaluate in fp32 to decide"
