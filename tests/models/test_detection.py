"""Backbones under torchvision's detectors."""

import pytest
import torch
from torchvision.models.detection import FasterRCNN

import models

pytestmark = pytest.mark.usefixtures("narrow_classifiers")


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18_cbam", [64, 128, 256, 512]), ("vgg11", [256, 512, 512, 512])]
)
def test_a_backbone_gives_a_pyramid_of_strides_4_to_64(name: str, channels: list[int]) -> None:
    extractor = models.backbone(name)
    assert [block[0].in_channels for block in extractor.fpn.inner_blocks] == channels
    maps = extractor(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape) for level in maps.values()] == [
        (1, extractor.out_channels, max(1, 64 // stride), max(1, 96 // stride + (96 % stride > 0)))
        for stride in (4, 8, 16, 32, 64)
    ]


def test_torchvision_detector_trains_on_a_backbone() -> None:
    torch.manual_seed(0)
    detector = FasterRCNN(models.backbone("resnet18_cbam"), num_classes=3, min_size=96, max_size=96).train()
    before = {name: value.clone() for name, value in detector.named_parameters()}
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]), "labels": torch.tensor([label])} for label in (1, 2)]
    losses = detector([torch.rand(3, 96, 96), torch.rand(3, 96, 96)], targets)
    torch.stack(list(losses.values())).sum().backward()
    torch.optim.SGD(detector.parameters(), lr=0.01).step()
    after = dict(detector.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    for part in ("conv1", "cbam.ca", "cbam.sa", "fpn", "rpn", "roi_heads"):
        assert any(part in name and not torch.equal(value, before[name]) for name, value in after.items()), part


def test_a_network_without_all_strides_is_refused() -> None:
    with pytest.raises(models.ModelError, match=r"SqueezeNet has no feature maps of stride 8, 16, 32"):
        models.backbone("squeezenet1_1")
