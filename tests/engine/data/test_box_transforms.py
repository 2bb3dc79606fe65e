"""Augmentation with boxes: a function of (seed, epoch, index), and boxes that stay with their objects."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from engine.data import box_transforms
from engine.data.box_transforms import augment

POLICIES: dict[str, Callable[[], v2.Transform]] = {
    "flip": box_transforms.flip,
    "multi_scale": lambda: box_transforms.multi_scale((48, 64, 96), longest=120),
    "ssd": box_transforms.ssd,
    "ssdlite": box_transforms.ssdlite,
}
Sample = tuple[Tensor, Tensor, Tensor]


def sample() -> Sample:
    """A black image with a white and a red object."""
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 8, 34, 30], [44, 30, 72, 52]])
    image[:, 8:30, 10:34] = 255
    image[0, 30:52, 44:72] = 255
    return image, boxes, torch.tensor([1, 2])


def equal(one: Sample, other: Sample) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sample_depends_on_seed_epoch_and_index_only(policy: str) -> None:
    transform = POLICIES[policy]()
    places = [(51, epoch, index) for epoch in range(2) for index in range(6)]
    first = [augment(transform, *sample(), *place) for place in places]
    torch.manual_seed(9)
    again = [augment(POLICIES[policy](), *sample(), *place) for place in reversed(places)][::-1]
    assert all(map(equal, first, again))
    assert any(not equal(one, other) for one, other in zip(first[:6], first[6:], strict=True))  # of another epoch


@pytest.mark.parametrize("policy", POLICIES)
def test_the_arguments_are_left_as_they_are(policy: str) -> None:
    arguments = sample()
    for index in range(10):
        augment(POLICIES[policy](), *arguments, 51, 0, index)
    assert equal(arguments, sample())


@pytest.mark.parametrize("policy", ["flip", "multi_scale", "ssdlite"])
def test_boxes_stay_with_their_objects(policy: str) -> None:
    kept = 0
    for index in range(40):
        image, boxes, labels = augment(POLICIES[policy](), *sample(), 51, 0, index)
        height, width = image.shape[1:]
        assert image.dtype == torch.uint8
        assert type(boxes) is Tensor
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            inside = image[:, int(y1 + 0.5) : max(int(y2 + 0.5), 1), int(x1 + 0.5) : max(int(x2 + 0.5), 1)].float()
            if inside.numel() < 3 * 16:
                continue
            assert inside[0].mean() > 200
            assert (inside[1].mean() > 200) == (label == 1)
            kept += 1
    assert kept > 40


def test_zoom_out_enlarges_with_the_mean_color() -> None:
    zoom = v2.RandomZoomOut(fill=list(box_transforms.FILL), p=1)
    image, boxes, _ = augment(zoom, *sample(), 51, 0, 0)
    assert image.shape[1] > 60
    assert torch.equal(boxes[:, 2:] - boxes[:, :2], sample()[1][:, 2:] - sample()[1][:, :2])
    assert sorted({tuple(pixel.tolist()) for pixel in image.flatten(1).T})[1] == box_transforms.FILL


def test_multi_scale_respects_sizes_and_limit() -> None:
    shapes = {tuple(augment(POLICIES["multi_scale"](), *sample(), 51, 0, i)[0].shape[1:]) for i in range(40)}
    assert shapes == {(48, 64), (64, 85), (90, 120)}


@pytest.mark.parametrize("policy", POLICIES)
def test_an_image_without_boxes_is_augmented_too(policy: str) -> None:
    for index in range(10):
        none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        _, boxes, labels = augment(POLICIES[policy](), sample()[0], *none, 51, 0, index)
        assert boxes.shape == (0, 4)
        assert labels.shape == (0,)


@pytest.mark.parametrize("policy", POLICIES)
def test_training_images_have_the_size_of_their_detector(policy: str) -> None:
    sides = set()
    for index in range(20):
        image, boxes, _ = augment(box_transforms.training(policy, 50, 64, square=True), *sample(), 51, 0, index)
        if policy != "multi_scale":
            assert image.shape[1:] == (50, 50)
            assert boxes.max() <= 50.001  # rounding
        image, boxes, _ = augment(box_transforms.training(policy, 50, 64, square=False), *sample(), 51, 0, index)
        assert max(image.shape[1:]) <= 64
        assert boxes.max() <= 64.001
        sides.add(min(image.shape[1:]))
    assert (len(sides) > 1) == (policy != "flip")
