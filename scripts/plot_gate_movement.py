"""Plot the difference from the baseline against how far attention's gates moved, one panel for each table.

    python scripts/plot_gate_movement.py results/attention_lr/tiny_imagenet_other results/attention_lr/blood_cells

Writes movement.png and movement.svg into the parent of the first table's folder. Needs matplotlib.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

from engine import cli
from engine.comparison.view import VIEWS
from engine.errors import UserError
from engine.logging import open_streams

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's.
_COLORS = {"cbam": "#D55E00", "se": "#0072B2"}
_OTHER_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot(directories: list[Path]) -> None:
    """Write the figure.

    Raises:
        UserError: if a table cannot be read, or matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("Drawing needs matplotlib; pip install matplotlib.") from error
    tables = [_read(directory / "table.json") for directory in directories]
    with mpl.rc_context({"svg.hashsalt": "movement", "font.size": 9}):
        figure = Figure(figsize=(4.5 * len(tables), 4), layout="constrained")
        for axes, table in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, strict=True):
            _draw(axes, table)
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            figure.savefig(directories[0].parent / f"movement.{suffix}", dpi=200, metadata=metadata)


def _read(file: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The table {file} cannot be read ({error}); run evaluate.py.") from error
    return table


def _draw(axes: "Axes", table: dict[str, Any]) -> None:
    moved = [row for row in table["rows"] if row.get("gate_movement_mean") and row.get("difference") is not None]
    kinds = dict.fromkeys(row["attention"].partition("-")[0] for row in moved)
    others = zip((kind for kind in kinds if kind not in _COLORS), itertools.cycle(_OTHER_COLORS), strict=False)
    colors = _COLORS | dict(others)
    for kind, recipe in dict.fromkeys((row["attention"], row["recipe_deviation"]) for row in moved):
        rows = [row for row in moved if (row["attention"], row["recipe_deviation"]) == (kind, recipe)]
        rows.sort(key=lambda row: float(row["attention_lr_factor"]))
        color, style = colors[kind.partition("-")[0]], "o--" if recipe else "o-"
        label = f"{kind}, {recipe.partition(' ')[0]}" if recipe else kind
        x, y = [row["gate_movement_mean"] for row in rows], [row["difference"] for row in rows]
        low = [row["difference"] - row["difference_low"] for row in rows]
        high = [row["difference_high"] - row["difference"] for row in rows]
        axes.errorbar(x, y, (low, high), fmt=style, color=color, linewidth=0.9, markersize=4, label=label)
        for row in rows:
            point = (row["gate_movement_mean"], row["difference"])
            axes.annotate(f"{row['attention_lr_factor']:g}", point, (4, 4), textcoords="offset points", fontsize=7)
    axes.axhline(0, color="gray", linewidth=0.6)
    axes.set_xscale("log")
    from_start = any(row.get("gate_saturation_mean") is not None for row in moved)  # not in earlier versions
    axes.set_xlabel("mean |gate / start - 1|" if from_start else "mean |gate x gain - 1|")
    axes.set_ylabel(f"{VIEWS[table['task']].label}: difference from the baseline")
    axes.set_title(f"{table['data']['name']}; labels: attention's learning rate factor", fontsize=8)
    axes.legend(fontsize=8, frameon=False)


if __name__ == "__main__":
    open_streams()
    with cli.one_line_errors():
        if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
            raise UserError("Name the folders of the tables: plot_gate_movement.py DIR [DIR ...].")
        plot([Path(argument) for argument in sys.argv[1:]])
