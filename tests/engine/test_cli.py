"""Errors of a command as the user sees them."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch

from engine import cli
from engine.config import presets
from engine.config.schemas import TrainConfig


def run_out_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


def run_out_on_the_cpu() -> None:
    torch.empty(2**55)


def run_out_in_onednn() -> None:
    raise RuntimeError("could not create a primitive")


@pytest.mark.parametrize("run_out", [run_out_on_a_gpu, run_out_on_the_cpu, run_out_in_onednn])
def test_too_little_memory_elsewhere_is_one_line(
    run_out: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, cli.one_line_errors():
        run_out()
    assert ended.value.code == 2
    assert re.fullmatch(
        r"error: Out of memory \(.*\)\. Lower runtime\.eval_batch_size .*\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["data=coco"], ["detector=faster_rcnn", "recipe=detection_1x"]),
        (["data=voc2007", "model=vgg16"], ["detector=ssd300", "recipe=ssd_voc"]),
        (["data=coco", "detector=ssdlite320"], ["recipe=ssdlite"]),
        (["recipe=ssd_voc", "data=coco"], ["detector=faster_rcnn"]),
        (["data=shapes", "recipe.epochs=1"], []),
        (["data=nothing", "--multirun"], []),
        ([], []),
    ],
)
def test_a_data_set_brings_its_detector_and_recipe(given: list[str], added: list[str]) -> None:
    assert presets.with_usual_presets(given) == given + added


def test_the_home_folder_is_expanded_where_the_shell_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = {
        "data.root=~/images": f"data.root={tmp_path}/images",
        "runs=[~/a,~/b]": f"runs=[{tmp_path}/a,{tmp_path}/b]",
        "~model.weights": "~model.weights",  # Hydra's deletion of a key
        "attention.after=a~/b": "attention.after=a~/b",
        "seed=51": "seed=51",
    }
    assert {given: cli.expand_home(given) for given in expected} == expected


def test_a_command_composes_its_configuration_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing takes longer than a step of training."""
    compose = hydra.compose
    composed: list[list[str]] = []

    def count(primary: str, overrides: list[str], **options: Any) -> Any:
        composed.append(overrides)
        return compose(primary, overrides, **options)

    monkeypatch.setattr(hydra, "compose", count)
    monkeypatch.setattr(cli, "ignore_signals", lambda: None)
    monkeypatch.setattr(cli, "open_streams", lambda: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # restored afterwards
    monkeypatch.setattr(sys, "argv", ["train.py", "data=shapes", "model=resnet18_cbam", "seed=77"])
    run: list[TrainConfig] = []
    cli.check_arguments("train")
    cli.run("train", run.append)
    assert composed == [["data=shapes", "model=resnet18_cbam", "seed=77"]]
    assert [(config.model.network, config.model.attention, config.seed) for config in run] == [("resnet18", "cbam", 77)]


@pytest.mark.parametrize(
    ("argument", "kind"),
    [("attention.after=[0-2]", "list"), ("recipe.class_weights=[1,2,3]", "list"), ("attention.after={a:1}", "dict")],
)
def test_a_list_where_a_string_belongs_is_told_of_the_inner_quotes(
    argument: str, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "open_streams", lambda: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # restored afterwards
    monkeypatch.setattr(sys, "argv", ["train.py", "data=shapes", "model=resnet18_cbam", argument])
    with pytest.raises(SystemExit):
        cli.check_arguments("train")
    key, value = argument.split("=")
    assert capsys.readouterr().err == (
        f"error: {key} must be a string, but Hydra reads {value} as a {kind}; quote it twice if it is a string: "
        f"'{key}=\"{value}\"'.\n"
    )
