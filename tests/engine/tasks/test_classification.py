"""The classification loss with class weights, and the metrics that are worth showing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from engine.config.data import DataConfig
from engine.data.datasets import Dataset, Split
from engine.tasks.classification import Classification
from engine.training.descriptions import describe, shown

METRICS = {"top1": 60.0, "top5": 90.0}


def dataset(counts: list[int]) -> Dataset:
    labels = np.repeat(np.arange(len(counts)), counts)
    split = Split(Path(), np.array([b"x"] * len(labels)), labels)
    return Dataset("test", [str(i) for i in range(len(counts))], split, split, "")


def test_balanced_weights_have_mean_one_over_the_images() -> None:
    task = Classification(DataConfig(), balances=True).for_training(dataset([60, 30, 10]))
    assert task.class_weights == pytest.approx([100 / 180, 100 / 90, 100 / 30])
    assert np.average(task.class_weights, weights=[60, 30, 10]) == pytest.approx(1)
    assert Classification(DataConfig()).for_training(dataset([60, 30])).class_weights is None


def test_the_weighted_loss_does_not_depend_on_how_a_batch_is_split() -> None:
    torch.manual_seed(0)
    task = Classification(DataConfig(), label_smoothing=0.1, class_weights=(0.5, 1.0, 4.0))
    logits, labels = torch.randn(12, 3), torch.arange(12) % 3
    whole = task._loss(logits, [(1.0, labels)])
    parts = [task._loss(logits[i : i + 4], [(1.0, labels[i : i + 4])]) for i in (0, 4, 8)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    expected = sum(
        task.class_weights[label] * F.cross_entropy(one[None], label[None], label_smoothing=0.1)
        for one, label in zip(logits, labels, strict=True)
    )
    torch.testing.assert_close(whole, expected / 12)
    equal = replace(task, class_weights=(1.0, 1.0, 1.0))._loss(logits, [(1.0, labels)])
    torch.testing.assert_close(equal, replace(task, class_weights=None)._loss(logits, [(1.0, labels)]))


@pytest.mark.parametrize(("classes", "expected"), [(5, "top-1 60.00%"), (6, "top-1 60.00%, top-5 90.00%")])
def test_top5_is_left_out_where_it_is_always_100(classes: int, expected: str) -> None:
    task = Classification(DataConfig(total_classes=classes))
    assert describe(task, METRICS) == expected
    assert shown(task, METRICS) == (["top1"] if classes == 5 else ["top1", "top5"])
