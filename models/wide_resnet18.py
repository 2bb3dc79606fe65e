"""ResNet-18 with wider stages (Table 4), which is not in torchvision."""

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


class WideResNet18(ResNet):
    """Table 4's WideResNet18: ResNet-18 with the channels of its four stages multiplied by `widen`.

    The stem keeps its 64 channels, which gives the printed 25.88M and 45.62M parameters instead of 25.90M and 45.69M.
    """

    def __init__(self, widen: float, num_classes: int) -> None:
        self.widen = widen  # before the parent's constructor, which builds the stages
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.fc = nn.Linear(self.inplanes, num_classes)

    def _make_layer(self, block: type[nn.Module], planes: int, *args: object, **kwargs: object) -> nn.Sequential:
        return super()._make_layer(block, int(self.widen * planes), *args, **kwargs)
