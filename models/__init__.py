"""torchvision's networks with and without attention.

>>> import models
>>> net = models.build("resnet50", attention="cbam", weights="IMAGENET1K_V1")
>>> models.names()
"""

from models.errors import ModelError
from models.weights import published, published_entry, transforms
from models.zoo import build, names

__all__ = ["ModelError", "build", "names", "published", "published_entry", "transforms"]
