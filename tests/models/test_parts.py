"""The parts of a network by name."""

import pytest
import torch

import models


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "regnet_y_400mf", "shufflenet_v2_x0_5", "convnext_tiny"])
def test_stages_are_numbered_from_the_image_to_the_head(name: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    stages = models.stages(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(stages) == [parameter for parameter, _ in models.build(name).named_parameters()]
    assert sorted(set(stages.values())) == list(range(max(stages.values()) + 1))
    assert next(iter(stages.values())) == 0
    assert list(stages.values())[-1] == max(stages.values()) >= 3


def test_stages_of_resnet_are_the_papers() -> None:
    expected = {"conv1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4}
    for parameter, stage in models.stages("resnet18").items():
        assert stage == expected.get(parameter.partition(".")[0], stage), parameter


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", "efficientnet_b0"])
def test_last_norms_do_not_depend_on_attention(name: str) -> None:
    plain, attended = (models.build(name, attention=kind, num_classes=2) for kind in ("none", "cbam"))
    assert models.last_norms(plain, name) == models.last_norms(attended, name) != []
