"""Pictures of boxes: annotated objects beside detections."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw  # a requirement of torchvision
from torch import Tensor, nn
from torchvision.utils import draw_bounding_boxes

from engine.data.boxes import BoxSplit

SCORE = 0.5  # minimum of the detections that are drawn
SIDE = 320  # pixels; shorter sides are enlarged to at most this by an integer factor, so that labels fit

# Colors of the classes, in turn: Okabe and Ito's colorblind-safe palette.
_COLORS = ("#D55E00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#E69F00", "#0072B2")


@torch.inference_mode()
def truth_and_detections(
    model: nn.Module,
    split: BoxSplit,
    chosen: Sequence[int],
    classes: Sequence[str],
    device: torch.device,
    title: str = "",
) -> np.ndarray:
    """Draw images in rows, the annotated objects on the left and the detections on the right.

    Args:
        model: a detector in evaluation mode.
        chosen: indices of the images.
        classes: names.
        device: of the model.
        title: title of the picture, above an explanation.

    Returns:
        uint8 [height, width, 3].
    """
    rows = []
    for index in chosen:
        image, boxes = split.image(int(index)), split.box_range(int(index))
        truth = draw(image, torch.from_numpy(split.boxes[boxes]), split.labels[boxes].tolist(), classes)
        rows.append([truth, draw_detections(model, image, classes, device)])
    height = max(image.shape[1] for row in rows for image in row)
    width = max(image.shape[2] for row in rows for image in row)
    grid = np.full((len(rows) * height, 2 * width, 3), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, drawn in enumerate(row):
            top, left = i * height, j * width
            grid[top : top + drawn.shape[1], left : left + drawn.shape[2]] = drawn.permute(1, 2, 0).numpy()
    return np.concatenate([_caption(title, grid.shape[1]), grid]) if title else grid


def _caption(title: str, width: int) -> np.ndarray:
    """Return two lines of text on white, uint8 [height, width, 3]."""
    strip = Image.new("RGB", (width, 32), "white")
    text = f"{title}\nleft: annotated objects; right: detections with a score of at least {SCORE}"
    ImageDraw.Draw(strip).text((4, 2), text, fill="black")
    return np.asarray(strip)


@torch.inference_mode()
def draw_detections(model: nn.Module, image: Tensor, classes: Sequence[str], device: torch.device) -> Tensor:
    """Draw the detections with a score of at least `SCORE` onto an image, uint8 [3, H, W]."""
    (found,) = model([image.to(device, torch.float32).div(255)])
    sure = (found["scores"] >= SCORE).cpu()
    boxes, labels, scores = (found[key].cpu()[sure] for key in ("boxes", "labels", "scores"))
    return draw(image, boxes, labels.tolist(), classes, scores.tolist())


def draw(
    image: Tensor, boxes: Tensor, labels: Sequence[int], classes: Sequence[str], scores: Sequence[float] | None = None
) -> Tensor:
    """Draw boxes with their classes, and scores if given, onto a copy of an image, uint8 [3, H, W]."""
    factor = max(1, SIDE // min(image.shape[1:]))
    image = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    if not len(boxes):
        return image
    texts = [classes[label] for label in labels]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores, strict=True)]
    colors = [_COLORS[label % len(_COLORS)] for label in labels]
    style = {"width": 2, "label_colors": "black", "label_background_colors": colors, "fill_labels": True}
    drawn: Tensor = draw_bounding_boxes(image, factor * boxes, texts, colors, **style)
    return drawn
