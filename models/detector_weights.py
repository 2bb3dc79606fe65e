"""Weights of whole detectors, from torchvision or from files."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import detection

from models import head_classes
from models import weights as start_weights
from models.attention.network import plain_state
from models.errors import ModelError
from models.pretrained import fetch

log = logging.getLogger(__name__)

Published = Any | None  # torchvision's entry for a detector's weights; None for other weights

_PUBLISHED = {
    ("faster_rcnn", "resnet50"): detection.FasterRCNN_ResNet50_FPN_Weights,
    ("ssd", "vgg16"): detection.SSD300_VGG16_Weights,
    ("ssdlite", "mobilenet_v3_large"): detection.SSDLite320_MobileNet_V3_Large_Weights,
}

_PREDICTORS = ("roi_heads.box_predictor.", "head.classification_head.")


def published_entry(architecture: str, backbone: str, weights: str | None, must_exist: bool = False) -> Published:
    """Return torchvision's entry (url, meta) for a detector's weights; None for a file or no weights.

    Args:
        must_exist: whether a file has to exist. That of a started run may have been deleted since.

    Raises:
        ModelError: if the weights are neither published nor a file that exists, with `must_exist`.
    """
    known = {entry.name: entry for entry in _PUBLISHED.get((architecture, backbone), ())}
    if weights is None or weights in known or Path(weights).is_file() or not must_exist:
        return known.get(weights or "")
    raise ModelError(
        f"detector.weights={weights} is neither a file nor published for {architecture} on {backbone}; "
        f"published weights: {', '.join(known) or 'none'}."
    )


def of_backbone(backbone: str) -> list[tuple[str, Any]]:
    """Return the published detectors on a backbone: each architecture with torchvision's entry for its weights."""
    return [(kind, entry) for (kind, name), entries in _PUBLISHED.items() if name == backbone for entry in entries]


def knows(published: Published, classes: Sequence[str]) -> bool:
    """Return whether published weights have all classes by name."""
    return published is not None and set(classes) <= set(published.meta["categories"])


def has_classes(published: Published, weights: str, classes: Sequence[str]) -> bool:
    """Return whether weights have all classes by name; a file, as far as it is known, in the same order."""
    if published is not None:
        return knows(published, classes)
    trained = head_classes.named_in_file(Path(weights))
    if trained is None:
        log.warning("%s does not name its classes; they must be %s, in this order.", weights, ", ".join(classes))
    return trained is None or trained == list(classes)


def load(
    model: nn.Module,
    backbone: str,
    weights: str,
    published: Published,
    new_predictors: bool,
    kind: str,
    options: Mapping[str, object],
) -> None:
    """Load a detector's weights. Attention missing from them keeps its initialization, as do new predictors.

    Args:
        weights: the path of a file; not used if `published` is given.
        new_predictors: whether the predictors are for other classes. Those of other shapes are always re-initialized.
        kind, options: kind and options of the model's attention.

    Raises:
        ModelError: if the weights were trained with other attention, or tensors are missing, unexpected or of another
            shape; the error lists the first of each kind.
    """
    path = Path(weights) if published is None else fetch(backbone, published)
    own = model.state_dict()
    start = start_weights.read_file(path, own)
    start_weights.require_same_attention(start, weights, kind, options)
    state = start.state
    predictors = {key for key in own if key.startswith(_PREDICTORS)}
    reshaped = any(key in state and state[key].shape != own[key].shape for key in predictors)
    if new_predictors or reshaped:
        log.warning("The predictors of the detector are re-initialized: its weights are for other classes.")
        state = start_weights.without(state, predictors)
    fit = start_weights.copy_tensors(model, state)
    missing = fit.missing - predictors if new_predictors or reshaped else fit.missing
    attention = {key for key in own if not key.endswith(".gain")} - plain_state(model).keys()
    if missing >= attention:
        missing -= attention
    start_weights.refuse(backbone, missing=missing, unexpected=fit.unexpected, reshaped=fit.reshaped)
    start_weights.set_report(model, replace(start.report, tensors=len(state)))
