"""Contrasts: seeds in common, kinds of attention, Holm's adjustment, verdicts and equivalence."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from engine.comparison.aggregate import Settings, aggregate
from engine.comparison.view import VIEWS
from engine.errors import UserError
from engine.tasks.classification import ClassPredictions
from engine.tasks.crossed_model import holm

Row = dict[str, Any]
IMAGES = 2_000


def predictions(attention: str, errors: float, seed: int) -> ClassPredictions:
    """Predictions that err on a share of the images, with an image's difficulty in common."""
    difficulty = np.random.default_rng(0).normal(size=IMAGES)
    noise = np.random.default_rng([seed, *attention.encode()]).normal(size=IMAGES)
    wrong = (difficulty + noise) / np.sqrt(2) > NormalDist().inv_cdf(1 - errors)
    return ClassPredictions(np.zeros(IMAGES, np.int64), wrong.astype(np.int64)[:, None], np.zeros(IMAGES, np.float32))


def table(*networks: tuple[str, float, list[int]], settings: Settings | None = None) -> tuple[list[Row], list[Row]]:
    """Return rows and direct contrasts of networks (attention, error, seeds)."""
    runs: list[Row] = []
    found = []
    for attention, errors, seeds in networks:
        for seed in seeds:
            own = predictions(attention, errors, seed)
            plain = {run["seed"]: i for i, run in enumerate(runs) if run["attention"] == "none"}
            run = {"model": "net", "attention": attention, "seed": seed, "recipe_deviation": "", "published": None}
            run |= {"attention_lr_factor": 1.0, "parameters": 1, "gflops": 1.0, "epochs": 1, "published_gap": None}
            run |= {"baseline": None if attention == "none" else plain.get(seed), "top1_error_start": None}
            runs.append(run | VIEWS["classification"].values(own.metrics()))
            found.append(own.outcome())
    return aggregate(runs, found, VIEWS["classification"], settings or Settings())


SEEDS = [51, 52, 53]
NETWORKS = (("none", 0.3, SEEDS), ("se", 0.3, SEEDS), ("cbam", 0.2, SEEDS))


def test_family_is_every_contrast_with_several_seeds() -> None:
    rows, direct = table(*NETWORKS, ("eca", 0.3, [51]))
    assert [(one["row"], one["against"]) for one in direct] == [(2, 3), (2, 1), (3, 1)]
    tested = [rows[1], rows[2], direct[1]]
    assert [one["p_adjusted"] for one in tested] == pytest.approx(holm([one["p_value"] for one in tested]))
    assert rows[2]["verdict"] == "lower"
    assert direct[1]["verdict"] == "lower"
    assert rows[1]["verdict"] == "not distinguishable"
    assert (rows[3]["verdict"], rows[3]["p_adjusted"], rows[3]["detectable"]) == ("one seed", None, None)
    assert rows[3]["difference_low"] < rows[3]["difference"] < rows[3]["difference_high"]


def test_direct_contrast_is_the_difference_of_the_contrasts() -> None:
    rows, direct = table(*NETWORKS)
    assert direct[0]["difference"] == pytest.approx(rows[2]["difference"] - rows[1]["difference"])


def test_contrasts_are_over_the_seeds_in_common() -> None:
    rows, direct = table(("none", 0.3, SEEDS), ("se", 0.3, [52, 53, 54]), ("cbam", 0.25, [51, 52]))
    assert [row.get("contrast_seeds") for row in rows] == [None, [52, 53], [51, 52]]
    assert direct[0]["contrast_seeds"] == [52]
    assert direct[0]["verdict"] == "one seed"


def test_requested_contrasts_replace_those_of_kinds() -> None:
    variants = (*NETWORKS, ("cbam-ratio.8", 0.25, SEEDS))
    _, direct = table(*variants)
    assert [(one["row"], one["against"]) for one in direct] == [(2, 1)]  # each kind with its defaults
    _, direct = table(*variants, settings=Settings(contrasts=["cbam-ratio.8/cbam"]))
    assert [(one["row"], one["against"]) for one in direct] == [(3, 2)]
    assert table(*variants, settings=Settings(contrasts=[]))[1] == []
    with pytest.raises(UserError, match=r"table.contrasts=cbam/eca matches no two networks .*none, se, cbam"):
        table(*variants, settings=Settings(contrasts=["cbam/eca"]))


def test_static_gates_do_not_stand_for_their_kind() -> None:
    variants = (*NETWORKS[:2], ("cbam-ratio.8", 0.25, SEEDS))
    expected = table(*variants)[1]
    rows, direct = table(*variants, ("cbam-ratio.8-static_gates", 0.25, SEEDS))
    assert (
        [(one["row"], one["against"]) for one in direct]
        == [(2, 1)]
        == [(one["row"], one["against"]) for one in expected]
    )
    assert rows[3]["difference"] is not None


def test_equivalence_needs_a_margin_beyond_the_interval() -> None:
    wide, _ = table(*NETWORKS, settings=Settings(margin=6.0))
    assert wide[1]["verdict"] == "equivalent"
    narrow, _ = table(*NETWORKS, settings=Settings(margin=0.1))
    assert narrow[1]["verdict"] == "not distinguishable"
    assert wide[2]["verdict"] == "lower"


def test_correlation_over_seeds_needs_three() -> None:
    rows, _ = table(("none", 0.3, [51, 52]), ("cbam", 0.22, [51, 52]))
    assert rows[1]["seed_correlation"] is None
