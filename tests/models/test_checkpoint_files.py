"""Checkpoints as common programs write them, for the network that they belong to."""

import argparse
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

import models
from tests.networks import CLASSES

NAME = "shufflenet_v2_x0_5"
State = dict[str, Tensor]


def state(seed: int) -> State:
    torch.manual_seed(seed)
    return torchvision.models.get_model(NAME, weights=None, num_classes=CLASSES).state_dict()


RAW, AVERAGE = state(1), state(2)
ARGS = argparse.Namespace(model=NAME, lr=0.1, output=Path("out"))
BODY, AVERAGE_BODY = ({k: v for k, v in each.items() if not k.startswith("fc.")} for each in (RAW, AVERAGE))
MLP = {"head.mlp.0.weight": torch.ones(8, 8)}
COUNT = {"n_averaged": torch.tensor(5)}
HEAD = {key: value for key, value in RAW.items() if key.startswith("fc.")}


def prefixed(prefix: str, values: State = RAW) -> State:
    return {f"{prefix}{key}": value for key, value in values.items()}


# The program: its checkpoint, which weights are taken, and the report.
PROGRAMS: dict[str, tuple[Any, State, str]] = {
    "torchvision's train.py --model-ema": (
        {"model": RAW, "epoch": 3, "args": ARGS, "model_ema": {**prefixed("module.", AVERAGE), **COUNT}},
        *(AVERAGE, "from model_ema, a moving average of the weights, prefix module. removed, 1 tensors without"),
    ),
    "timm's train.py --model-ema": (
        {"epoch": 3, "arch": NAME, "state_dict": RAW, "version": 2, "args": ARGS, "state_dict_ema": AVERAGE},
        *(AVERAGE, "from state_dict_ema, a moving average of the weights"),
    ),
    "the ImageNet example, its best accuracy a NumPy number": (
        {"epoch": 3, "state_dict": prefixed("module."), "best_acc1": np.float64(70.1), "best": np.arange(2)},
        *(RAW, "from state_dict, prefix module. removed"),
    ),
    "PyTorch's tutorial": ({"epoch": 3, "model_state_dict": RAW, "optimizer_state_dict": {}, "loss": 0.1}, RAW, ""),
    "kuangliu's CIFAR-10": ({"net": prefixed("module."), "acc": 95.0}, RAW, "from net, prefix module. removed"),
    "the model's name under model": ({"model": NAME, "state_dict": RAW}, RAW, ""),
    "Lightning": (
        {"epoch": 1, "state_dict": {**prefixed("model."), "criterion.weight": torch.ones(3)}, "hyper_parameters": {}},
        *(RAW, "from state_dict, prefix model. removed, 1 tensors without the prefix ignored"),
    ),
    "Lightning, compiled": ({"state_dict": prefixed("net._orig_mod.")}, RAW, "from state_dict, prefix net. removed"),
    "torch's AveragedModel": (
        {**prefixed("module.", AVERAGE), **COUNT},
        *(AVERAGE, "a moving average of the weights, prefix module. removed"),
    ),
    "DINO": (
        {"student": prefixed("module.backbone.", BODY), "teacher": {**prefixed("backbone.", AVERAGE_BODY), **MLP}},
        *(AVERAGE_BODY, "from teacher, a moving average of the weights, prefix backbone. removed, 1 tensors without"),
    ),
    "thop's counters": ({**RAW, "conv1.0.total_ops": torch.zeros(1)}, RAW, ""),
    "a head of Dropout and Linear": ({**BODY, **{k.replace("fc.", "fc.1."): v for k, v in HEAD.items()}}, RAW, ""),
}


def built(content: Any, folder: Path, **options: Any) -> torch.nn.Module:
    torch.save(content, folder / "weights.pth")
    return models.build(NAME, "cbam", str(folder / "weights.pth"), num_classes=CLASSES, **options)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_weights_are_found(program: str, tmp_path: Path) -> None:
    content, expected, text = PROGRAMS[program]
    net = built(content, tmp_path)
    plain = models.plain_state(net)
    assert all(torch.equal(plain[key], value) for key, value in expected.items() if key in plain)
    report = models.start_report(net)
    assert report is not None
    assert text in str(report)
    assert bool(report.new_head) == ("fc.weight" not in expected)


def test_a_backbone_without_head_gets_one(tmp_path: Path) -> None:
    net = built(prefixed("encoder.", BODY), tmp_path)
    report = models.start_report(net)
    assert report is not None
    assert (report.new_head, report.prefix) == (("fc",), "encoder.")
    assert 0.009 < net.fc.weight.std() < 0.011
    assert not net.fc.bias.any()
    with pytest.raises(models.ModelError, match=rf"have no head \(fc\) for {CLASSES} classes"):
        built(prefixed("encoder.", BODY), tmp_path, new_head=False)


def test_a_key_chooses_the_weights(tmp_path: Path) -> None:
    content = {"state_dict": RAW, "state_dict_ema": AVERAGE}
    assert torch.equal(built(content, tmp_path, weights_key="state_dict").fc.weight, RAW["fc.weight"])
    with pytest.raises(
        models.ModelError, match=r"weights_key=ema is not in .*; it contains state_dict, state_dict_ema"
    ):
        built(content, tmp_path, weights_key="ema")


def test_a_key_chooses_the_training_weights_of_a_run_with_an_average(tmp_path: Path) -> None:
    content = {"model": AVERAGE, "training_model": RAW, "identity": {"model.attention": "none"}}
    assert torch.equal(built(content, tmp_path).fc.weight, AVERAGE["fc.weight"])
    assert torch.equal(built(content, tmp_path, weights_key="model").fc.weight, AVERAGE["fc.weight"])
    assert torch.equal(built(content, tmp_path, weights_key="training_model").fc.weight, RAW["fc.weight"])


def test_two_networks_are_not_guessed(tmp_path: Path) -> None:
    content = {"state_dict": {**prefixed("encoder_q."), **prefixed("encoder_k.", AVERAGE)}}
    with pytest.raises(
        models.ModelError,
        match=r"several networks: state_dict\.encoder_q and state_dict\.encoder_k; choose one with model\.weights_key",
    ):
        built(content, tmp_path)
    assert torch.equal(built(content, tmp_path, weights_key="encoder_k").fc.weight, AVERAGE["fc.weight"])


def test_another_networks_weights_are_listed(tmp_path: Path) -> None:
    torch.save({"state_dict": torchvision.models.squeezenet1_1().state_dict()}, tmp_path / "other.pth")
    with pytest.raises(models.ModelError, match=r"missing: conv1\.0\.weight.*unexpected: .*features\.0\.weight"):
        models.build(NAME, weights=str(tmp_path / "other.pth"))


def test_the_versions_of_wrapped_modules_are_kept(tmp_path: Path) -> None:
    """MNASNet rebuilds its first layers for weights of version 1, which the wrapper around it has."""
    net = torchvision.models.mnasnet0_5(num_classes=CLASSES)
    torch.save(torch.nn.DataParallel(net).state_dict(), tmp_path / "wrapped.pth")
    again = models.build("mnasnet0_5", weights=str(tmp_path / "wrapped.pth"), num_classes=CLASSES)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in net.state_dict().items())


class Harmful:
    """An object that writes a file when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduction = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.reduction


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["beside", "inside Namespace", "as the path"])
@pytest.mark.parametrize("name", ["posix.system", "eval", "shutil.rmtree"])
def test_code_is_never_run(name: str, place: str, legacy: bool, tmp_path: Path) -> None:
    import shutil

    trace = tmp_path / "trace"
    (tmp_path / "folder").mkdir()
    harmful = {
        "posix.system": Harmful(os.system, f"touch {trace}"),
        "eval": Harmful(eval, f"open({str(trace)!r}, 'w')"),
        "shutil.rmtree": Harmful(shutil.rmtree, str(tmp_path / "folder")),
    }[name]
    others = {
        "beside": harmful,
        "inside Namespace": argparse.Namespace(inner=harmful),
        "as the path": Harmful(Path, harmful),
    }
    content = OrderedDict(state_dict=RAW, args=others[place])
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(models.ModelError, match=rf"contains an object of {re.escape(name)}, which is not loaded"):
        models.build(NAME, weights=str(tmp_path / "weights.pth"), num_classes=CLASSES)
    assert not trace.exists()
    assert (tmp_path / "folder").exists()


def test_a_whole_network_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": torchvision.models.squeezenet1_1()}, tmp_path / "network.pth")
    with pytest.raises(
        models.ModelError, match=r"an object of torchvision\.models\.squeezenet\.SqueezeNet, .*state_dict"
    ):
        models.build(NAME, weights=str(tmp_path / "network.pth"))


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(Harmful(os.system, f"touch {trace}")))
    with pytest.raises(models.ModelError):
        models.build(NAME, weights=str(tmp_path / "weights.pkl"))
    assert not trace.exists()


def test_the_weights_of_another_network_are_not_several_networks(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(num_classes=CLASSES).state_dict(), tmp_path / "other.pt")
    with pytest.raises(models.ModelError, match=rf"The weights do not fit {NAME}; missing: .*unexpected: "):
        models.build(NAME, weights=str(tmp_path / "other.pt"), num_classes=CLASSES)
