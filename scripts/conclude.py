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
from engine.comparison.view import VIEWS
from engine.errors import UserError
from engine.logging import print_line


def conclusion(table: dict[str, Any]) -> str:
    """Return two sentences on the first network of a table that has a baseline without attention.

    Raises:
        UserError: if there is none.
    """
    rows, view = table["rows"], VIEWS[table["task"]]
    pairs = [(row, rows[row["baseline"]]) for row in rows if row["baseline"] is not None]
    compared = [pair for pair in pairs if pair[1]["attention"] == "none" and pair[0].get("difference") is not None]
    if not compared:
        raise UserError("The table compares nothing: it has no network with attention and its baseline.")
    row, baseline = compared[0]
    metric, low, high = view.keys[0], row["difference_low"], row["difference_high"]
    found = (
        f"The {view.metric} of {row['model']} is {row[metric]:.2f}% with {row['attention']} and "
        f"{baseline[metric]:.2f}% without attention: a difference of {row['difference']:+.2f} points, 95% interval "
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
    print_line(f"\n{conclusion(json.loads(file.read_text(encoding='utf-8')))}")
    figure = Path(table) / "table.png"
    if figure.is_file():
        print_line(f"Figure: {figure}")
    print_line(f"Curves and pictures: tensorboard --logdir {runs}")


if __name__ == "__main__":
    cli.run_script(main)
