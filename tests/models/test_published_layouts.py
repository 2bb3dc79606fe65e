"""Every published file of torchvision loads, under the names that it has: some are older than today's modules."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models import densenet

import models
from models import detector_weights, factory, weights
from tests.networks import randomize_norms

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter"),
    pytest.mark.usefixtures("fast_initialization"),
]

PUBLISHED = [name for name in models.names() if models.published(name)]


def published_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under the names of 2017 to 2019, without the batch counters that came later.

    The inverse of the renaming in torchvision's DenseNet, RPNHead and FeaturePyramidNetwork.
    """
    older = [
        (r"(denselayer\d+\.)(norm|conv)([12])\.", r"\1\2.\3."),
        (r"(rpn\.head\.conv)\.0\.0\.", r"\1."),
        (r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1."),
    ]
    renamed = OrderedDict()
    for key, value in state.items():
        for now, then in older:
            key = re.sub(now, then, key)
        if not key.endswith("num_batches_tracked"):
            renamed[key] = value
    return renamed


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_classifier_loads_its_published_layout(name: str) -> None:
    """On the meta device, where possible: torchvision computes RegNet's widths with tensors."""
    if name.startswith("regnet") and not name.endswith("400mf"):
        pytest.skip("the same names as those of the smallest, and up to 640 million parameters")
    backbone, _ = factory.parse(name)
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        net = backbone.build(1000)
    state = published_layout(net.state_dict())
    start = weights.with_own_names(weights.StartWeights(state), net, backbone)
    assert not weights.load(net, backbone, start, new_head=False)
    report = weights.report(net)
    assert report is not None
    assert report.tensors == len(state)
    assert not report.new_auxiliary


@pytest.mark.parametrize("kind", ["none", "cbam"])
def test_densenet_equals_torchvisions_own_loading(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    source = torchvision.models.densenet121()
    randomize_norms(source)
    file = tmp_path / "densenet121-a639ec97.pth"
    torch.save(published_layout(source.state_dict()), file)
    monkeypatch.setattr(densenet.DenseNet121_Weights, "get_state_dict", lambda *_, **__: torch.load(file))
    theirs = torchvision.models.densenet121(weights="IMAGENET1K_V1").eval()
    monkeypatch.setattr(weights, "fetch", lambda *_: file)
    ours = models.build("densenet121", kind, "IMAGENET1K_V1").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))
    plain = models.plain_state(ours)
    assert all(torch.equal(plain[key], value) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize("kind", ["none", "cbam"])
def test_faster_rcnn_equals_torchvisions_own_loading(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91
    )  # fmt: skip
    file = tmp_path / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
    old = published_layout(theirs.state_dict())
    assert "rpn.head.conv.weight" in old
    assert "backbone.fpn.inner_blocks.0.weight" in old
    torch.save(old, file)
    theirs.load_state_dict(torch.load(file))
    monkeypatch.setattr(detector_weights, "fetch", lambda *_: file)
    entry = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    coco = [name for name in entry.meta["categories"] if name not in ("N/A", "__background__")]
    ours = models.build_detector(models.DetectorSpec("faster_rcnn", "COCO_V1"), "resnet50", kind, classes=coco)
    plain = models.plain_state(ours)
    assert plain.keys() == theirs.state_dict().keys()
    assert all(torch.equal(plain[key], value) for key, value in theirs.state_dict().items())
