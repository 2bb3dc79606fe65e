"""The classes of a kept head: by name, not by position."""

import argparse
import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from models import head_classes

NAMES = ["cat", "dog", "eel"]


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return models.build("resnet18", num_classes=3).state_dict()


def head(classes: list[str], file: Path) -> nn.Module:
    torch.manual_seed(1)
    return models.build("resnet18", weights=str(file), num_classes=len(classes), classes=classes).get_submodule("fc")


def save(file: Path, state: dict[str, torch.Tensor], names: list[str] | None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state} | ({} if names is None else {"class_names": names}), file)
    return file


def test_outputs_follow_the_names(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = save(tmp_path / "w.pt", weights, ["eel", "cat", "dog"])
    kept = head(NAMES, file)
    assert torch.equal(kept.weight, weights["fc.weight"][[1, 2, 0]])
    assert torch.equal(kept.bias, weights["fc.bias"][[1, 2, 0]])
    assert torch.equal(head(["eel", "cat", "dog"], file).weight, weights["fc.weight"])


def test_a_head_under_another_name_follows_the_names_too(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """As `nn.Sequential(nn.Dropout(), nn.Linear(512, 3))` in place of `fc`, beside the arguments of a program."""
    nested = {key.replace("fc.", "fc.1."): value for key, value in weights.items()}
    file = tmp_path / "w.pt"
    torch.save({"model": nested, "class_names": ["eel", "cat", "dog"], "args": argparse.Namespace(lr=0.1)}, file)
    assert torch.equal(head(NAMES, file).weight, weights["fc.weight"][[1, 2, 0]])


def test_a_run_names_the_classes_of_its_checkpoint(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = save(tmp_path / "run" / "checkpoint" / "last.pt", weights, None)
    (tmp_path / "run" / "record.json").write_text(json.dumps({"class_names": ["dog", "cat", "eel"]}))
    assert torch.equal(head(NAMES, file).weight, weights["fc.weight"][[1, 0, 2]])


def test_without_a_number_of_classes_it_is_that_of_the_checkpoint(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    net = models.build("resnet18_cbam", weights=str(save(tmp_path / "named.pt", weights, NAMES)))
    assert torch.equal(net.get_submodule("fc").weight, weights["fc.weight"])
    unnamed = models.build("resnet18", weights=str(save(tmp_path / "unnamed.pt", weights, None)))
    assert unnamed.get_submodule("fc").out_features == 1000


def test_as_many_other_classes_get_a_new_head(
    weights: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = head(["ant", "bee", "fly"], save(tmp_path / "w.pt", weights, NAMES))
    assert not torch.equal(new.weight, weights["fc.weight"])
    assert "initialized anew: the classes of" in caplog.text
    assert "(cat, dog, eel) are not those of the data set (ant, bee, fly)" in caplog.text


def test_a_head_of_unknown_classes_is_kept_with_a_warning(
    weights: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = head(NAMES, save(tmp_path / "w.pt", weights, None))
    assert torch.equal(kept.weight, weights["fc.weight"])
    assert "its 3 classes are not known by name; they must be cat, dog, eel, in this order" in caplog.text


def test_without_a_data_set_nothing_is_matched(
    weights: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = save(tmp_path / "w.pt", weights, NAMES)
    assert torch.equal(models.build("resnet18", weights=str(file), num_classes=3).fc.weight, weights["fc.weight"])
    assert not caplog.text


def test_published_weights_have_imagenets_sorted_ids() -> None:
    ids = models.imagenet_classes()
    assert (len(ids), ids[0], ids[207], ids[-1]) == (1000, "n01440764", "n02099601", "n15075141")
    assert list(ids) == sorted(set(ids))
    assert head_classes.trained_classes(models.factory.parse("resnet18")[0], "IMAGENET1K_V1") == list(ids)
    numbers = [str(number) for number in range(1000)]
    assert head_classes._order(ids, numbers) == list(range(1000))
    assert head_classes._order(ids, ids[::-1]) == list(range(999, -1, -1))
    assert head_classes._order(ids, [f"{number:03d}" for number in range(1000)]) == list(range(1000))
    assert head_classes._order(ids, [str(number) for number in range(1, 1001)]) is None
    numbers = [str(number) for number in range(12)]
    assert head_classes._order(numbers, [f"{number:02d}" for number in range(12)]) == list(range(12))
    assert head_classes._order(numbers, sorted(numbers)) == [0, 1, 10, 11, *range(2, 10)]
