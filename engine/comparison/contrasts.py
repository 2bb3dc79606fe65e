"""The contrasts of a table: each network with its baseline, and kinds of attention with each other."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from engine.comparison.columns import is_static, kind
from engine.errors import UserError
from engine.tasks.crossed_model import CONFIDENCE, CrossedDifference, Outcome, holm
from engine.tasks.paired_stats import standard_deviation

Row = dict[str, Any]

_FEWEST_FOR_CORRELATION = 3  # two seeds have a correlation of -1 or 1


def add_contrasts(
    rows: Sequence[Row],
    runs: Sequence[Row],
    outcomes: Sequence[Outcome | None],
    margin: float | None,
    requested: Sequence[str] | None,
) -> list[Row]:
    """Add each row's contrast with its baseline to the row, and return the direct contrasts.

    Args:
        rows: rows of the table; `baseline` is the position of a row's baseline, or None.
        runs: the table's runs.
        outcomes: outcome of each run; None if its predictions are missing. A contrast that needs them has no numbers.
        margin: margin of equivalence in points; None for no test of equivalence.
        requested: direct contrasts as `cbam/se`; None for one of each pair of kinds.

    Returns:
        For each direct contrast, the positions `row` and `against` of its rows, its seeds and its numbers.
    """
    direct = [
        {"row": i, "against": j, **_seeds(_common_seeds(rows[i], rows[j], runs), runs)}
        for i, j in _direct_pairs(rows, runs, requested)
    ]
    contrasts = [row for row in rows if row["baseline"] is not None] + direct
    for contrast in contrasts:
        contrast |= _numbers([(outcomes[i], outcomes[j]) for i, j in contrast["pairs"]], margin)
    _adjust([contrast for contrast in contrasts if contrast.get("p_value") is not None], margin)
    for contrast in contrasts:
        if len(contrast["pairs"]) == 1:  # whose exact test is that of the run
            ((run, other),) = contrast["pairs"]
            if runs[run]["baseline"] == other:
                contrast |= {key: runs[run][key] for key in ("won", "lost", "mcnemar_p") if key in runs[run]}
        del contrast["pairs"]
    return direct


def baseline_contrast(positions: Sequence[int], groups: Sequence[Sequence[int]], runs: Sequence[Row]) -> Row:
    """Return the baseline of a row, the pairs of runs, and their seeds.

    Args:
        positions: the row's runs.
        groups: the runs of each row.
    """
    pairs = [(i, runs[i]["baseline"]) for i in positions if runs[i]["baseline"] is not None]
    if not pairs:
        return {"baseline": None}
    return {"baseline": next(i for i, group in enumerate(groups) if pairs[0][1] in group), **_seeds(pairs, runs)}


def _seeds(pairs: Sequence[tuple[int, int]], runs: Sequence[Row]) -> Row:
    return {
        "contrast_seeds": [runs[i]["seed"] for i, _ in pairs],
        "recipes_differ": any(runs[i]["recipe_deviation"] != runs[j]["recipe_deviation"] for i, j in pairs),
        "pairs": list(pairs),
    }


def _common_seeds(row: Row, other: Row, runs: Sequence[Row]) -> list[tuple[int, int]]:
    """Return the runs of two rows with the same seed."""
    by_seed = {runs[j]["seed"]: j for j in other["runs"]}
    return [(i, by_seed[runs[i]["seed"]]) for i in row["runs"] if runs[i]["seed"] in by_seed]


def _direct_pairs(rows: Sequence[Row], runs: Sequence[Row], requested: Sequence[str] | None) -> list[tuple[int, int]]:
    """Return the pairs of rows to contrast directly."""
    if requested is None:
        return [pair for pair in _of_kinds(rows) if _common_seeds(rows[pair[0]], rows[pair[1]], runs)]
    pairs = []
    for text in requested:
        one, separator, other = text.partition("/")
        found = [
            (i, j)
            for i, j in itertools.permutations(range(len(rows)), 2)
            if (rows[i]["attention"], rows[j]["attention"]) == (one, other)
            and _alike(rows[i], rows[j])
            and _common_seeds(rows[i], rows[j], runs)
        ]
        if not separator or not found:
            known = ", ".join(dict.fromkeys(row["attention"] for row in rows))
            raise UserError(
                f"table.contrasts={text} matches no two networks with the same seeds; name two of {known}, for example "
                "table.contrasts=[cbam/se]."
            )
        pairs += found
    return pairs


def _of_kinds(rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of different kinds of attention on the same backbone with the same learning rate factor.

    Each kind is represented by the row with its default options, or by its only row; rows with static gates do not
    count.
    """
    settings: dict[tuple, dict[str, list[int]]] = {}
    for position, row in enumerate(rows):
        if kind(row) != "none" and not is_static(row):
            settings.setdefault(_setting(row), {}).setdefault(kind(row), []).append(position)
    for kinds in settings.values():
        chosen = []
        for name, positions in sorted(kinds.items(), key=lambda item: (item[0] != "cbam", item[0])):
            default = [i for i in positions if rows[i]["attention"] == name]
            if default or len(positions) == 1:
                chosen.append((default or positions)[0])
        yield from itertools.combinations(chosen, 2)


def _setting(row: Row) -> tuple:
    return row["model"], row.get("detector"), row.get("attention_lr_factor"), row["recipe_deviation"]


def _alike(row: Row, other: Row) -> bool:
    """Return whether two rows differ in attention alone; a network without attention has no learning rate factor."""
    plain = "none" in (kind(row), kind(other))
    same = ("model", "detector", "recipe_deviation") if plain else (*_NETWORK, "attention_lr_factor")
    return all(row.get(key) == other.get(key) for key in same)


_NETWORK = ("model", "detector", "recipe_deviation")


def _numbers(pairs: Sequence[tuple[Outcome | None, Outcome | None]], margin: float | None) -> Row:
    """Return the numbers of a contrast; an empty row if an outcome is missing."""
    ours = [one for one, _ in pairs if one is not None]
    theirs = [other for _, other in pairs if other is not None]
    if len(ours) < len(pairs) or len(theirs) < len(pairs):
        return {}
    found = CrossedDifference.of(ours, theirs)
    half_width = found.half_width()
    several = found.seeds > 1
    return {
        "difference": found.difference,
        "difference_low": found.difference - half_width,
        "difference_high": found.difference + half_width,
        "difference_sd": standard_deviation(np.array(found.per_seed)),
        "per_seed": list(found.per_seed),
        "common_variance": found.common,
        "residual_variance": found.residual if several else None,
        "units": found.units,
        "seed_correlation": _correlation([one.value for one in ours], [one.value for one in theirs]),
        "p_value": found.p_value if several else None,
        "p_adjusted": None,
        "detectable": found.detectable if several else None,
        "equivalence_p": found.equivalence_p_value(margin) if several and margin is not None else None,
        "equivalence_p_adjusted": None,
        "verdict": "one seed",
    }


def _correlation(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    if len(ours) < _FEWEST_FOR_CORRELATION or np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return None
    return float(np.corrcoef(ours, theirs)[0, 1])


def _adjust(contrasts: Sequence[Row], margin: float | None) -> None:
    """Adjust the p-values of contrasts with several seeds for their number, and decide."""
    for key in ("p_value", "equivalence_p") if margin is not None else ("p_value",):
        adjusted = holm([contrast[key] for contrast in contrasts])
        for contrast, value in zip(contrasts, adjusted, strict=True):
            contrast["p_adjusted" if key == "p_value" else "equivalence_p_adjusted"] = value
    for contrast in contrasts:
        contrast["verdict"] = _verdict(contrast)


def _verdict(contrast: Row) -> str:
    level = 1 - CONFIDENCE
    if contrast["p_adjusted"] < level:
        return "lower" if contrast["difference"] < 0 else "higher"
    equivalent = contrast["equivalence_p_adjusted"]
    return "equivalent" if equivalent is not None and equivalent < level else "not distinguishable"
