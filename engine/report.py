"""The table in four forms, and the raw rows beside it."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine import checkpoint
from engine.config import EvaluateConfig
from engine.errors import UserError

Row = dict[str, Any]

# Title and text of each column of the printed table.
COLUMNS: Sequence[tuple[str, Callable[[Row], str]]] = (
    ("Model", lambda row: row["model"]),
    ("Attention", lambda row: row["attention"]),
    ("Params (M)", lambda row: f"{row['parameters'] / 1e6:.2f}"),
    ("GFLOPs", lambda row: f"{row['gflops']:.3f}"),
    ("Epochs", lambda row: str(row["epochs"])),
    ("Seed", lambda row: _or_dash(row["seed"], "d")),
    ("Top-1 error at start (%)", lambda row: _or_dash(row.get("top1_error_start"), ".2f")),
    ("Top-1 error (%)", lambda row: f"{row['top1_error']:.2f}"),
    ("Top-5 error (%)", lambda row: f"{row['top5_error']:.2f}"),
    ("Difference in top-1 error (points)", lambda row: _or_dash(row["difference"], "+.2f")),
)


def folder(config: EvaluateConfig) -> Path:
    """Where the table of a configuration goes."""
    return Path(config.table.dir or f"results/{config.data.label}")


def write(table: dict[str, Any], directory: Path) -> str:
    """Write table.md, .csv, .json and .tex, and each row's record and predictions below rows/.

    Returns:
        The table as Markdown.

    Raises:
        UserError: if the folder cannot be written.
    """
    try:
        (directory / "rows").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory} cannot be made ({error.strerror}); set table.dir to another folder.") from error
    rows = [row | {"raw": f"rows/{_name(row)}"} for row in table["rows"]]
    for row, record, predictions in zip(rows, table["records"], table["predictions"], strict=True):
        predictions.save(directory / f"{row['raw']}.npz")
        if record:
            _write_text(directory / f"{row['raw']}.json", json.dumps(record, indent=2) + "\n")
    kept = {"data": table["data"], "evaluated": table["evaluated"], "rows": rows}
    markdown = _markdown(kept)
    _write_text(directory / "table.json", json.dumps(kept, indent=2) + "\n")
    _write_text(directory / "table.md", markdown)
    _write_text(directory / "table.csv", _csv(rows))
    _write_text(directory / "table.tex", _latex(rows))
    return markdown


def _markdown(table: dict[str, Any]) -> str:
    header = [title for title, _ in COLUMNS]
    lines = [" | ".join(header), " | ".join("---" if i < 2 else "--:" for i in range(len(header)))]
    lines += [" | ".join(text(row) for _, text in COLUMNS) for row in table["rows"]]
    body = "\n".join(f"| {line} |" for line in lines)
    return f"{body}\n\n{_caption(table)}\n"


def _caption(table: dict[str, Any]) -> str:
    data, evaluated = table["data"], table["evaluated"]
    sentences = [
        f"{data['name']}: {data['classes']} classes, {data['train_images']} training images, every one of the "
        f"{data['val_images']} validation images once, one crop.",
        "GFLOPs are multiply-adds of convolutions and linear layers for one image, in 1e9.",
        "The difference is to the same backbone without attention under the same recipe, seed and images; "
        "negative is better.",
        f"Evaluated in {evaluated['precision']} on {evaluated['device']} with torch {evaluated['packages']['torch']}.",
    ]
    return "\n".join(sentences + [sentence for row in table["rows"] for sentence in _remarks(row)])


def _remarks(row: Row) -> list[str]:
    """What a reader has to know of one row."""
    remarks = []
    recorded, published = row.get("recorded_top1_error"), row.get("published_top1_error")
    if recorded is not None and recorded != row["top1_error"]:
        remarks.append(f"{row['source']}: its record says {recorded:.2f}% top-1 error, this evaluation differs.")
    if published is not None:
        gap = row["top1_error"] - published
        verdict = "as published" if abs(gap) <= 0.05 else "NOT as published: the pipeline is at fault, not the model"
        remarks.append(f"{row['model']}: published top-1 error {published:.2f}%, measured {gap:+.2f}; {verdict}.")
    return remarks


def _csv(rows: list[Row]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _latex(rows: list[Row]) -> str:
    """A booktabs table."""
    header = " & ".join(_escape(title) for title, _ in COLUMNS)
    body = [" & ".join(_escape(text(row)) for _, text in COLUMNS) + r" \\" for row in rows]
    columns = "ll" + "r" * (len(COLUMNS) - 2)
    return "\n".join(
        (
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rf"{header} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        )
    )


def _escape(text: str) -> str:
    for character in "%_&#":
        text = text.replace(character, f"\\{character}")
    return text


def _name(row: Row) -> str:
    """File name of a row's raw data: resnet18_cbam_seed51."""
    attention = "" if row["attention"] == "none" else f"_{row['attention']}"
    return f"{row['model']}{attention}_" + ("published" if row["seed"] is None else f"seed{row['seed']}")


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _write_text(path: Path, text: str) -> None:
    checkpoint.write_whole(path, lambda file: file.write(text.encode()))
