"""Synthetic data set for tests and demos: five shapes in two textures, drawn once as JPEG files in class folders.

Only shape and texture distinguish the ten classes. Position, size, rotation, colors, background and clutter vary
independently of the class, so that a network has to learn shape and texture.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torchvision.io import write_jpeg

from engine.errors import UserError
from engine.processes.determinism import RngPurpose, rng

SIZE = 48  # pixels
TRAIN_PER_CLASS = 160
VAL_PER_CLASS = 100
SHAPES = ("cross", "disc", "ring", "square", "triangle")
TEXTURES = ("checked", "striped")
SEED = 51


def generate(root: Path) -> None:
    """Write train/ and val/ below `root` unless they exist. The folder is created atomically."""
    if root.exists():
        return
    draft = root.with_name(f"{root.name}.{os.getpid()}.draft")
    try:
        _write(draft)
        draft.rename(root)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if not root.exists():  # otherwise another process has created it
            raise UserError(f"The images of {root} cannot be written ({error.strerror}); set data.root.") from error


def _write(folder: Path) -> None:
    """Draw every image below train/ and val/ of a folder."""
    classes = [(shape, texture) for shape in SHAPES for texture in TEXTURES]
    for split, per_class in (("train", TRAIN_PER_CLASS), ("val", VAL_PER_CLASS)):
        for label, (shape, texture) in enumerate(classes):
            into = folder / split / f"{shape}_{texture}"
            into.mkdir(parents=True)
            for i in range(per_class):
                random = rng(SEED, RngPurpose.SHAPES, epoch=label, index=i + (0 if split == "train" else 2**32))
                image = torch.from_numpy(draw(shape, texture, random)).permute(2, 0, 1)
                write_jpeg(image, str(into / f"{i:04d}.jpeg"), quality=90)


def draw(shape: str, texture: str, random: np.random.Generator) -> np.ndarray:
    """Draw one image, uint8 [SIZE, SIZE, 3]."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    image = background(x, y, random)
    radius = random.uniform(0.22, 0.38)
    center = random.uniform(radius, 1 - radius, size=2)
    u, v = rotate(x - center[0], y - center[1], random.uniform(0, 2 * np.pi))
    mask = is_inside(shape, u / radius, v / radius)
    image[mask] = textured(texture, x, y, random)[mask]
    noise = random.normal(0, random.uniform(2, 12), image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def is_inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the boolean mask of a shape of radius about 1 around the origin."""
    distance = np.hypot(u, v)
    match shape:
        case "disc":
            return distance < 0.9
        case "ring":
            return (distance < 1) & (distance > 0.55)
        case "square":
            return np.maximum(abs(u), abs(v)) < 0.8
        case "triangle":
            return np.maximum(v, np.sqrt(0.75) * abs(u) - v / 2) < 0.5
        case "cross":
            return (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1)
    raise ValueError(f"no shape is called {shape}")


def textured(texture: str, x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a texture of two colors at coordinates x, y [H, W]: float [H, W, 3]."""
    u, v = rotate(x, y, random.uniform(0, 2 * np.pi))
    cycles = random.uniform(6, 9)
    phase = random.uniform(0, 1, size=2)
    along = np.sin(2 * np.pi * (cycles * u + phase[0])) > 0
    across = np.sin(2 * np.pi * (cycles * v + phase[1])) > 0
    first = along if texture == "striped" else along ^ across
    dark, light = random.uniform(0, 110, size=3), random.uniform(145, 255, size=3)
    return np.where(first[..., None], dark, light)


def background(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a gradient with bars and blots of any color at coordinates x, y [H, W]: float [H, W, 3]."""
    slope, _ = rotate(x - 0.5, y - 0.5, random.uniform(0, 2 * np.pi))
    image = random.uniform(40, 215, size=3) + slope[..., None] * random.uniform(-120, 120, size=3)
    for _ in range(random.integers(2, 6)):
        center = random.uniform(0, 1, size=2)
        u, v = rotate(x - center[0], y - center[1], random.uniform(0, 2 * np.pi))
        is_bar = random.random() < 0.5
        clutter = (abs(u) < 0.02) & (abs(v) < 0.3) if is_bar else np.hypot(u, v) < random.uniform(0.02, 0.07)
        image[clutter] = random.uniform(0, 255, size=3)
    return image


def rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
