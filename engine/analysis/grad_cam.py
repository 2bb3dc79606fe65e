"""Spatial gates and Grad-CAM (Selvaraju et al., ICCV 2017) of a network, drawn over images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.analysis import gate_stats
from engine.data.transforms import Preprocessing, normalize

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_CAM_COLORS, _GATE_COLORS = "jet", "coolwarm"
_NARROWEST_HALF = 0.01  # of the scale of gates, so that rounding is not shown as structure


@dataclass(frozen=True)
class AttentionMaps:
    """Attention maps and predictions of a network for N images.

    Attributes:
        cam: float32 [N, S, S] in [0, 1], Grad-CAM of the target class, scaled to the maximum of each image.
        gates: float32 [N, S, S] in (0, 1), the last spatial gate of each resolution, by name; of a gate with
            several channels, their mean.
        predicted: int64 [N], the most probable classes.
        probability: float32 [N], the probabilities of the target classes.
    """

    cam: np.ndarray
    gates: dict[str, np.ndarray]
    predicted: np.ndarray
    probability: np.ndarray


def compute_maps(
    model: nn.Module, gate_modules: Mapping[str, nn.Module], images: Tensor, targets: Tensor, way: Preprocessing
) -> AttentionMaps:
    """Compute the maps. The model is unchanged and left in evaluation mode.

    Args:
        model: a classifier.
        gate_modules: its gates by name; of the spatial gates, the last of each resolution is kept.
        images: uint8 [N, 3, S, S] on the model's device.
        targets: int64 [N], the class whose evidence Grad-CAM shows.
        way: normalization of the images.
    """
    model.eval()
    last: list[Tensor] = []

    def note(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] > 1:
            last[:] = [output]

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.enable_grad(), gate_stats.record_gates(gate_modules) as seen:
            # The images' gradient makes that of the map available even if all parameters are frozen. The clone is not a
            # leaf, because a network may change its input in place.
            inputs = normalize(images, way).requires_grad_().clone()
            logits = model(inputs).float()
    finally:
        for hook in hooks:
            hook.remove()
    (features,) = last
    score = logits.gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, features)
    weights = gradient.float().mean(dim=(2, 3), keepdim=True)
    cam = F.relu((weights * features.detach().float()).sum(dim=1, keepdim=True))
    cam = cam / cam.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12)
    size = images.shape[-1]
    maps = {name: gate for name, gate in seen.items() if gate.ndim == 4 and min(gate.shape[2:]) > 1}
    by_resolution = {gate.shape[-1]: (name, gate.float().mean(dim=1, keepdim=True)) for name, gate in maps.items()}
    return AttentionMaps(
        cam=_enlarged(cam, size),
        gates={name: _enlarged(gate, size) for name, gate in by_resolution.values()},
        predicted=logits.argmax(dim=1).cpu().numpy(),
        probability=logits.softmax(dim=1).gather(1, targets[:, None])[:, 0].detach().cpu().numpy(),
    )


def can_draw() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(
    images: Tensor,
    targets: Sequence[int],
    classes: Sequence[str],
    networks: Mapping[str, AttentionMaps],
    labeled: bool,
    title: str = "",
) -> "Figure":
    """Draw a row for each image: the image, then Grad-CAM and spatial gates of each network as overlays.

    All gates of the figure share one scale, centered at 0.5, the gate at the identity start, and as wide as the gates
    need, so that small differences are seen too. Its color bar states its range.

    Args:
        images: uint8 [N, 3, S, S].
        targets: the classes of Grad-CAM.
        classes: names of the classes.
        networks: the maps by the network's name.
        labeled: whether the targets are the images' true classes, so that predictions are marked correct or wrong.
        title: title of the figure.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    columns = 1 + sum(1 + len(maps.gates) for maps in networks.values())
    figure = Figure(figsize=(1.7 * columns + 1, 2.3 * len(pixels) + 0.4), layout="constrained", dpi=100)
    if title:
        figure.suptitle(title, fontsize=8, parse_math=False)
    axes = figure.subplots(len(pixels), columns, squeeze=False)
    cam_scale, gate_scale = Normalize(0, 1), Normalize(*_gate_range(networks.values()))
    for row, target in enumerate(targets):
        axes[row, 0].imshow(pixels[row])
        axes[row, 0].set_title(classes[target] if labeled else "", fontsize=7, parse_math=False)
        panels = iter(axes[row, 1:])
        for network, maps in networks.items():
            panel = next(panels)
            panel.imshow(pixels[row])
            panel.imshow(maps.cam[row], cmap=_CAM_COLORS, norm=cam_scale, alpha=0.45)
            predicted = classes[maps.predicted[row]]
            if labeled:
                predicted += " (correct)" if maps.predicted[row] == target else " (wrong)"
            text = f"{network}: {predicted}\nGrad-CAM of {classes[target]}\np={maps.probability[row]:.2f}"
            panel.set_title(text, fontsize=5, parse_math=False)  # class names may contain dollar signs
            for name, gate in maps.gates.items():
                panel = next(panels)
                panel.imshow(pixels[row].mean(axis=2), cmap="gray")
                panel.imshow(gate[row], cmap=_GATE_COLORS, norm=gate_scale, alpha=0.6)
                panel.set_title(f"{name}\n{gate[row].min():.3f} to {gate[row].max():.3f}", fontsize=5)
    for panel in axes.flat:
        panel.axis("off")
    _color_bar(figure, axes, ScalarMappable(cam_scale, _CAM_COLORS), "Grad-CAM, relative to its maximum")
    if any(maps.gates for maps in networks.values()):
        _color_bar(figure, axes, ScalarMappable(gate_scale, _GATE_COLORS), "spatial gate")
    return figure


def _gate_range(networks: Iterable[AttentionMaps]) -> tuple[float, float]:
    """Return a range around 0.5 that contains all gates."""
    distances = [float(np.abs(gate - 0.5).max()) for maps in networks for gate in maps.gates.values()]
    widest = max([_NARROWEST_HALF, *distances])
    return 0.5 - widest, 0.5 + widest


def _color_bar(figure: "Figure", axes: np.ndarray, scale: Any, label: str) -> None:
    bar = figure.colorbar(scale, ax=axes, shrink=0.8, aspect=30, pad=0.01)
    bar.set_label(label, fontsize=6)
    bar.ax.tick_params(labelsize=5)


def pixels(figure: "Figure") -> np.ndarray:
    """Return a figure as uint8 [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _enlarged(maps: Tensor, size: int) -> np.ndarray:
    """Resize maps: [N, 1, H, W] -> [N, size, size]."""
    larger = F.interpolate(maps.detach().cpu(), (size, size), mode="bilinear", align_corners=False)
    return larger[:, 0].numpy()
