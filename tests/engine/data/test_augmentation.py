"""Augmentation: torchvision's, drawn from the crop's random numbers alone; mixing of pairs."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from engine.config.recipe import AUGMENTATIONS
from engine.data import augmentation, transforms
from engine.data.augmentation import Augmentation

KINDS = [kind for kind in AUGMENTATIONS if kind != "none"]


def photograph(height: int = 60, width: int = 48) -> torch.Tensor:
    """Smooth colors, so that a shift by a fraction of a pixel shows as such."""
    small = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    return F.resize(small, [height, width]).mul(255).to(torch.uint8)


@pytest.mark.parametrize("kind", ["trivialaugment", "randaugment"])
def test_operations_are_torchvisions(kind: str) -> None:
    """Drawn alike, equal within a rounding but for the border of warped images, where Pillow does not blend."""
    ours = augmentation._transform(kind)
    theirs = {"trivialaugment": v2.TrivialAugmentWide, "randaugment": v2.RandAugment}[kind]
    geometric = theirs(interpolation=v2.InterpolationMode.BILINEAR)
    image = photograph()
    for seed in range(60):
        torch.manual_seed(seed)
        one = ours(image)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        other = geometric(image)
        assert torch.equal(torch.get_rng_state(), state)
        difference = (one.int() - other.int()).abs()
        assert difference.float().mean() < 1, seed
        assert difference.median() <= 1, seed


@pytest.mark.parametrize("operation", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Sharpness"])
def test_each_operation_that_is_computed_here(operation: str) -> None:
    image = photograph()
    plain = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)
    fast = augmentation.TrivialAugment(interpolation=v2.InterpolationMode.BILINEAR)
    for magnitude in (-0.7, 0.3, 13.0, 47.0) if operation != "Sharpness" else (-0.9, 0.5):
        arguments = (operation, magnitude, v2.InterpolationMode.BILINEAR, plain._fill)
        one, other = (each._apply_image_or_video_transform(image, *arguments) for each in (fast, plain))
        assert (one.int() - other.int()).abs().max() <= 1, magnitude


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("erase", [0.0, 1.0])
def test_a_pure_function_of_the_crops_random_numbers(kind: str, erase: float) -> None:
    image, augment = photograph(), Augmentation(kind, erase)

    def augmented(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.seed() % 1000)  # whatever the generator was
        result = augment(image, np.random.default_rng(seed))
        assert (result.dtype, result.shape) == (torch.uint8, image.shape)
        return result

    assert all(torch.equal(augmented(seed), augmented(seed)) for seed in range(5))
    assert len({augmented(seed).numpy().tobytes() for seed in range(20)}) > 10


def test_erased_pixels_are_what_the_network_sees_as_zero() -> None:
    image = torch.full((3, 40, 40), 255, dtype=torch.uint8)
    erased = Augmentation(erase=1.0)(image, np.random.default_rng(0))
    assert not torch.equal(erased, image)
    seen = transforms.normalize(erased[None], transforms.Preprocessing(40, 40))
    assert seen[(erased != image)[None]].abs().max() < 0.01
    assert 0.02 <= float((erased != image).float().mean()) <= 0.34


def test_without_augmentation_nothing_is_drawn() -> None:
    state, random = torch.get_rng_state(), np.random.default_rng(0)
    image = photograph()
    assert augmentation.NO_AUGMENTATION(image, random) is image
    assert torch.equal(torch.get_rng_state(), state)
    assert random.random() == np.random.default_rng(0).random()
