"""The table as a figure: a forest plot of the differences and, for several backbones, the metric against cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.comparison.columns import is_supported, marked
from engine.comparison.notes import contrasts
from engine.comparison.pictures import rendered
from engine.comparison.view import VIEWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Table = dict[str, Any]

_BACKBONES_FOR_COST = 3  # fewest backbones for the panel of the metric against cost
_LINE = 0.24  # height of a line of the forest plot, inches
# One of each for each kind of attention, none first. Okabe and Ito's colorblind-safe colors.
_COLORS = ("black", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = ("o", "D", "s", "^", "v", "P")


def files(table: Table) -> dict[str, bytes]:
    """Return the contents of table.png and table.svg; empty without matplotlib."""
    shown = contrasts(table)
    with_cost = len({row["model"] for row in table["rows"]}) >= _BACKBONES_FOR_COST or not shown
    lines = len(shown) + len({row["model"] for row in shown})
    height = max(1.9 if not with_cost else 3.6, 1.1 + _LINE * lines)
    size = (7.2 if shown else 0.0) + (4.6 if with_cost else 0.0), height

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(1, bool(shown) + with_cost, squeeze=False, width_ratios=_widths(shown, with_cost))[0]
        if shown:
            draw_forest(panels[0], shown, table)
        if with_cost:
            draw_cost(panels[-1], table)

    return {f"table.{form}": content for form, content in rendered(size, draw).items()}


def _widths(shown: Sequence[Row], with_cost: bool) -> list[float]:
    return [width for width, is_there in ((7.2, bool(shown)), (4.6, with_cost)) if is_there]


def draw_forest(axes: "Axes", shown: Sequence[Row], table: Table) -> None:
    """Draw one line per contrast, grouped by backbone: the difference and the interval that decides."""
    view, margin = VIEWS[table["task"]], table["settings"]["margin"]
    kinds = _kinds(table["rows"])
    counts = {len(row["contrast_seeds"]) for row in shown}
    names, places, place = [], [], 0
    for model in dict.fromkeys(row["model"] for row in shown):
        axes.text(0.01, place, model, fontsize=8, weight="bold", va="center", transform=axes.get_yaxis_transform())
        place += 1
        for row in (one for one in shown if one["model"] == model):
            _draw_contrast(axes, row, place, kinds)
            names.append(marked(row) if len(counts) == 1 else f"{marked(row)}, {_seeds(row)}")
            places.append(place)
            place += 1
    if margin is not None:
        axes.axvspan(-margin, margin, color="gray", alpha=0.15, linewidth=0, label=f"margin of {margin:g} points")
        axes.legend(fontsize=7, frameon=False, loc="lower right")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(place - 0.4, -0.6)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -0.05 * high), max(high, -0.05 * low))
    axes.grid(axis="x", alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{view.metric} minus that without attention (points), 95% interval; {view.better} is better")
    seeds = [_seeds(shown[0])] if len(counts) == 1 else []
    axes.set_title(f"{', '.join([table['data']['name'], *seeds])}. {_verdict(shown)}", fontsize=9, loc="left")


def _draw_contrast(axes: "Axes", row: Row, place: int, kinds: Sequence[str]) -> None:
    color, marker = _style(kinds, row["attention"].partition(" - ")[0])
    if "against" in row:
        color = "gray"
    axes.plot([row["difference_low"], row["difference_high"]], [place, place], color=color, linewidth=1.4)
    face = color if is_supported(row) else "white"
    axes.plot([row["difference"]], [place], marker, color=color, markerfacecolor=face, markersize=5, zorder=3)


def _seeds(row: Row) -> str:
    count = len(row["contrast_seeds"])
    return f"{count} seed{'s' if count > 1 else ''}"


def _verdict(shown: Sequence[Row]) -> str:
    """Return what the filled markers mean, or why there are none."""
    tested = sum(row["p_adjusted"] is not None for row in shown)
    if not tested:
        return "One seed: no verdict"
    adjusted = f"after adjustment for {tested} contrast{'s' if tested > 1 else ''}"
    if any(map(is_supported, shown)):
        return f"Filled: supported {adjusted}"
    return f"No difference is supported {adjusted}"


def draw_cost(axes: "Axes", table: Table) -> None:
    """Draw the metric of every row against its cost, with a line from each baseline to its networks."""
    view, rows = VIEWS[table["task"]], table["rows"]
    metric, kinds = view.keys[0], _kinds(rows)
    axes.set_xscale("log")
    for row in rows:
        color, marker = _style(kinds, row["attention"])
        axes.plot([row["gflops"]], [row[metric]], marker, color=color, markersize=5, zorder=3)
        if row["attention"] == "none":
            axes.annotate(row["model"], (row["gflops"], row[metric]), (0, 6), textcoords="offset points", fontsize=7)
        if row["baseline"] is not None:
            baseline = rows[row["baseline"]]
            ends = [baseline["gflops"], row["gflops"]], [baseline[metric], row[metric]]
            axes.plot(*ends, color=color, linewidth=0.8, alpha=0.6)
    for kind in kinds:
        color, marker = _style(kinds, kind)
        axes.plot([], [], marker, color=color, label="no attention" if kind == "none" else kind)
    axes.legend(fontsize=7, frameon=False)
    axes.margins(0.18, 0.12)
    costs = [row["gflops"] for row in rows]
    steps = [digit * 10.0**power for power in range(-4, 4) for digit in (1, 2, 5)]
    ticks = [step for step in steps if 0.6 * min(costs) <= step <= 1.6 * max(costs)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("GFLOPs (multiply-adds)")
    axes.set_ylabel(view.label)


def _kinds(rows: Sequence[Row]) -> list[str]:
    """Return the kinds of attention in the table: none, CBAM, then the rest."""
    kinds = dict.fromkeys(row["attention"].partition("-")[0] for row in rows)
    return sorted(kinds, key=lambda kind: (kind != "none", kind != "cbam", kind))


def _style(kinds: Sequence[str], attention: str) -> tuple[str, str]:
    round_, place = divmod(kinds.index(attention.partition("-")[0]), len(_COLORS))
    return _COLORS[place], _MARKERS[(place + round_) % len(_MARKERS)]  # more kinds than colors: other pairs
