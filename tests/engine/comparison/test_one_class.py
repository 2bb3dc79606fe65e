"""The warning about networks that predict one class for every image."""

from typing import Any

import numpy as np
import pytest

from engine.comparison import one_class
from engine.comparison.compare import Evidence, RunEvidence
from engine.logging import log
from engine.tasks.classification import ClassPredictions


def networks(**predicted: list[int]) -> list[str]:
    """Return those found among networks with these predictions for images of the classes 0, 1 and 2."""
    runs: list[dict[str, Any]] = [
        {"source": f"runs/{name}", "seed": 51, "model": "resnet18", "attention": name} for name in predicted
    ]
    evidence = [
        RunEvidence(ClassPredictions(np.arange(3), np.array(own)[:, None], np.zeros(3, np.float32)), {}, "")
        for own in predicted.values()
    ]
    return one_class.one_class_networks({"runs": runs}, Evidence(evidence, None))


def test_networks_that_predict_one_class_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "warning", lines.append)
    one_class.warn_of_one_class([networks(none=[0, 1, 1], cbam=[2, 2, 2], se=[0, 0, 0])])
    assert lines == [
        "warning: 2 networks predict the same class for every validation image, whatever it shows: runs/cbam, runs/se. "
        "Train them longer or with a higher rate (recipe.lr)."
    ]


def test_of_several_parts_only_those_of_all_parts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "warning", lines.append)
    one_class.warn_of_one_class([networks(none=[0, 0, 0], cbam=[2, 2, 2]), networks(none=[0, 1, 2], cbam=[2, 2, 2])])
    assert [line for line in lines if "1 network predicts" in line and "runs/cbam. Train it" in line] == lines != []
    lines.clear()
    one_class.warn_of_one_class([networks(none=[0, 0, 0]), networks(none=[0, 1, 2])])
    assert not lines
