"""Insertion of attention into any CNN, pretrained or not, without changes to the network's code.

The layer becomes the child `attention` of the module that it follows, and one forward hook calls it. A Sequential gets
the layer as its last child and needs no hook. No module is wrapped: every parameter keeps its name, and published state
dicts load unchanged, with only attention's keys missing.

A hook belongs to one module object. A transformation that replaces modules after the insertion (conversion to
SyncBatchNorm, BatchNorm folding) therefore drops their attention silently; `check` detects this.
"""

import difflib
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cbam import calibration, families, probe
from cbam.attachment import InsertionError, attach, detach, has_attention, is_inserted, runs_attention
from cbam.checks import require_one_of
from cbam.layer import AttentionLayer, CBAMLayer
from cbam.module import CBAM

STARTS = ("identity", "random")

# Attribute of a network: the names of the modules that attention was inserted after.
_RECORD = "attention_places"


class Insertion(NamedTuple):
    """A module that attention follows.

    Attributes:
        name: of the module in the network.
        channels: of the module's output.
        size: height and width of the module's output, for a square image of the given size.
    """

    name: str
    channels: int
    size: tuple[int, int]


def insert(
    net: nn.Module,
    after: str | Sequence[str],
    start: str = "identity",
    image_size: int = 224,
    image_channels: int | None = None,
    calibrate: Tensor | Iterable[Tensor] | None = None,
    **options: object,
) -> list[Insertion]:
    """Insert CBAM after modules of a network, in place.

    Insert before the optimizer is built and before the network is wrapped (DistributedDataParallel) or compiled, and
    after modules are replaced (SyncBatchNorm). Each new layer gets the device, dtype and mode of the module that it
    follows.

    Args:
        net: a network that takes one image argument [N, C, H, W].
        after: a regular expression that must match the whole name of a module, or a list of names.
        start: `identity` leaves the network's outputs bitwise unchanged in fp32 and bf16 (in fp16, and for
            `output="residual"`, up to rounding); `random` initializes the gates as PyTorch initializes convolutions, in
            the order of the modules.
        image_size: side of the square image on which a copy of the network is run, pixels.
        image_channels: channels of this image; None to try those of the first convolution, 3 and 1.
        calibrate: preprocessed training images for `cbam.calibrate`, which makes the gates learn at the same pace in
            every network; about 100 suffice. None for the paper's module.
        options: keyword arguments of `CBAMLayer` and `CBAM`: `ratio`, `kernel_size`, `output`, ...

    Returns:
        The modules that attention now follows, in the order of `net.named_modules()`.

    Raises:
        InsertionError: if no module matches, or attention cannot follow a matching module. The network is unchanged.
        ValueError: if an option is unknown or out of range, or calibration fails. The network is unchanged.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> insert(net, after="1", image_size=32)
    [Insertion(name='1', channels=8, size=(30, 30))]
    """
    require_one_of("start", start, STARTS)
    _require_options(options)
    if calibrate is not None and start != "identity":
        raise ValueError('Calibration needs start="identity"; other gates would change their outputs.')

    def make_layer(channels: int) -> CBAMLayer:
        layer = CBAMLayer(channels, **options)  # type: ignore[arg-type]
        if start == "identity":
            layer.init_identity_()
        return layer

    _require_unwrapped(net)
    record = vars(net).get(_RECORD, ())
    insertions = insert_layer(net, after, make_layer, image_size, image_channels)
    if calibrate is not None:
        try:
            calibration.calibrate(net, calibrate)
        except BaseException:
            for insertion in insertions:
                detach(net.get_submodule(insertion.name))
            vars(net)[_RECORD] = record
            raise
    return insertions


def insert_layer(
    net: nn.Module,
    after: str | Sequence[str],
    make_layer: Callable[[int], nn.Module],
    image_size: int = 224,
    image_channels: int | None = None,
) -> list[Insertion]:
    """Insert a layer [N, C, H, W] -> [N, C, H, W] after modules of a network, in place.

    `make_layer` is called with each module's number of output channels, in the order of the modules. Otherwise
    equivalent to `insert`.
    """
    insertions = places(net, after, image_size, image_channels)
    layers = [make_layer(insertion.channels) for insertion in insertions]  # all of them, before the network changes
    for insertion, layer in zip(insertions, layers, strict=True):
        module = net.get_submodule(insertion.name)
        _move_beside(layer, net, insertion.name)
        attach(module, layer.train(module.training))
    # vars() everywhere, because wrappers forward attribute access to the network that they wrap.
    vars(net)[_RECORD] = (*vars(net).get(_RECORD, ()), *(insertion.name for insertion in insertions))
    return insertions


def places(
    net: nn.Module,
    after: str | Sequence[str] | None = None,
    image_size: int = 224,
    image_channels: int | None = None,
) -> list[Insertion]:
    """Return the result of `insert`, or raise its error, without changing the network.

    Args:
        net, image_size, image_channels: as for `insert`.
        after: as for `insert`; None suggests places for the CNNs of torchvision and timm, also inside a detector or a
            segmentation network (`cbam.families`).
    """
    _require_unwrapped(net)
    if after is None:
        after = families.suggest(net)
        if not after:
            raise InsertionError(
                f"No place for attention is known in {type(net).__name__}; give `after`, a regular expression that "
                "matches the full names of modules. Choose the last norm or activation of each block."
            )
    names = _matching_names(net, after)
    for name in names:
        _require_free(name, net.get_submodule(name))
    shapes = probe.output_shapes(net, names, image_size, image_channels)
    return [Insertion(name, shapes[name][1], (shapes[name][2], shapes[name][3])) for name in names]


def check(net: nn.Module) -> list[str]:
    """Return the names of the modules that attention follows.

    The network may be wrapped (DistributedDataParallel, torch.compile).

    Raises:
        InsertionError: if inserted attention no longer runs, naming the modules, or if there is no attention at all.
    """
    followed = {name: module for name, module in net.named_modules() if has_attention(module)}
    running = {name: module for name, module in followed.items() if runs_attention(module)}
    lost = [name for name in followed if name not in running]
    lost += [name for name, module in _recorded(net) if module not in followed.values()]
    if lost:
        raise InsertionError(
            f"Attention no longer runs after {_listing(lost)}: the module or its attention was replaced after the "
            f"insertion, for example by convert_sync_batchnorm or BatchNorm folding. Replace modules first, then call "
            f"cbam.insert; a state dict with trained attention loads as before."
        )
    if not running:
        raise InsertionError("The network has no attention; call cbam.insert after replacing modules.")
    return list(running)


def gates(net: nn.Module) -> dict[str, nn.Module]:
    """Return a network's gates in module order, with names like `layer1.0.bn2 channel` and `layer1.0.bn2 spatial`.

    A gate is a module whose outputs are the gate's values, in (0, 1): of CBAM, [N, C, 1, 1] for the channel gate and
    [N, 1, H, W] for the spatial gate. A forward hook on it sees them. Layers that derive from `AttentionLayer` have
    gates; other layers have none.
    """
    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, AttentionLayer)]
    return {
        f"{name.removesuffix('.attention')} {title}".strip(): gate
        for name, layer in layers
        for title, gate in layer.gates().items()
    }


def remove(net: nn.Module) -> None:
    """Remove all inserted attention in place, which restores the network as it was before the insertion."""
    for module in list(net.modules()):
        detach(module)
        vars(module).pop(_RECORD, None)


def _recorded(net: nn.Module) -> Iterator[tuple[str, nn.Module | None]]:
    """Yield the name of each module that attention was inserted after, and the module that has this name now."""
    for prefix, owner in net.named_modules():
        for name in vars(owner).get(_RECORD, ()):
            try:
                module = owner.get_submodule(name)
            except AttributeError:
                module = None
            yield f"{prefix}.{name}".lstrip("."), module


def _matching_names(net: nn.Module, after: str | Sequence[str]) -> list[str]:
    """Return the names that `after` matches, in the order of the modules, except those inside attention layers."""
    layers = tuple(f"{name}." for name, module in net.named_modules() if is_inserted(module))
    names = [name for name, _ in net.named_modules() if name and not f"{name}.".startswith(layers)]
    patterns = {after: after} if isinstance(after, str) else {name: re.escape(name) for name in after}
    matching: set[str] = set()
    for given, pattern in patterns.items():
        try:
            found = [name for name in names if re.fullmatch(pattern, name)]
        except re.error as error:
            raise InsertionError(f"{given!r} is not a regular expression: {error}.") from error
        if not found:
            raise InsertionError(f"{given!r} does not match any module's full name; {_nearest(pattern, names)}.")
        matching.update(found)
    if not matching:
        raise InsertionError("The list of modules is empty; give a regular expression or the names of modules.")
    return [name for name in names if name in matching]


def _nearest(pattern: str, names: Sequence[str]) -> str:
    literal = re.sub(r"\\[dw][+*]?", "0", pattern).replace("\\", "")
    nearest = [name for name in names if re.search(pattern, name)] or difflib.get_close_matches(
        literal, names, cutoff=0
    )
    return f"the nearest names are {_listing(nearest)}" if nearest else "the network has no modules"


def _listing(names: Sequence[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more"


def _require_options(options: Iterable[str]) -> None:
    known = [name for layer in (CBAMLayer, CBAM) for name in inspect.signature(layer).parameters]
    known = [name for name in known if name not in ("planes", "in_planes", "options")]
    for option in options:
        if option not in known:
            raise ValueError(f"CBAM has no option '{option}'; it has {', '.join(known)}.")


def _require_unwrapped(net: nn.Module) -> None:
    """Reject what is no network, and wrappers.

    Under wrappers, new layers have unaveraged gradients (DistributedDataParallel) or never run (torch.compile).
    """
    given: object = net
    if not isinstance(given, nn.Module):
        name = getattr(given, "__name__", "")
        got = f"{name}, which returns or is the class of one" if name else type(given).__name__
        raise InsertionError(f"net must be a network, an instance of torch.nn.Module; got {got}.")
    for module in net.modules():
        if isinstance(module, DistributedDataParallel):
            raise InsertionError("The network is wrapped in DistributedDataParallel; insert first, then wrap it.")
        if module._compiled_call_impl is not None or "_orig_mod" in module._modules:
            raise InsertionError("The network is compiled by torch.compile; insert first, then compile it.")


def _require_free(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise InsertionError(f"The module '{name}' is compiled by TorchScript; insert before the network is compiled.")
    if has_attention(module):
        raise InsertionError(f"Attention already follows '{name}'; call cbam.remove before inserting it again.")
    if hasattr(module, "attention"):
        raise InsertionError(f"The module '{name}' has its own attribute 'attention'; choose another module.")


def _move_beside(layer: nn.Module, net: nn.Module, name: str) -> None:
    """Move a layer to the device and dtype of the named module, or of its nearest ancestor with parameters."""
    around = [*itertools.accumulate(name.split("."), "{}.{}".format)][::-1]
    parameters: Iterable[Tensor] = itertools.chain.from_iterable(
        net.get_submodule(parent).parameters() for parent in (*around, "")
    )
    for parameter in parameters:
        if parameter.is_floating_point():
            layer.to(parameter.device, parameter.dtype)
            return
