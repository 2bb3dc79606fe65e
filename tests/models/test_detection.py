"""Backbones under torchvision's detectors."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN

import cbam
import models
from models import detector_weights, feature_extractors
from tests.networks import randomize_norms

pytestmark = pytest.mark.usefixtures("narrow_classifiers", "fast_initialization")


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


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("squeezenet1_1", "SqueezeNet has no feature maps of stride 16, 32"),
        ("inception_v3", "Inception3 has no feature maps of stride"),
    ],
)
def test_a_network_without_all_strides_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(models.ModelError, match=complaint):
        models.backbone(name)


CLASSES = ["cat", "dog"]


def small(architecture: str, **options: object) -> models.DetectorSpec:
    sizes = {
        "faster_rcnn": {"image_size": 96, "max_size": 128, "rois": 32, "train_proposals": 100},
        "ssd": {"image_size": 300},
    }
    return models.DetectorSpec(architecture, **(sizes.get(architecture, {"image_size": 128}) | options))


def built(spec: models.DetectorSpec, name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return models.build_detector(spec, name, **{"classes": CLASSES, **options})


DETECTORS = [
    *(
        ("faster_rcnn", "resnet18", "backbone"),
        ("faster_rcnn", "mobilenet_v3_small", "heads"),
        ("ssd", "vgg11", "both"),
    ),
    *(("ssdlite", "mobilenet_v1_a07", "heads"), ("ssdlite", "mobilenet_v2", "backbone")),
    ("ssdlite", "mobilenet_v3_small", "both"),
]


@pytest.mark.parametrize(("architecture", "name", "at"), DETECTORS)
def test_attention_starts_as_the_identity_and_learns(architecture: str, name: str, at: str) -> None:
    plain = built(small(architecture), name)
    randomize_norms(plain)
    attended = built(small(architecture), f"{name}_cbam", at=at, start="identity")
    missing, unexpected = attended.load_state_dict(plain.state_dict(), strict=False)
    assert missing
    assert not unexpected
    assert all("attention" in key for key in missing)
    count = 1 if architecture == "ssd" else 2  # SSD resizes every image to 300 pixels
    images = [torch.rand(3, 100, 140), torch.rand(3, 128, 96)][:count]
    for one, other in zip(plain.eval()(images), attended.eval()(images), strict=True):
        assert len(one["scores"]) > 0
        assert all(torch.equal(one[key], other[key]) for key in ("boxes", "labels", "scores"))
    shape = (3, 300, 300) if architecture == "ssd" else (3, 128, 128)
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]), "labels": torch.tensor([label])} for label in (0, 1)]
    losses = attended.train()([torch.rand(shape) for _ in range(count)], targets[:count])
    sum(losses.values()).backward()
    gates = {key: value.grad for key, value in attended.named_parameters() if "attention" in key}
    assert {key for key in missing if not key.endswith("gain")} == gates.keys()
    assert all(gradient is not None for gradient in gates.values())


@pytest.mark.parametrize(("architecture", "name"), [("faster_rcnn", "resnet18"), ("ssdlite", "mobilenet_v2")])
def test_boxes_are_computed_in_float32_under_autocast(architecture: str, name: str) -> None:
    """In bfloat16, torchvision's anchors and detections would be rounded to multiples of 2 pixels and more."""
    detector = built(small(architecture), name).eval()
    randomize_norms(detector)
    found: list[torch.Tensor] = []
    generator = detector.anchor_generator if architecture == "ssdlite" else detector.rpn.anchor_generator
    generator.register_forward_hook(lambda _module, _inputs, anchors: found.append(anchors[0]))
    image = [torch.rand(3, 500, 660)]
    detector(image)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        (result,) = detector(image)
    assert torch.equal(*found)
    boxes = result["boxes"]
    assert boxes.dtype == torch.float32
    assert (boxes != boxes.bfloat16()).float().mean() > 0.5


@pytest.mark.parametrize("at", ["backbone", "heads"])
def test_random_parameters_are_those_without_attention(at: str) -> None:
    plain = built(small("ssdlite"), "mobilenet_v2").state_dict()
    attended = built(small("ssdlite"), "mobilenet_v2_cbam", at=at).state_dict()
    assert all(torch.equal(value, attended[key]) for key, value in plain.items())


@pytest.mark.parametrize(("architecture", "name", "at"), DETECTORS)
def test_sync_batchnorm_converts_every_norm_and_keeps_attention(architecture: str, name: str, at: str) -> None:
    spec, options = small(architecture), {"at": at, "spatial_norm": True}
    plain = built(spec, f"{name}_cbam", **options)
    detector = built(spec, f"{name}_cbam", sync_batchnorm=True, **options)
    assert not any(type(module) is nn.BatchNorm2d for module in detector.modules())
    assert cbam.check(detector) == cbam.check(plain)
    assert list(detector.state_dict()) == list(plain.state_dict())


def test_frozen_stages_leave_attention_trainable(tmp_path: Path) -> None:
    classifier = models.build("resnet18")
    randomize_norms(classifier)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    spec = small("faster_rcnn", trainable_layers=3, frozen_norms=True)
    detector = built(spec, "resnet18_cbam", weights=str(tmp_path / "classifier.pt"))
    body = detector.backbone.body
    assert torch.equal(body.layer1[0].bn1.running_mean, classifier.layer1[0].bn1.running_mean)
    frozen = {key for key, value in body.named_parameters() if not value.requires_grad}
    assert {key.partition(".")[0] for key in frozen} == {"conv1", "layer1"}
    assert all(value.requires_grad for key, value in body.named_parameters() if "attention" in key)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    assert len(cbam.check(detector)) == 8
    scratch = built(spec, "resnet18_cbam")
    assert all(value.requires_grad for value in scratch.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in scratch.modules())


def test_vgg_is_frozen_as_torchvision_freezes_it(tmp_path: Path) -> None:
    torch.save(models.build("vgg11").state_dict(), tmp_path / "classifier.pt")
    detector = built(small("ssd", trainable_layers=4), "vgg11", weights=str(tmp_path / "classifier.pt"))
    frozen = [key for key, value in detector.named_parameters() if not value.requires_grad]
    assert frozen == ["backbone.features.0.weight", "backbone.features.0.bias"]


PUBLISHED = [
    ("faster_rcnn", "resnet50", detection.fasterrcnn_resnet50_fpn, detection.FasterRCNN_ResNet50_FPN_Weights),
    ("ssd", "vgg16", detection.ssd300_vgg16, detection.SSD300_VGG16_Weights),
    (
        "ssdlite",
        "mobilenet_v3_large",
        detection.ssdlite320_mobilenet_v3_large,
        detection.SSDLite320_MobileNet_V3_Large_Weights,
    ),
]


@pytest.mark.parametrize(("architecture", "name", "theirs", "entries"), PUBLISHED)
def test_a_published_detector_detects_the_same(
    architecture: str,
    name: str,
    theirs: Callable[..., nn.Module],
    entries: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With random weights and statistics in place of the published ones, in the file that would be downloaded."""
    torch.manual_seed(1)
    options = {"trainable_backbone_layers": 5, "weights_backbone": None}
    with warnings.catch_warnings(action="ignore"):
        reference = theirs(weights=None, num_classes=91, **options)
    randomize_norms(reference)
    if architecture == "faster_rcnn":
        feature_extractors.freeze_norms(reference, eps=0.0)
        nn.init.normal_(reference.roi_heads.box_predictor.cls_score.weight, 0, 0.002)
        nn.init.normal_(reference.roi_heads.box_predictor.bbox_pred.weight, 0, 1e-5)
    torch.save(reference.state_dict(), tmp_path / "published.pth")
    monkeypatch.setattr(detector_weights, "fetch", lambda *_: tmp_path / "published.pth")
    coco = [name for name in entries.COCO_V1.meta["categories"] if name not in ("N/A", "__background__")]
    size, count = {"faster_rcnn": (160, 100), "ssd": (300, 200), "ssdlite": (320, 300)}[architecture]
    spec = models.DetectorSpec(
        architecture,
        "COCO_V1",
        size,
        200,
        detections=count,
        frozen_norms=architecture == "faster_rcnn",
    )
    if architecture == "faster_rcnn":
        reference.transform.min_size, reference.transform.max_size = (160,), 200
    ours = built(spec, f"{name}_cbam", at="both", classes=coco).eval()
    images = [torch.rand(3, 150, 180)]
    (expected,), (found,) = reference.eval()(images), ours(images)
    names = entries.COCO_V1.meta["categories"]
    known = [names[label] in coco for label in expected["labels"]]
    assert len(found["labels"]) > 10
    assert [coco[label] for label in found["labels"]] == [names[label] for label in expected["labels"][known]]
    assert all(torch.equal(found[key], expected[key][known]) for key in ("boxes", "scores"))
    other = built(spec, name)  # other classes
    square = [torch.rand(3, size, size) for _ in range(2)]
    assert other(square, 2 * [{"boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]), "labels": torch.tensor([1])}])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(models.ModelError, match="SSD300 requires a VGG, not resnet18"):
        built(small("ssd"), "resnet18")
    with pytest.raises(models.ModelError, match="SSDlite requires a MobileNet, not resnet18"):
        built(small("ssdlite"), "resnet18")
    with pytest.raises(
        models.ModelError, match=r"neither a file nor published for faster_rcnn on resnet50; published weights: COCO_V1"
    ):
        built(small("faster_rcnn", weights="V9"), "resnet50")
    torch.save({"backbone.other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(models.ModelError, match=r"missing: .*; unexpected: backbone.other"):
        built(small("faster_rcnn", weights=str(tmp_path / "other.pt")), "resnet18")


def test_a_detector_of_other_attention_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    detector = built(small("faster_rcnn"), "resnet18_cbam", order="parallel")
    identity = {"model.attention": "cbam", "attention.order": "parallel"}
    torch.save({"model": detector.state_dict(), "identity": identity}, file)
    with pytest.raises(models.ModelError, match=r"were trained with attention order=parallel; build the network with"):
        built(small("faster_rcnn", weights=str(file)), "resnet18_cbam")
    assert built(small("faster_rcnn", weights=str(file)), "resnet18_cbam", order="parallel")


def test_a_started_run_does_not_need_the_file_with_its_start_weights() -> None:
    detector = built(small("faster_rcnn", weights="gone.pt"), "resnet18", read_weights=False)
    assert isinstance(detector, detection.FasterRCNN)
    assert models.published_detector("faster_rcnn", "resnet18", "gone.pt") is None
