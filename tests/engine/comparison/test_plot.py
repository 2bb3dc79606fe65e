"""The figure: one line per contrast, and the metric against cost where there are several backbones."""

from pathlib import Path
from typing import Any

import pytest

from engine.comparison import plot
from engine.comparison.notes import contrasts
from tests.engine.comparison.test_report import compare, entry

pytest.importorskip("matplotlib", reason="needs matplotlib")


def drawn(table: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plot.draw_forest(axes, contrasts(table), table)
    return axes


@pytest.fixture
def table(folders: Path) -> dict[str, Any]:
    models = ("resnet18", "vgg16", "resnet50")
    networks = [(model, kind, seed) for model in models for kind in ("none", "cbam") for seed in (51, 52)]
    costs = dict(zip(models, (1.8, 15.5, 4.1), strict=True))
    entries = [entry(kind, seed, errors=0.5, model=model, gflops=costs[model]) for model, kind, seed in networks]
    return compare(folders, entries)[0]


def test_each_contrast_has_its_deciding_interval(table: dict[str, Any]) -> None:
    axes = drawn(table)
    intervals = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    rows = contrasts(table)
    for row in rows:
        assert [row["difference_low"], row["difference_high"]] in [list(one) for one in intervals]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cbam"] * 3
    assert axes.get_title(loc="left") == "small, 2 seeds. No difference is supported after adjustment for 3 contrasts"
    assert [text.get_text() for text in axes.texts] == ["resnet18", "vgg16", "resnet50"]


def test_the_title_states_the_verdict_and_rows_their_seeds_if_they_differ(folders: Path) -> None:
    entries = [entry(kind, seed, errors=0.5) for kind in ("none", "cbam") for seed in (51, 52)] + [entry("se")]
    axes = drawn(compare(folders, entries)[0])
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["cbam, 2 seeds", "se, 1 seed"]
    assert axes.get_title(loc="left") == "small. No difference is supported after adjustment for 1 contrast"
    supported = compare(folders, entries[:4])[0]
    supported["rows"][1]["verdict"] = "lower"
    assert drawn(supported).get_title(loc="left") == "small, 2 seeds. Filled: supported after adjustment for 1 contrast"


def test_margin_is_shaded(table: dict[str, Any]) -> None:
    assert not drawn(table).patches
    table["settings"]["margin"] = 0.2
    (shaded,) = drawn(table).patches
    assert (shaded.get_x(), shaded.get_width()) == (-0.2, 0.4)


def test_cost_is_drawn_for_three_backbones(table: dict[str, Any]) -> None:
    assert b"GFLOPs (multiply-adds)" in _labels(table)
    rows = [row for row in table["rows"] if row["model"] != "vgg16"]
    for row in rows:
        if row["baseline"] is not None:
            row["baseline"] = next(i for i, one in enumerate(rows) if one["model"] == row["model"])
    assert b"GFLOPs (multiply-adds)" not in _labels(table | {"rows": rows})


def _labels(table: dict[str, Any]) -> bytes:
    return plot.files(table)["table.svg"]
