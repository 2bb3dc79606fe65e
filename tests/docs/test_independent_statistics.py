"""Committed intervals and p-values against a computation with scipy alone, from the stored predictions."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="needs scipy")

RESULTS = Path(__file__).resolve().parents[2] / "results"


def half_width(tail: float, per_seed: np.ndarray, covariance: np.ndarray, units: int) -> float:
    """The rule for three or more seeds, as docs/methodology.md states it."""
    from scipy import stats  # takes a second, in every worker that collects this file

    seeds = len(per_seed)
    common = max(0.0, covariance[~np.eye(seeds, dtype=bool)].mean())
    residual = max(0.0, np.diag(covariance).mean() - common)
    spread = per_seed.var(ddof=1)
    of_seeds, of_units = stats.t.isf(tail / 2, seeds - 1) ** 2, stats.t.isf(tail / 2, units - 1) ** 2
    quadrature = of_seeds * spread / seeds + of_units * common
    first = max(spread, residual) / seeds
    freedom = (first + common) ** 2 / (first**2 / (seeds - 1) + common**2 / (units - 1))
    satterthwaite = stats.t.isf(tail / 2, freedom) ** 2 * (first + common)
    waived = 0.15 * (of_seeds - of_units) * residual / seeds
    between = 0.6 * quadrature + 0.4 * min(quadrature, satterthwaite) - waived
    return float(np.sqrt(max(between, of_units * (common + residual / seeds))))


def p_value(per_seed: np.ndarray, covariance: np.ndarray, units: int) -> float:
    from scipy import optimize

    distance = abs(per_seed.mean())
    log_p = optimize.brentq(lambda x: half_width(np.exp(x), per_seed, covariance, units) - distance, -60, -1e-9)
    return float(np.exp(log_p))


def stored(folder: Path) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    table = json.loads((folder / "table.json").read_text())
    return table, [dict(np.load(folder / f"{run['raw']}.npz")) for run in table["runs"]]


@pytest.mark.parametrize("name", ["tiny_imagenet_scratch", "attention_only_small"])
def test_classification_agrees_to_a_millionth(name: str) -> None:
    table, arrays = stored(RESULTS / name)
    wrong = [100.0 * (own["ranked"][:, 0] != own["labels"]) for own in arrays]
    checked = 0
    for row in table["rows"]:
        if row["baseline"] is None:
            continue
        differences = np.stack([wrong[i] - wrong[table["runs"][i]["baseline"]] for i in row["runs"]])
        images = differences.shape[1]
        found = differences.mean(axis=1), np.cov(differences) / images, images
        width = half_width(0.05, *found)
        assert (row["difference_low"], row["difference_high"]) == pytest.approx(
            (found[0].mean() - width, found[0].mean() + width), abs=1e-6
        )
        assert row["p_value"] == pytest.approx(p_value(*found), abs=1e-6)
        checked += 1
    assert checked == 2
    family = [one["p_value"] for one in [*table["rows"], *table["direct"]] if one.get("p_value") is not None]
    stated = [one["p_adjusted"] for one in [*table["rows"], *table["direct"]] if one.get("p_value") is not None]
    order = np.argsort(family)
    steps = np.maximum.accumulate(np.minimum(1, np.sort(family) * np.arange(len(family), 0, -1)))
    assert np.array(stated)[order] == pytest.approx(steps)


def detected(arrays: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each class: image and correctness of the detections by falling score, and the number of objects per image."""
    classes = []
    for label in np.unique(arrays["true_labels"][arrays["true_labels"] >= 0]):
        found = [
            (score, image, hit)
            for image in range(len(arrays["labels"]))
            for score, hit in _hits(arrays, image, label, np.flatnonzero(arrays["true_labels"][image] == label))
        ]
        found.sort(key=lambda one: -one[0])
        objects = (arrays["true_labels"] == label).sum(axis=1)
        classes.append((np.array([i for _, i, _ in found]), np.array([hit for _, _, hit in found]), objects))
    return classes


def _hits(arrays: dict[str, np.ndarray], image: int, label: int, of_class: np.ndarray) -> list[tuple[float, bool]]:
    """Scores of an image's detections of a class, and whether each is right; BCCD has no difficult objects."""
    boxes, found, taken = arrays["true_boxes"][image].astype(np.float64), [], set()
    for number in np.flatnonzero(arrays["labels"][image] == label):
        left, top, right, bottom = arrays["boxes"][image, number].astype(np.float64)
        best, best_overlap = -1, 0.5
        for one in of_class:
            x1, y1, x2, y2 = boxes[one]
            inside = max(0, min(right, x2) - max(left, x1)) * max(0, min(bottom, y2) - max(top, y1))
            union = (right - left) * (bottom - top) + (x2 - x1) * (y2 - y1) - inside
            if inside / union >= best_overlap:
                best, best_overlap = int(one), inside / union
        found.append((float(arrays["scores"][image, number]), best >= 0 and best not in taken))
        taken.add(best)
    return found


def eleven_points(classes: list[tuple[np.ndarray, np.ndarray, np.ndarray]], copies: np.ndarray) -> float:
    """The VOC 2007 mAP in % of the images, each copied a number of times."""
    precisions = []
    for image, hit, objects in classes:
        true = np.cumsum(np.repeat(hit, copies[image]))
        precision, recall = true / np.arange(1, len(true) + 1), true / (objects * copies).sum()
        precisions.append(np.mean([precision[recall >= r / 10].max(initial=0) for r in range(11)]))
    return 100 * float(np.mean(precisions))


def test_detection_agrees_to_resampling_noise() -> None:
    """Images drawn by another generator give the same interval within a tenth of its width."""
    table, arrays = stored(RESULTS / "bccd")
    (row,) = (row for row in table["rows"] if row["attention"] == "cbam")
    images = len(arrays[0]["labels"])
    pairs = [(i, table["runs"][i]["baseline"]) for i in row["runs"]]
    classes = {run: detected(arrays[run]) for pair in pairs for run in pair}

    def differences(copies: np.ndarray) -> list[float]:
        values = {run: eleven_points(own, copies) for run, own in classes.items()}
        return [values[i] - values[j] for i, j in pairs]

    per_seed = np.array(differences(np.ones(images, int)))
    assert row["per_seed"] == pytest.approx(per_seed, abs=1e-6)
    random = np.random.default_rng(1)
    drawn = [np.bincount(random.integers(0, images, images), minlength=images) for _ in range(600)]
    covariance = np.cov(np.array([differences(copies) for copies in drawn]).T)
    width = half_width(0.05, per_seed, covariance, images)
    assert (row["difference_high"] - row["difference_low"]) / 2 == pytest.approx(width, rel=0.1)
    assert row["p_value"] == pytest.approx(p_value(per_seed, covariance, images), abs=0.05)
