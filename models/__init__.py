"""torchvision's networks with and without attention.

>>> import models
>>> net = models.build("resnet50", attention="cbam", weights="IMAGENET1K_V1")
>>> models.names()
"""

from cbam import gates
from cbam.calibration import calibrating, gates_at_start, set_scales
from models.attention.network import fuse, plain_state
from models.attention.registry import KINDS as ATTENTION_KINDS
from models.detection import DetectorSpec, backbone, build_detector
from models.detector_weights import of_backbone as published_detectors
from models.detector_weights import published_entry as published_detector
from models.errors import ModelError
from models.factory import build, names, transforms
from models.head_classes import imagenet_classes
from models.parts import last_norms, parts, stages
from models.pretrained import published, published_entry
from models.weights import report as start_report

__all__ = [
    "ATTENTION_KINDS",
    "DetectorSpec",
    "ModelError",
    "backbone",
    "build",
    "build_detector",
    "calibrating",
    "fuse",
    "gates",
    "gates_at_start",
    "imagenet_classes",
    "last_norms",
    "names",
    "parts",
    "plain_state",
    "published",
    "published_detector",
    "published_detectors",
    "published_entry",
    "set_scales",
    "stages",
    "start_report",
    "transforms",
]
