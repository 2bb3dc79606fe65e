"""The table as a figure: the metric against cost, with an arrow from each baseline to its CBAM."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.tasks.base import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

# Attention costs next to nothing, so each kind is drawn this far to the right of the previous one, in points.
_APART = 11
# One of each for each kind of attention, none first. Okabe and Ito's colorblind-safe colors.
_COLORS = ("black", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = ("o", "D", "s", "^", "v", "P")


def render(table: dict[str, Any], task: type[Task]) -> dict[str, bytes]:
    """Return the content of table.png and table.svg; the same table gives the same bytes.

    The result is empty if matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return {}
    png, svg = io.BytesIO(), io.BytesIO()
    # Without these settings, names inside the SVG are random, both files contain the date or the version, and names
    # with dollar signs are parsed as formulas.
    with mpl.rc_context({"svg.hashsalt": "table", "font.size": 9, "text.parse_math": False}):
        figure = Figure(figsize=(8, 4.8), layout="constrained")
        _draw(figure.subplots(), table, task)
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return {"table.png": png.getvalue(), "table.svg": svg.getvalue()}


def _draw(axes: "Axes", table: dict[str, Any], task: type[Task]) -> None:
    metric, rows = task.table_metrics[0], table["rows"]
    kinds = sorted(dict.fromkeys(row["attention"] for row in rows), key=_rank)
    axes.set_xscale("log")
    _set_limits(axes, rows, metric)
    for row in rows:
        _draw_row(axes, row, rows, kinds.index(row["attention"]), metric)
    for position, kind in enumerate(kinds):
        color, marker = _style(position)
        axes.plot([], [], marker, color=color, label="no attention" if kind == "none" else kind)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))  # beside the axes
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("GFLOPs (multiply-adds) of the baseline; attention is drawn to its right")
    axes.set_ylabel(task.table_metric_label)
    what = task.table_metric_label.partition(" (")[0]
    title = f"{table['data']['name']}: {what}; bars: 95% interval of the paired difference from the baseline"
    if any(row["recipe_deviation"] for row in rows):
        title += "\n† trained with another recipe"
    axes.set_title(title, fontsize=9, loc="left")


def _draw_row(axes: "Axes", row: Row, rows: Sequence[Row], position: int, metric: str) -> None:
    """Draw a point; for attention, also the interval of its difference; for CBAM, also the arrow from its baseline."""
    from matplotlib.transforms import offset_copy

    baseline = None if row["baseline"] is None else rows[row["baseline"]]
    x, y = (baseline or row)["gflops"], row[metric]
    color, marker = _style(position)
    beside = offset_copy(axes.transData, axes.figure, x=_APART * position, units="points")  # type: ignore[arg-type]
    axes.plot([x], [y], marker, color=color, markersize=5, transform=beside, zorder=3)
    if row["attention"] == "none":
        place = (-6, _away(row, rows, axes.get_ylim(), metric))
        axes.annotate(row["model"], (x, y), place, textcoords="offset points", ha="right", va="center", fontsize=8)
    if row["recipe_deviation"]:
        axes.annotate("†", (x, y), (0, 8), xycoords=beside, textcoords="offset points", ha="center", va="center")
    if baseline is None:
        return
    axes.plot([x, x], _interval(row, metric), color=color, linewidth=1.2, transform=beside, zorder=2)
    if row["attention"].partition("-")[0] == "cbam":
        arrow = {"arrowstyle": "-|>", "color": color, "alpha": 0.6, "linewidth": 0.9, "shrinkA": 3, "shrinkB": 3}
        start = (x, baseline[metric])
        axes.annotate("", (x, y), start, xycoords=beside, textcoords="data", arrowprops=arrow)


def _set_limits(axes: "Axes", rows: Sequence[Row], metric: str) -> None:
    """Set limits with room for every point, interval and name, and ticks without exponents."""
    costs = [row["gflops"] for row in rows]
    errors = [bound for row in rows for bound in _interval(row, metric)]
    room = 0.08 * (max(errors) - min(errors)) + 0.1
    right = max(costs) * 1.5
    left = min(costs) / max(2.2, (right / min(costs)) ** 0.3)  # room for the names
    axes.set_xlim(left, right)
    axes.set_ylim(min(errors) - room, max(errors) + room)
    steps = [digit * 10.0**power for power in range(-4, 4) for digit in (1, 2, 5)]
    ticks = [step for step in steps if left <= step <= right]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _away(row: Row, rows: Sequence[Row], limits: tuple[float, float], metric: str) -> int:
    """Return the vertical offset of a name in points, away from a baseline of similar cost and error."""
    near = 0.05 * (limits[1] - limits[0])
    for other in rows:
        gap = row[metric] - other[metric]
        alike = abs(gap) < near and 0.6 < row["gflops"] / other["gflops"] < 1.7
        if other["attention"] == "none" and other is not row and alike:
            return 5 if (gap, row["gflops"], row["model"]) > (0, other["gflops"], other["model"]) else -5
    return 0


def _interval(row: Row, metric: str) -> tuple[float, float]:
    """Return the metric at the ends of the difference's interval; for a row without a baseline, its metric twice."""
    error = row[metric]
    if row["baseline"] is None:
        return error, error
    return error + row["difference_low"] - row["difference"], error + row["difference_high"] - row["difference"]


def _rank(kind: str) -> tuple[bool, bool, str]:
    """Return the sort key of a kind of attention: none, CBAM and its variants, the rest."""
    return kind != "none", kind.partition("-")[0] != "cbam", kind


def _style(position: int) -> tuple[str, str]:
    round_, place = divmod(position, len(_COLORS))
    return _COLORS[place], _MARKERS[(place + round_) % len(_MARKERS)]  # more kinds than colors: other pairs
