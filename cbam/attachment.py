"""Attachment of a layer to the module that it follows."""

from torch import nn

# Attribute that distinguishes an inserted layer from a network's own child named `attention`.
_MARK = "is_inserted_attention"


class InsertionError(ValueError):
    """Raised if attention cannot be inserted or no longer runs."""


def apply_attention(module: nn.Module, _args: object, output: object) -> object:
    """Pass a module's output through its attention (forward hook).

    Defined at module level so that deepcopy, pickle and torch.compile support it.
    """
    return module.attention(output)  # type: ignore[operator]


def attach(module: nn.Module, layer: nn.Module) -> None:
    """Add the layer as the module's child `attention` and pass the module's output through it."""
    module.add_module("attention", layer)
    setattr(layer, _MARK, True)
    if not _calls_children(module):
        module.register_forward_hook(apply_attention)


def detach(module: nn.Module) -> None:
    """Remove the module's inserted attention, if it has any."""
    if not has_attention(module):
        return
    del module.attention
    hooks = module._forward_hooks
    for key in [key for key, hook in hooks.items() if hook is apply_attention]:
        del hooks[key]


def is_inserted(layer: nn.Module | None) -> bool:
    """Return whether a module is an attached layer, even if it no longer runs."""
    return getattr(layer, _MARK, False) is True


def has_attention(module: nn.Module) -> bool:
    """Return whether a layer is attached to the module, even if it no longer runs."""
    return is_inserted(dict(module.named_children()).get("attention"))


def runs_attention(module: nn.Module) -> bool:
    """Return whether the module's child `attention` runs when the module does."""
    # A plain Module has no forward: torch.fx uses it as a container and calls its children.
    return _calls_children(module) or type(module) is nn.Module or apply_attention in module._forward_hooks.values()


def _calls_children(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward
