"""What of a network learns, and how fast: factors of the learning rate, layer decay, frozen parts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import models
from engine.config.data import DataConfig
from engine.config.model import ModelConfig
from engine.config.recipe import RecipeConfig
from engine.config.runtime import RuntimeConfig
from engine.config.schemas import TrainConfig
from engine.data.datasets import open_dataset
from engine.data.loader import TrainLoader
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.processes.distributed import ProcessGroup
from engine.tasks.classification import Classification
from engine.training import optim
from engine.training.param_groups import NetworkParts, freeze
from engine.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("fast_initialization")

CPU = torch.device("cpu")
RECIPE = RecipeConfig(epochs=2, batch_size=8, lr=0.1, weight_decay=1e-2)


def parts_of(net: nn.Module, name: str, recipe: RecipeConfig = RECIPE) -> NetworkParts:
    stages = models.stages(name) if recipe.layer_decay < 1 else {}
    return NetworkParts(**models.parts(net, name), last_norms=models.last_norms(net, name), stages=stages)


def factors(net: nn.Module, name: str, recipe: RecipeConfig) -> dict[str, float]:
    names = {id(parameter): key for key, parameter in net.named_parameters()}
    optimizer = optim.build_optimizer(net, recipe, False, parts_of(net, name, recipe))
    optim.set_learning_rate(optimizer, 0.5)
    return {names[id(p)]: group["lr"] / 0.5 for group in optimizer.param_groups for p in group["params"]}


def test_attention_lr_factor_leaves_a_baseline_unchanged() -> None:
    fast = replace(RECIPE, attention_lr_factor=10.0)
    found = factors(models.build("resnet18_cbam", num_classes=3), "resnet18", fast)
    assert all((factor == 10) == (".attention." in name) for name, factor in found.items())
    plain = models.build("resnet18", num_classes=3)
    groups = [optim.build_optimizer(plain, r, False, parts_of(plain, "resnet18")).state_dict() for r in (RECIPE, fast)]
    assert groups[0] == groups[1]


@pytest.mark.parametrize("name", ["resnet18", "resnet18_cbam"])
def test_last_norms_lr_factor(name: str) -> None:
    found = factors(models.build(name), "resnet18", replace(RECIPE, last_norms_lr_factor=3.0))
    fast = {parameter.rpartition(".")[0] for parameter, factor in found.items() if factor == 3}
    assert fast == {f"layer{stage}.{block}.bn2" for stage in range(1, 5) for block in range(2)}


def test_no_norm_where_attention_would_be_is_an_error() -> None:
    net = models.build("vgg11", num_classes=3)
    with pytest.raises(UserError, match="there is no norm where attention would be"):
        freeze(net, parts_of(net, "vgg11"), replace(RECIPE, last_norms_lr_factor=3.0))


def test_layer_decay_by_stage() -> None:
    recipe = replace(RECIPE, layer_decay=0.5, attention_lr_factor=10.0)
    found = factors(models.build("resnet18_cbam"), "resnet18", recipe)
    expected = {"fc": 1.0, "layer4": 0.5, "layer3": 0.25, "layer2": 0.125, "layer1": 0.0625, "conv1": 0.03125}
    for name, factor in found.items():
        if ".attention." in name:
            assert factor == 10
        elif name.partition(".")[0] in expected:
            assert factor == expected[name.partition(".")[0]], name


def test_decay_leaves_out_attention_if_asked() -> None:
    net = models.build("resnet18_se", num_classes=3)
    recipe = replace(RECIPE, decay_attention=False)
    decayed = optim.build_optimizer(net, recipe, False, parts_of(net, "resnet18")).param_groups[0]["params"]
    attention = {id(p) for name, p in net.named_parameters() if ".attention." in name}
    assert not attention & {id(p) for p in decayed}


def test_adamw_is_torchs() -> None:
    net = nn.Linear(3, 2)
    optimizer = optim.build_optimizer(net, replace(RECIPE, optimizer="adamw"), False)
    assert type(optimizer) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-2, 0.0]


def trainer(root: Path, net: nn.Module, recipe: RecipeConfig, precision: str = "fp32") -> Trainer:
    data = open_dataset(DataConfig("test", "folders", str(root), 3, None, image_size=32, resize=32))
    runtime = RuntimeConfig(device="cpu", precision=precision, workers=0)
    config = TrainConfig(ModelConfig("resnet18"), recipe=recipe, runtime=runtime)
    task = Classification(DataConfig(image_size=32, crop_scale=0.5))
    loader = TrainLoader(task.train_samples(data.train, 51), 8, 51, 0, CPU, ProcessGroup())
    return Trainer(net, task, Preprocessing(32, 32), loader, config, ProcessGroup(), parts_of(net, "resnet18"))


@pytest.mark.parametrize(
    ("train", "learning"),
    [("attention", [".attention."]), ("attention_and_head", [".attention.", "fc."]), ("head", ["fc."])],
)
def test_what_is_frozen_stays_bitwise_statistics_included(train: str, learning: list[str], folders: Path) -> None:
    net = models.build("resnet18_cbam", num_classes=3, start="identity")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    training = trainer(folders, net, replace(RECIPE, train=train, clip_grad_norm=1.0))
    list(training.steps())
    for name, value in training.model.state_dict().items():
        is_learning = any(part in f"{name}." for part in learning) and not name.endswith(".gain")
        is_changed = not torch.equal(value, before[name])
        assert not is_changed or is_learning, name
        if name.endswith(("sa.conv.weight", "fc.weight")):
            assert is_changed == is_learning, name
    assert training.trained_parameters < 0.02 * sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_baseline_of_attention_alone_stays_its_start(precision: str, folders: Path) -> None:
    training = trainer(folders, models.build("resnet18", num_classes=3), replace(RECIPE, train="attention"), precision)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    list(training.steps())
    assert training.trained_parameters == 0
    assert all(torch.equal(value, before[name]) for name, value in training.model.state_dict().items())


def test_gradients_are_clipped(folders: Path) -> None:
    """With a norm far below the gradients', a step of SGD is lr times that norm long."""
    recipe = replace(RECIPE, clip_grad_norm=1e-3, momentum=0.0, weight_decay=0.0, schedule="step")
    training = trainer(folders, models.build("resnet18", num_classes=3), recipe)
    before = [p.detach().double().clone() for p in training.model.parameters()]
    next(iter(training.steps()))
    moved = [
        (p.detach().double() - old).square().sum() for p, old in zip(training.model.parameters(), before, strict=True)
    ]
    assert float(sum(moved)) ** 0.5 == pytest.approx(0.1 * 1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"train": "head"}, r"recipe\.train=head needs the network's head.*set model\.head=NAME"),
        ({"train": "attention_and_head"}, r"recipe\.train=attention_and_head needs the network's head"),
        ({"head_lr_factor": 10.0}, r"recipe\.head_lr_factor=10 needs the network's head"),
    ],
)
def test_a_recipe_for_an_unknown_head_is_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        freeze(nn.Sequential(nn.Conv2d(3, 2, 1)), NetworkParts(), replace(RECIPE, **values))
