"""The output layers of classifiers: which they are, and their initialization for new classes."""

import torch
from torch import Tensor, nn

from models.errors import ModelError

# Standard deviation of a new head's weights. The initialization of EfficientNet and MobileNet V3, uniform in
# +-1/sqrt(classes), gives a loss far above that of chance for few classes.
STD = 0.01


def find(net: nn.Module, image_size: int) -> tuple[str, ...]:
    """Return the name of the linear layer that produces a classifier's output; empty if there is none.

    Args:
        image_size: side of an image that the network accepts, pixels. The network is run on one image.
    """
    outputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.update({name: output}))
        for name, layer in net.named_modules()
        if name and isinstance(layer, nn.Linear)
    ]
    training = net.training
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return tuple(name for name, output in outputs.items() if output is logits)[-1:]


def require(net: nn.Module, head: str, classes: int) -> None:
    """Require that a layer is a head for this number of classes.

    Raises:
        ModelError: if the network does not have the layer, or it has other outputs.
    """
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    if head not in layers:
        raise ModelError(
            f"model.head={head} is not a linear or convolutional layer of {type(net).__name__}; its last ones are "
            f"{', '.join(list(layers)[-3:]) or 'none'}."
        )
    outputs = layers[head].weight.shape[0]
    if outputs != classes:
        raise ModelError(
            f"model.head={head} has {outputs} outputs; the head has one for each of the {classes} classes."
        )


def initialize(net: nn.Module, heads: tuple[str, ...]) -> None:
    """Initialize new heads in place: normal weights of standard deviation `STD`, zero biases."""
    for name in heads:
        layer = net.get_submodule(name)
        nn.init.normal_(layer.weight, 0, STD)  # type: ignore[arg-type]
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
