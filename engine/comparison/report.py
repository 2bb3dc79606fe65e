"""A table in its forms, all of them rendered from table.json, and the raw rows beside it."""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine import checkpoint
from engine.comparison import plot
from engine.comparison.compare import Evidence
from engine.comparison.verify import verify_table
from engine.config import EvaluateConfig
from engine.errors import UserError

Row = dict[str, Any]
Table = dict[str, Any]

TOLERANCE = 0.05  # points between a published accuracy and ours, beyond which the pipeline is at fault
DAGGER = "†"

# Title and text of each column of the printed table. A column without any text is left out.
COLUMNS: Sequence[tuple[str, Callable[[Row], str]]] = (
    ("Backbone", lambda cell: cell["model"] + (f" {DAGGER}" if cell["recipe_deviation"] else "")),
    ("Attention", lambda cell: cell["attention"]),
    ("Params (M)", lambda cell: f"{cell['parameters'] / 1e6:.2f}"),
    ("GFLOPs", lambda cell: f"{cell['gflops']:.3f}"),
    ("Epochs", lambda cell: str(cell["epochs"])),
    ("Seeds", lambda cell: ", ".join(map(str, cell["seeds"]))),
    ("Top-1 error at start (%)", lambda cell: _mean(cell, "top1_error_start")),
    ("Top-1 error (%)", lambda cell: _mean(cell, "top1_error")),
    ("Top-5 error (%)", lambda cell: _mean(cell, "top5_error")),
    ("Difference in top-1 error (points) [95% interval]", lambda cell: _difference(cell)),
    ("Won : lost (images)", lambda cell: "" if cell["baseline"] is None else f"{cell['won']} : {cell['lost']}"),
    ("p", lambda cell: "" if cell["baseline"] is None else _p_value(cell["p_value"])),
    ("Images/s", lambda cell: _number(cell["images_per_second"], ".0f")),
    ("Paper: top-1 error (%)", lambda cell: _number(cell["paper_top1_error"], ".2f")),
    ("Paper: top-5 error (%)", lambda cell: _number(cell["paper_top5_error"], ".2f")),
    ("Start weights: published top-1 error (%)", lambda cell: _published(cell)),
)


def folder(config: EvaluateConfig) -> Path:
    """Where the table of a configuration goes."""
    return Path(config.table.dir or f"results/{config.data.label}")


def write(table: Table, evidence: Sequence[Evidence], directory: Path) -> str:
    """Write table.json, each row's predictions, record and config below rows/, and every form of the table.

    Returns:
        The table as Markdown.

    Raises:
        UserError: if the folder cannot be written.
    """
    try:
        (directory / "rows").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory} cannot be made ({error.strerror}); set table.dir to another folder.") from error
    for row, behind in zip(table["rows"], evidence, strict=True):
        behind.predictions.save(directory / f"{row['raw']}.npz")
        if behind.record:
            _write_text(directory / f"{row['raw']}.json", json.dumps(behind.record, indent=2) + "\n")
            _write_text(directory / f"{row['raw']}.yaml", behind.config)
    _write_text(directory / "table.json", json.dumps(table, indent=2) + "\n")
    return render(directory)


def render(directory: Path) -> str:
    """Write every form of the table from its table.json, once its numbers are counted again from the predictions.

    The same table.json gives the same bytes.

    Returns:
        The table as Markdown.

    Raises:
        UserError: if table.json cannot be read, or does not follow from the stored predictions.
    """
    try:
        table: Table = json.loads((directory / "table.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"The table {directory / 'table.json'} cannot be read ({error}); run evaluate.py.") from error
    try:
        verify_table(table, directory)
        markdown, csv, latex = _markdown(table), _csv(table["cells"]), _latex(table)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # of values that are not as written
        raise UserError(f"{directory / 'table.json'} is damaged ({error!r}); run evaluate.py.") from error
    _write_text(directory / "table.md", markdown)
    _write_text(directory / "table.csv", csv)
    _write_text(directory / "table.tex", latex)
    if not plot.write(table, directory):
        print("No figure without matplotlib: pip install matplotlib, then render the table again.", file=sys.stderr)
    return markdown


def _columns(cells: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Titles, and one text per cell; `-` where there is none."""
    texts = [(title, [text(cell) for cell in cells]) for title, text in COLUMNS]
    return [(title, [text or "-" for text in column]) for title, column in texts if any(column)]


def _markdown(table: Table) -> str:
    columns = [*_columns(table["cells"]), ("Config and records", [_links(c, table["rows"]) for c in table["cells"]])]
    lines = [
        " | ".join(title for title, _ in columns),
        " | ".join("---" if i < 2 else "--:" for i in range(len(columns))),
        *(" | ".join(texts) for texts in zip(*(column for _, column in columns), strict=True)),
    ]
    body = "\n".join(f"| {line} |" for line in lines)
    notes = "\n".join(f"- {note}" for note in _notes(table))
    return f"{body}\n\n{notes}\n"


def _links(cell: Row, rows: Sequence[Row]) -> str:
    trained = [rows[i] for i in cell["rows"] if rows[i]["seed"] is not None]
    if not trained:
        return str(rows[cell["rows"][0]]["source"])
    records = [f"[{row['seed']}]({row['raw']}.json)" for row in trained]
    return ", ".join([f"[config]({trained[0]['raw']}.yaml)", *records])


def _notes(table: Table) -> list[str]:
    """What a reader has to know of the table as a whole, then of single rows."""
    data, evaluated, cells = table["data"], table["evaluated"], table["cells"]
    notes = [
        f"{data['name']}: {data['classes']} classes, {data['train_images']} training images, every one of the "
        f"{data['val_images']} validation images once, one crop.",
        "GFLOPs are multiply-adds of convolutions and linear layers for one image, in 1e9, as the paper counts.",
        "The difference is to the same backbone without attention under the same recipe, seed and images; negative "
        "is better. Its interval is a paired bootstrap over the images (10,000 resamples, percentiles): it speaks of "
        "other images, for these trained networks, not of another training. Called not distinguishable from 0 unless "
        "interval and test agree.",
        "p: exact, two-sided, of the images won against those lost; for one seed this is McNemar's test.",
        f"Evaluated in {evaluated['precision']} on {evaluated['device']} with torch {evaluated['packages']['torch']}.",
    ]
    if any(len(cell["seeds"]) > 1 for cell in cells):
        notes.append(
            "Several seeds: mean ± standard deviation over seeds; the difference is pooled, an image's outcomes under "
            "all seeds resampled together; an image is won where attention is right in more of the seeds. A "
            "difference counts as supported only where every seed's has the same sign."
        )
    if evaluated["throughput_batch_size"] is not None:
        notes.append(
            f"Images/s: the network alone, in batches of {evaluated['throughput_batch_size']} in "
            f"{evaluated['precision']} on {evaluated['device']}."
        )
    if any(cell["paper_top1_error"] is not None for cell in cells):
        notes.append(
            "Paper: arXiv 1807.06521v2, Tables 4 and 5, trained from nothing for 90 epochs by its authors; compare "
            "with rows of that recipe only."
        )
    return notes + [note for cell in cells for note in _cell_notes(cell, table["rows"])]


def _cell_notes(cell: Row, rows: Sequence[Row]) -> list[str]:
    name = f"{cell['model']} {cell['attention']}"
    notes = []
    if cell["recipe_deviation"]:
        notes.append(f"{DAGGER} {name} was trained differently: {cell['recipe_deviation']}.")
    if cell["baseline"] is not None and cell["baseline_seeds"] != cell["seeds"]:
        seeds = ", ".join(map(str, cell["baseline_seeds"]))
        notes.append(f"{name}: the difference is over seeds {seeds}, for which there is a baseline.")
    if cell["published_gap"] is not None:
        verdict = "as published" if _as_published(cell) else "NOT as published: the pipeline is at fault, not the model"
        notes.append(
            f"{name}: start weights of published top-1 error {cell['published_top1_error']:.2f}%, "
            f"measured {cell['published_gap']:+.2f}; {verdict}."
        )
    for row in (rows[i] for i in cell["rows"]):
        recorded = row["recorded_top1_error"]
        if recorded is not None and recorded != row["top1_error"]:
            notes.append(f"{row['source']}: its record says {recorded:.2f}% top-1 error, this evaluation differs.")
    return notes


def _csv(cells: Sequence[Row]) -> str:
    """Every value of every cell, unrounded."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in cell.items()})
    return text.getvalue()


def _latex(table: Table) -> str:
    """A booktabs table with its notes below."""
    columns = _columns(table["cells"])
    rows = zip(*(column for _, column in columns), strict=True)
    return "\n".join(
        (
            r"% \usepackage{booktabs}",
            rf"\begin{{tabular}}{{ll{'r' * (len(columns) - 2)}}}",
            r"\toprule",
            " & ".join(_escape(title) for title, _ in columns) + r" \\",
            r"\midrule",
            *(" & ".join(map(_escape, texts)) + r" \\" for texts in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
            r"\begin{flushleft}\footnotesize",
            *(_escape(note) + r"\\" for note in _notes(table)),
            r"\end{flushleft}",
            "",
        )
    )


_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "%_&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", DAGGER: r"$^\dagger$", "<": "$<$"}
)


def _escape(text: str) -> str:
    return re.sub(r"(?<![\w$])-(?=\d)", lambda _: "$-$", text.translate(_LATEX))


def _mean(cell: Row, key: str) -> str:
    spread = cell[f"{key}_sd"]
    return _number(cell[key], ".2f") + ("" if spread is None else f" ± {spread:.2f}")


def _difference(cell: Row) -> str:
    if cell["baseline"] is None:
        return "" if cell["attention"] == "none" else "no baseline"
    mark = f" {DAGGER}" if cell["baseline_differs"] else ""
    spread = "" if cell["difference_sd"] is None else f" ± {cell['difference_sd']:.2f}"
    interval = f"[{cell['difference_low']:+.2f}, {cell['difference_high']:+.2f}]"
    verdict = "" if cell["distinguishable"] else ", not distinguishable from 0"
    return f"{cell['difference']:+.2f}{spread} {interval}{verdict}{mark}"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _published(cell: Row) -> str:
    if cell["published_gap"] is None:
        return ""
    verdict = "" if _as_published(cell) else ", NOT as published"
    return f"{cell['published_top1_error']:.2f} (measured {cell['published_gap']:+.2f}{verdict})"


def _as_published(cell: Row) -> bool:
    return abs(cell["published_gap"]) <= TOLERANCE


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _write_text(path: Path, text: str) -> None:
    checkpoint.atomic_write(path, lambda file: file.write(text.encode()))
