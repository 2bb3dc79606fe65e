"""Say in two sentences what a table found, where its figure is, and how to see the curves of its runs.

python scripts/conclude.py table=runs/demo/table runs=runs/demo
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()

from engine import cli
from engine.errors import UserError
from engine.logging import print_line

METRICS = {"top1_error": ("a top-1 error", "%"), "ap": ("an AP", "%")}


def conclusion(rows: list[dict[str, Any]]) -> str:
    """Return two sentences on the first network of a table that has a baseline.

    Raises:
        UserError: if there is none.
    """
    compared = [row for row in rows if row["baseline"] is not None and row.get("difference") is not None]
    if not compared:
        raise UserError("The table compares nothing: it has no network with attention and its baseline.")
    row, baseline = compared[0], rows[compared[0]["baseline"]]
    metric = next(key for key in METRICS if key in row)
    label, unit = METRICS[metric]
    low, high = row["difference_low"], row["difference_high"]
    found = (
        f"{row['model']} with {row['attention']} has {label} of {row[metric]:.2f}{unit} and without attention of "
        f"{baseline[metric]:.2f}{unit}: a difference of {row['difference']:+.2f} points, 95% interval "
        f"[{low:+.2f}, {high:+.2f}]."
    )
    several = len(row["seeds"]) > 1
    if low <= 0 <= high:
        return f"{found} The interval contains 0, so this does not show that attention changes anything."
    scope = "of these seeds" if several else "of this one seed, and says nothing about others: train at least three"
    return f"{found} The interval excludes 0 for the runs {scope}."


def main(table: str, runs: str) -> None:
    file = Path(table) / "table.json"
    if not file.is_file():
        raise UserError(f"There is no table {file}; run evaluate.py.")
    print_line(f"\n{conclusion(json.loads(file.read_text(encoding='utf-8'))['rows'])}")
    figure = Path(table) / "table.png"
    if figure.is_file():
        print_line(f"Figure: {figure}")
    print_line(f"Curves and pictures: tensorboard --logdir {runs}")


if __name__ == "__main__":
    cli.run_script(main)
