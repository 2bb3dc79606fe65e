"""torchvision's networks with and without attention.

>>> import models
>>> net = models.build("resnet50", attention="cbam", weights="IMAGENET1K_V1")
>>> models.names()
"""

from models.attention import fuse, gate_gains, gates, plain_state
from models.detection import backbone
from models.errors import ModelError
from models.factory import build, names, transforms
from models.parts import parts, stages
from models.pretrained import published, published_entry

__all__ = [
    "ModelError",
    "backbone",
    "build",
    "fuse",
    "gate_gains",
    "gates",
    "names",
    "parts",
    "plain_state",
    "published",
    "published_entry",
    "stages",
    "transforms",
]
