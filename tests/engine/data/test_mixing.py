"""Mixup and CutMix of pairs, and the loss of mixed targets."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.config.data import DataConfig
from engine.data.loader import Batch
from engine.data.mixing import Mixer, Mixing, partners
from engine.data.transforms import Preprocessing, normalize
from engine.tasks.classification import Classification, MixedClassification
from engine.training.descriptions import describe

WAY = Preprocessing(8, 8)


def batch(mixing: Mixing | None) -> Batch:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=random)
    return Batch([images], (torch.tensor([0, 1, 2, 3, 4, 0]),), torch.arange(6), mixing)


def test_pairs_are_mixed_with_each_other() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 4, 4)
    assert partners(torch.arange(4)).tolist() == [1, 0, 3, 2]
    averaged = Mixing(0.75).images(images)
    assert averaged[:, 0, 0, 0].tolist() == [0.25, 0.75, 2.25, 2.75]
    cut = Mixing(0.875, (0, 1, 1, 3)).images(images)
    assert cut[2, 0].tolist() == [[2, 3, 3, 2], *[[2, 2, 2, 2]] * 3]


def test_shards_are_mixed_as_the_whole_batch() -> None:
    whole = batch(Mixing(0.3))
    parts = [part.mixing.images(part.views[0].float()) for part in whole.chunk(3) if part.mixing]
    assert torch.equal(torch.cat(parts), Mixing(0.3).images(whole.views[0].float()))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_a_batch_is_mixed_by_seed_epoch_and_step_alone(mixup: float, cutmix: float) -> None:
    mixer = Mixer(51, (8, 12), mixup, cutmix)
    drawn = [mixer.draw(epoch, step) for epoch in range(20) for step in range(50)]
    assert drawn[57] == mixer.draw(1, 7) != Mixer(52, (8, 12), mixup, cutmix).draw(1, 7)
    share_of_cutmix = np.mean([mixing.box is not None for mixing in drawn])
    assert share_of_cutmix == pytest.approx(0.5 if mixup and cutmix else float(cutmix > 0), abs=0.05)
    for mixing in drawn:
        assert 0 <= mixing.share <= 1
        if mixing.box:
            top, left, bottom, right = mixing.box
            assert mixing.share == 1 - (bottom - top) * (right - left) / 96
    assert np.mean([mixing.share for mixing in drawn if mixing.box is None] or [0.5]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("mixing", [Mixing(0.3), Mixing(0.75, (0, 0, 4, 4))])
def test_the_loss_is_that_of_both_targets(mixing: Mixing) -> None:
    """The formula of the papers, with label smoothing, and torch's cross-entropy against probabilities."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    task = MixedClassification(DataConfig(image_size=8), label_smoothing=0.1)
    given = batch(mixing)
    with torch.no_grad():
        loss, sums = task.training_step(net, given, WAY)
        logits = net(mixing.images(normalize(given.views[0], WAY)))
    labels = given.targets[0]
    one, other = (F.cross_entropy(logits, y, label_smoothing=0.1) for y in (labels, partners(labels)))
    assert float(loss) == pytest.approx(float(mixing.share * one + (1 - mixing.share) * other), abs=1e-6)
    soft = mixing.share * F.one_hot(labels, 5) + (1 - mixing.share) * F.one_hot(partners(labels), 5)
    assert float(loss) == pytest.approx(float(F.cross_entropy(logits, soft, label_smoothing=0.1)), abs=1e-6)
    dominant = labels if mixing.share >= 0.5 else partners(labels)
    assert float(sums[1]) == float((logits.argmax(1) == dominant).sum())


def test_training_accuracy_on_mixtures_has_a_name_of_its_own() -> None:
    assert "mixed_top1" in MixedClassification.training_metrics
    assert "mixed images" in describe(
        MixedClassification(DataConfig(total_classes=10)), {"mixed_top1": 10.0, "mixed_top5": 50.0}
    )
    assert (
        describe(Classification(DataConfig(total_classes=10)), {"top1": 10.0, "top5": 50.0})
        == "top-1 10.00%, top-5 50.00%"
    )
