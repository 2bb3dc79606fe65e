"""Every network for torch.hub, under the names of `models.build`.

torch.hub.load("OWNER/REPOSITORY", "resnet50_cbam", weights="checkpoint/last.pt")
"""

from functools import partial as _partial
from functools import update_wrapper as _update_wrapper

import models as _models

dependencies = ["torch", "torchvision"]

# torch.hub finds entry points by their names in this module.
globals().update(
    {
        name + suffix: _update_wrapper(_partial(_models.build, name + suffix), _models.build)
        for name in _models.names()
        for suffix in ("", "_cbam", "_se")
    }
)
