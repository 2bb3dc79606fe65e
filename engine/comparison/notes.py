"""The notes below a table: on the whole table, on its verdicts, on omitted runs and on single rows."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from engine.comparison import speed
from engine.comparison.columns import (
    DAGGER,
    TOLERANCE,
    attention,
    is_as_published,
    is_static,
    lr_factor,
    marked,
    network,
)
from engine.comparison.static_gates import IMAGES
from engine.comparison.view import VIEWS, View

Row = dict[str, Any]
Table = dict[str, Any]


def table_notes(table: Table) -> list[str]:
    """Return the notes of the main table, each of one or more sentences."""
    view = VIEWS[table["task"]]
    notes = [_images(table["data"], view), *_seeds(table["rows"])]
    if contrasts(table):
        notes += [
            f"The difference is the {view.metric} minus that of the same backbone without attention, with the same "
            f"recipe, seeds and images; {view.better} is better. Its interval is over images and, with several seeds, "
            "over seeds.",
            *_decision(table),
        ]
    if any(map(is_static, table["rows"])):
        notes.append(
            f"In the rows with static_gates, each gate is replaced by its mean over at most {IMAGES} training images: "
            "a channel gate by one value per channel, a spatial gate by one value per position. Their difference is "
            "relative to the same network with its own gates: if it is close to 0, the network has a learned scale, "
            "not attention."
        )
    return notes + summary_notes(table)


def summary_notes(table: Table) -> list[str]:
    """Return the notes for the terminal: verdicts, omitted runs, and single rows."""
    return [*_verdicts(table), *_omitted(table.get("omitted", [])), *_row_notes(table)]


def detail_notes(table: Table) -> list[str]:
    """Return the notes of the table of details."""
    evaluated, rows, view = table["evaluated"], table["rows"], VIEWS[table["task"]]
    notes = [
        "GFLOPs are billions of multiply-adds in convolutions and linear layers for one image, as in the paper.",
        *view.notes,
        f"Evaluated in {evaluated['precision']} on {evaluated['device']} with torch {evaluated['packages']['torch']}.",
    ]
    if any(row.get("seed_correlation") is not None for row in contrasts(table)):
        notes.append(
            "The correlation over seeds is that of the network's metric with its baseline's. If it is positive, "
            "pairing by seed narrows the interval."
        )
    notes += speed.notes(evaluated)
    notes += _notes_on_gates(rows)
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
        notes.append(view.paper_note)
    return notes


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
            "The distance of the gates from the identity is |gate x gain - 1| over the validation images at the end of "
            "training, from the records. It is 0 if attention leaves every feature map unchanged. After a random start "
            "it is not the movement of the gates, because they do not start at the identity."
        ]
    return []


def contrasts(table: Table) -> list[Row]:
    """Return the contrasts that have numbers: rows with a baseline, and direct contrasts as printed."""
    return [row for row in printed_rows(table) if row.get("difference") is not None]


def printed_rows(table: Table) -> list[Row]:
    """Return the rows of the table, and below them a row for each direct contrast."""
    rows = table["rows"]
    return [*rows, *(_direct_row(one, rows[one["row"]], rows[one["against"]]) for one in table.get("direct", []))]


def _direct_row(direct: Row, row: Row, other: Row) -> Row:
    shown = {key: row.get(key) for key in ("model", "detector", "attention_lr_factor", "recipe_deviation")}
    nothing = dict.fromkeys(("parameters", "gflops"))
    return shown | nothing | direct | {"attention": f"{row['attention']} - {other['attention']}", "seeds": row["seeds"]}


def _images(data: Row, view: View) -> str:
    grouped = ""
    if data.get("groups"):
        grouped = f" They are in {data['groups']:,} groups; images of one group are not counted as independent."
    if data.get("trained_on") is None:
        return (
            f"{data['name']}: {data['classes']} classes, {data['train_images']:,} training images and "
            f"{data['val_images']:,} validation images; each is evaluated {view.evaluation}.{grouped}"
        )
    return (
        f"{data['name']}: {data['classes']} classes and {data['val_images']:,} images; each is evaluated "
        f"{view.evaluation}.{grouped} The networks were trained on {data['trained_on']}, not on these images. Only the "
        "logits of these classes are compared."
    )


def _seeds(rows: Sequence[Row]) -> Iterator[str]:
    if all(len(row["seeds"]) < 2 for row in rows):
        return
    together = {tuple(row["seeds"]) for row in rows if row["seeds"]}
    which = f"seeds {_listed(next(iter(together)))}" if len(together) == 1 else "the seeds in details.md"
    yield f"Values are the mean ± standard deviation over {which}."


def _decision(table: Table) -> Iterator[str]:
    tested = [row for row in contrasts(table) if row.get("p_adjusted") is not None]
    if not tested:
        return
    count = len(tested)
    of_all = f"the {count} contrasts of this table" if count > 1 else "one contrast"
    yield (
        f"p is adjusted for {of_all} (Holm). A difference is supported, and bold, if p < 0.05. Detectable is the true "
        "difference that one such contrast would find with 80% power."
    )


def _verdicts(table: Table) -> Iterator[str]:
    """Yield one line for each verdict."""
    by_verdict: dict[str, list[str]] = {}
    for row in contrasts(table):
        by_verdict.setdefault(row["verdict"], []).append(f"{row['model']} {marked(row)}")
    metric = VIEWS[table["task"]].metric
    texts = {
        "lower": f"Supported, lower {metric}",
        "higher": f"Supported, higher {metric}",
        "equivalent": f"Equivalent within {table.get('settings', {}).get('margin')} points",
        "not distinguishable": "Not distinguishable from 0",
        "one seed": "One seed, no verdict",
    }
    for verdict, text in texts.items():
        if verdict in by_verdict:
            yield f"{text}: {', '.join(by_verdict[verdict])}."


def _omitted(omitted: Sequence[Row]) -> Iterator[str]:
    for reason, items in itertools.groupby(sorted(omitted, key=lambda one: one["reason"]), lambda one: one["reason"]):
        yield f"Not in this table ({reason}): {', '.join(one['source'] for one in items)}."


def _row_notes(table: Table) -> list[str]:
    """Return the notes on single rows; rows with the same note share it."""
    named: dict[str, list[str]] = {}
    for row in table["rows"]:
        baseline = None if row["baseline"] is None else table["rows"][row["baseline"]]
        for text in (*_partner_notes(row, baseline), *_facts(row, VIEWS[table["task"]], table["evaluated"])):
            named.setdefault(text, []).append(network(row))
    for one in table.get("direct", []):
        row, other = table["rows"][one["row"]], table["rows"][one["against"]]
        if not row["seeds"] == other["seeds"] == one["contrast_seeds"]:
            text = f"the difference is over {_seed_list(one['contrast_seeds'])}."
            named.setdefault(text, []).append(f"{row['model']} {attention(row)} - {other['attention']}")
    notes = [f"{', '.join(names)}: {text}" for text, names in named.items()]
    return [*notes, *_unlike_records(table)]


def _partner_notes(row: Row, baseline: Row | None) -> Iterator[str]:
    """Yield which seeds have no partner."""
    if baseline is None:
        if row["attention"] != "none":
            yield f"no baseline with {_seed_list(row['seeds'])}."
        return
    used = row["contrast_seeds"]
    if not row["seeds"] == baseline["seeds"] == used:
        yield (
            f"the difference is over {_seed_list(used)}, the mean over {_seed_list(row['seeds'])}, and the baseline's "
            f"mean over {_seed_list(baseline['seeds'])}."
        )
    if row["recipes_differ"]:
        yield "the baseline was trained with another recipe."


def _facts(row: Row, view: View, evaluated: Row) -> Iterator[str]:
    """Yield deviations from the table's recipe and from published values."""
    if row["recipe_deviation"]:
        yield f"{DAGGER} trained with {row['recipe_deviation']}."
    if row["published_gap"] is not None:
        yield (
            f"the published {view.metric} of the start weights is {row['published']:.2f}%; the measured one "
            f"differs by {row['published_gap']:+.2f} points, {_publication_verdict(row, evaluated['precision'])}."
        )


def _unlike_records(table: Table) -> Iterator[str]:
    """Yield the runs whose metric is not that of their record."""
    view = VIEWS[table["task"]]
    for run in table["runs"]:
        if run["recorded"] is not None and run["recorded"] != run[view.keys[0]]:
            yield f"{run['source']}: {view.metric} differs from {run['recorded']:.2f}% in its record."


def _seed_list(seeds: Sequence[int | None]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds)}"


def _listed(seeds: Sequence[int | None]) -> str:
    return ", ".join(map(str, seeds))


def _publication_verdict(row: Row, precision: str) -> str:
    if is_as_published(row):
        return f"within the tolerance of {TOLERANCE}"
    if precision == "fp32":
        return "which is NOT as published: the images or the pipeline differ from the published evaluation"
    return f"which is NOT as published: {precision} alone can be the cause; evaluate in fp32 to decide"
