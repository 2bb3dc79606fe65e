"""torchvision's detectors on registered backbones, with attention in the backbone's blocks or before the heads.

>>> spec = models.DetectorSpec("faster_rcnn")
>>> detector = models.build_detector(spec, "resnet50_cbam", classes=["cat", "dog"])
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection._utils import BoxCoder, retrieve_out_channels
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssdlite import SSDLiteHead

from cbam.attachment import attach
from models import detector_weights, factory, feature_extractors
from models.attention import network as attention_layers
from models.attention import registry as attention_kinds
from models.detector_weights import Published
from models.errors import ModelError
from models.registry import BackboneSpec

PLACES = ("backbone", "heads", "both")

# Image mean and standard deviation of torchvision's published detectors that do not use ImageNet's.
_PUBLISHED_NORMALIZATION = {
    "ssd": ((0.48235, 0.45882, 0.40784), (1 / 255,) * 3),
    "ssdlite": ((0.5,) * 3, (0.5,) * 3),
}


@dataclass(frozen=True)
class DetectorSpec:
    """Specification of a detector around a backbone. The default sizes are those of Faster R-CNN on COCO.

    Attributes:
        architecture: `faster_rcnn` (Ren et al., 2015, with the feature pyramid of Lin et al., CVPR 2017), `ssd` (Liu et
            al., ECCV 2016, at 300 pixels) or `ssdlite` (Sandler et al., CVPR 2018).
        weights: weights of the whole detector, instead of the backbone's: the name of published weights (`COCO_V1`) or
            the path of a file; None for none.
        image_size: shorter side of the images in the detector, or both sides for SSD, pixels.
        max_size: maximum of the longer side, pixels.
        channels: channels of the feature pyramid.
        rois: regions per image used to train the second stage.
        train_proposals, test_proposals: regions per image that the first stage proposes after non-maximum suppression.
        detections: maximum number of detections per image.
        trainable_layers: trained backbone stages, counted from its output, if it has start weights.
        frozen_norms: whether the backbone's BatchNorms are frozen, if it has start weights.
    """

    architecture: str
    weights: str | None = None
    image_size: int = 800
    max_size: int = 1333
    channels: int = 256
    rois: int = 512
    train_proposals: int = 2000
    test_proposals: int = 1000
    detections: int = 100
    trainable_layers: int = 5
    frozen_norms: bool = False


def backbone(
    name: str, attention: str | None = None, weights: str | None = None, start: str | None = None, **options: object
) -> nn.Module:
    """Return the convolutional part of a network with a feature pyramid on top (Lin et al., CVPR 2017).

    Its output is a dictionary of maps [N, 256, H / s, W / s] for s = 4, 8, 16, 32, and one pooled from the last.
    `out_channels` is 256. This is the backbone interface of `torchvision.models.detection`.

    Args:
        name, attention, weights, start, options: as for `models.build`.

    Raises:
        ModelError: as `models.build` does.

    >>> from torchvision.models.detection import FasterRCNN
    >>> detector = FasterRCNN(models.backbone("resnet50_cbam", weights="IMAGENET1K_V1"), num_classes=91)
    """
    net = factory.build(name, attention, weights, 1000, start, **options)  # type: ignore[arg-type]
    return feature_extractors.pyramid(net, factory.parse(name, attention)[0], channels=256)


def build_detector(
    detector: DetectorSpec,
    name: str,
    attention: str | None = None,
    weights: str | None = None,
    classes: Sequence[str] = (),
    start: str | None = None,
    at: str = "backbone",
    read_weights: bool = True,
    after: str | None = None,
    sync_batchnorm: bool = False,
    **options: object,
) -> nn.Module:
    """Build a detector in training mode. The labels of its targets and detections are indices of `classes`.

    For a given torch seed, all random parameters except attention's are the same with and without attention.

    Args:
        detector: the architecture and its sizes.
        name, attention, start, after, sync_batchnorm, options: as for `models.build`.
        weights: weights of the backbone, as for `models.build`; not read if the detector has its own weights.
        classes: names of the classes. Published weights keep their outputs if they know all of them by name;
            otherwise the predictors are re-initialized.
        at: `backbone` inserts attention in the backbone's blocks, `heads` on each feature map before its prediction
            head (Table 7 of the CBAM paper), `both` in both places.
        read_weights: whether to read start weights; False leaves them random, for a state that is loaded later.

    Raises:
        ModelError: as `models.build` does, or if the detector does not fit the backbone.
    """
    spec, kind = factory.parse(name, attention)
    if detector.architecture not in _ASSEMBLE:
        raise ModelError(f"Unknown detector '{detector.architecture}'; choose one of {', '.join(_ASSEMBLE)}.")
    if at not in PLACES:
        raise ModelError(f"Unknown place of attention at='{at}'; choose one of {', '.join(PLACES)}.")
    published = detector_weights.published_entry(detector.architecture, spec.name, detector.weights, read_weights)
    has_weights = bool(weights or detector.weights)
    start = start or ("identity" if has_weights else "random")
    seed = int(torch.randint(2**62, ()))  # seed of the detector's parameters, independent of attention's draws
    inside = "none" if at == "heads" else kind
    inside_options: dict[str, Any] = {} if inside == "none" else {"after": after, **options}
    if published is not None and detector.architecture == "ssdlite":
        net = _reduced_mobilenet(spec, inside, start, inside_options)
    else:
        source = weights if read_weights and not detector.weights else None
        net = factory.build(spec.name, inside, source, start=start, **inside_options)
    if has_weights:
        _freeze(net, spec, detector, published)
    torch.manual_seed(seed)
    outputs = _outputs(classes, published)
    model = _ASSEMBLE[detector.architecture](net, spec, detector, published, outputs.total)
    model.register_outputs(outputs)
    if at != "backbone" and kind != "none":
        _attend_to_maps(model, kind, start, options)
    _keep_boxes_in_float32(model)
    if detector.weights and read_weights:
        is_other = not detector_weights.has_classes(published, detector.weights, classes)
        detector_weights.load(model, spec.name, detector.weights, published, is_other, kind, options)
    if sync_batchnorm:
        attention_layers.convert_sync_batchnorm(model)
    return model.train()


class _Outputs(NamedTuple):
    """The outputs of a detector's classifier.

    Attributes:
        of_class: output of each class of the data set.
        total: number of outputs, including the background.
    """

    of_class: list[int]
    total: int


def _outputs(classes: Sequence[str], published: Published) -> _Outputs:
    if published is not None and detector_weights.knows(published, classes):
        categories = published.meta["categories"]
        return _Outputs([categories.index(name) for name in classes], len(categories))
    return _Outputs([1 + label for label in range(len(classes))], 1 + len(classes))


class Detector(nn.Module):
    """A torchvision detector whose labels are indices of a data set's classes, without torchvision's background.

    Attributes:
        outputs: [K] int64, the output of each class.
        classes: int64, the class of each output; -1 for outputs without a class of the data set.
    """

    outputs: Tensor
    classes: Tensor

    def register_outputs(self, outputs: _Outputs) -> None:
        """Set the output of each class, which is not part of the state dict."""
        of_class = torch.tensor(outputs.of_class, dtype=torch.int64)
        classes = torch.full((outputs.total,), -1)
        classes[of_class] = torch.arange(len(of_class))
        self.register_buffer("outputs", of_class, persistent=False)
        self.register_buffer("classes", classes, persistent=False)

    def forward(self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None) -> Any:
        """Return the losses by name in training, or each image's `boxes`, `labels` and `scores` in evaluation.

        Args:
            images: float32 [3, H, W] each, in [0, 1]; in training, of the detector's size.
            targets: `boxes` [N, 4] and `labels` [N] of each image.
        """
        if targets is not None:
            targets = [{**target, "labels": self.outputs[target["labels"]]} for target in targets]
        results = super().forward(images, targets)
        return results if self.training else [self._of_classes(result) for result in results]

    def _of_classes(self, result: dict[str, Tensor]) -> dict[str, Tensor]:
        labels = self.classes[result["labels"]]
        known = labels >= 0
        return {key: value[known] for key, value in {**result, "labels": labels}.items()}


class FasterRCNN(Detector, detection.FasterRCNN):
    """torchvision's Faster R-CNN, for the classes of a data set."""


class SSD(Detector, detection.ssd.SSD):
    """torchvision's SSD, for the classes of a data set."""


def _faster_rcnn(
    net: nn.Module, spec: BackboneSpec, detector: DetectorSpec, _published: Published, outputs: int
) -> Detector:
    return FasterRCNN(
        feature_extractors.pyramid(net, spec, detector.channels),
        outputs,
        detector.image_size,
        detector.max_size,
        rpn_post_nms_top_n_train=detector.train_proposals,
        rpn_post_nms_top_n_test=detector.test_proposals,
        box_batch_size_per_image=detector.rois,
        box_detections_per_img=detector.detections,
        _skip_resize=True,  # in training, because samples already have the detector's size
    )


def _ssd(net: nn.Module, spec: BackboneSpec, detector: DetectorSpec, published: Published, outputs: int) -> Detector:
    anchors = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
    )
    return _single_shot(feature_extractors.ssd(net, spec), anchors, detector, published, outputs)


def _ssdlite(
    net: nn.Module, spec: BackboneSpec, detector: DetectorSpec, published: Published, outputs: int
) -> Detector:
    extractor = feature_extractors.ssdlite(net, spec)
    anchors = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    channels = retrieve_out_channels(extractor, (detector.image_size,) * 2)
    boxes_per_location = anchors.num_anchors_per_location()
    head = SSDLiteHead(channels, boxes_per_location, outputs, feature_extractors.SSDLITE_NORM)
    candidates = {"score_thresh": 0.001, "nms_thresh": 0.55, "topk_candidates": 300}
    return _single_shot(extractor, anchors, detector, published, outputs, head=head, **candidates)


def _single_shot(
    extractor: nn.Module,
    anchors: nn.Module,
    detector: DetectorSpec,
    published: Published,
    outputs: int,
    **options: Any,
) -> Detector:
    if published is not None:
        mean, std = _PUBLISHED_NORMALIZATION[detector.architecture]
        options |= {"image_mean": list(mean), "image_std": list(std)}
    size = (detector.image_size,) * 2
    return SSD(extractor, anchors, size, outputs, detections_per_img=detector.detections, _skip_resize=True, **options)


_ASSEMBLE: dict[str, Callable[..., Detector]] = {"faster_rcnn": _faster_rcnn, "ssd": _ssd, "ssdlite": _ssdlite}


def _freeze(net: nn.Module, spec: BackboneSpec, detector: DetectorSpec, published: Published) -> None:
    """Freeze the early stages and norms of a pretrained backbone. Attention stays trainable."""
    feature_extractors.freeze_stages(net, spec, detector.trainable_layers)
    if detector.frozen_norms:
        # The published Faster R-CNN was trained with a torchvision version whose frozen norms had no epsilon.
        feature_extractors.freeze_norms(net, eps=None if published is None else 0.0)


def _reduced_mobilenet(spec: BackboneSpec, kind: str, start: str, options: dict[str, Any]) -> nn.Module:
    """Return the MobileNet V3 of the published SSDlite, with half the channels in its last stage."""
    net: nn.Module = torchvision.models.mobilenet_v3_large(
        norm_layer=feature_extractors.SSDLITE_NORM, reduced_tail=True
    )
    after = options.pop("after", None) or spec.places(net)
    for layer in attention_layers.insert(net, kind, after, options, image_size=224):
        if start == "identity":
            layer.init_identity_()
    return net


class _Float32BoxCoder(BoxCoder):
    """Box coder that decodes in float32; torchvision's decodes in the dtype of the predicted offsets."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        return super().decode_single(rel_codes.float(), boxes)


def _keep_boxes_in_float32(model: nn.Module) -> None:
    """Compute anchors, proposals and detections in float32 under autocast.

    torchvision computes anchors in the dtype of the feature maps, and boxes in that of the predicted offsets. In
    bfloat16, a coordinate above 512 pixels is a multiple of 4.
    """
    model.get_submodule("backbone").register_forward_hook(_maps_in_float32)
    for module in model.modules():
        coder = getattr(module, "box_coder", None)
        if isinstance(coder, BoxCoder):
            module.box_coder = _Float32BoxCoder(coder.weights)


def _maps_in_float32(_extractor: nn.Module, _inputs: object, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    return OrderedDict((level, features.float()) for level, features in maps.items())


class _MapsAttention(nn.Module):
    """Attention on several feature maps, with one layer for each."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        pairs = zip(maps.items(), self.layers, strict=True)
        return OrderedDict((level, layer(features)) for (level, features), layer in pairs)


def _attend_to_maps(model: nn.Module, kind: str, start: str, options: dict[str, object]) -> None:
    """Insert attention between the feature maps and the prediction heads."""
    extractor = model.get_submodule("backbone")
    channels = retrieve_out_channels(extractor, (320, 320))
    layers = [attention_kinds.find(kind).layer(planes, options) for planes in channels]
    for layer in layers:
        if start == "identity":
            layer.init_identity_()
    attach(extractor, _MapsAttention(layers))
