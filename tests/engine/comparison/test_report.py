"""The comparison table: pairing, seeds, refused runs, and output formats."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.comparison import baselines, markdown, paper_results, report
from engine.comparison import compare as comparison
from engine.comparison.entry import START_WEIGHTS, TableEntry
from engine.config.data import DataConfig
from engine.config.runtime import RuntimeConfig
from engine.config.schemas import EvaluateConfig, TableConfig
from engine.data.datasets import open_dataset
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.processes.distributed import ProcessGroup
from engine.tasks.classification import Classification, ClassPredictions
from tests.conftest import Command

Compared = tuple[dict[str, Any], comparison.Evidence]

SETTING = {"model.weights": "V1", "recipe.lr": 0.1, "recipe.epochs": 2}
FORMS = (
    *("table.md", "details.md", "table.csv", "contrasts.csv", "classes.csv", "confusion.csv", "table.tex"),
    *("table.png", "table.svg", "confusion.png"),
)


class Guess(nn.Module):
    """A classifier of three classes by an image's mean, which errs on a seed-dependent share of the images."""

    def __init__(self, seed: int, errors: float) -> None:
        super().__init__()
        self.seed, self.errors = seed, errors
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(1, 2, 3))
        scores = -(mean[:, None] - mean.new_tensor([-1.0, 0.2, 1.4])).abs()
        random = torch.Generator().manual_seed(self.seed)
        return torch.where(torch.rand(len(x), 1, generator=random) < self.errors, -scores, scores)


def entry(attention: str = "none", seed: int | None = 51, errors: float = 0.6, **facts: Any) -> TableEntry:
    facts = {
        "model": "resnet18",
        "attention": attention,
        "seed": seed,
        "epochs": 2,
        "parameters": 11_689_512,
        "gflops": 1.814 if attention == "none" else 1.815,
        "top1_error_start": 30.0,
        "recorded": None,
        "published": None,
        "source": f"runs/resnet18_{attention}/seed{seed}",
    } | facts
    model = Guess(seed or 0, errors)
    return TableEntry(model, Preprocessing(32, 32), facts, {"seed": seed}, "seed: 51\n", dict(SETTING))


def trained_with(entry: TableEntry, **setting: Any) -> TableEntry:
    return replace(entry, shared_config=SETTING | {key.replace("__", "."): value for key, value in setting.items()})


def compare(folders: Path, entries: list[TableEntry], table: TableConfig | None = None, batch: int = 256) -> Compared:
    data = DataConfig("small", "folders", str(folders), 3, None, image_size=32, resize=32)
    runtime = RuntimeConfig(device="cpu", workers=0, eval_batch_size=batch)
    config = EvaluateConfig(data=data, runtime=runtime, table=table or TableConfig())
    return comparison.compare(entries, Classification(data), open_dataset(data), config, ProcessGroup())


@pytest.fixture(scope="module")
def written_once(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a table of two seeds with and without CBAM, and one seed with SE."""
    entries = [entry(seed=seed) for seed in (51, 52)]
    entries += [entry("cbam", seed, errors=0.0) for seed in (51, 52)] + [entry("se", errors=0.55)]
    folder = tmp_path_factory.mktemp("written") / "table"
    report.write(*compare(folders, entries), folder)
    return folder


@pytest.fixture
def written(written_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written_once, tmp_path / "table"))


def cells(directory: Path) -> list[dict[str, Any]]:
    table: dict[str, Any] = json.loads((directory / "table.json").read_text())
    return list(table["rows"])


def test_seeds_are_aggregated_into_one_row(written: Path) -> None:
    table = json.loads((written / "table.json").read_text())
    none, cbam, se = table["rows"]
    runs = table["runs"]
    assert [run["seed"] for run in runs] == [51, 52, 51, 52, 51]
    assert (none["seeds"], cbam["seeds"], se["seeds"]) == ([51, 52], [51, 52], [51])
    errors = [row["top1_error"] for row in runs[:2]]
    assert (none["top1_error"], none["top1_error_sd"]) == pytest.approx((np.mean(errors), np.std(errors, ddof=1)))
    assert cbam["difference"] == pytest.approx(np.mean([row["difference"] for row in runs[2:4]]))
    assert cbam["difference"] == pytest.approx(cbam["top1_error"] - none["top1_error"])
    assert cbam["difference_low"] < cbam["difference"] < cbam["difference_high"]
    assert cbam["per_seed"] == pytest.approx([row["difference"] for row in runs[2:4]])
    assert (cbam["baseline"], se["baseline"], none["baseline"]) == (0, 0, None)
    assert (cbam["top1_error_sd"], se["top1_error_sd"]) == (0.0, None)
    markdown = (written / "table.md").read_text()
    interval = f"[{cbam['difference_low']:+.2f}, {cbam['difference_high']:+.2f}]"
    assert f"{cbam['difference']:+.2f} {interval}" in markdown
    assert max(line.count(" | ") for line in markdown.splitlines()) == 7  # eight columns
    assert f"| {none['top1_error']:.2f} ± {none['top1_error_sd']:.2f} |" in markdown
    details = (written / "details.md").read_text()
    assert "[config](runs/resnet18_seed51.yaml), [51](runs/resnet18_seed51.json)" in details


def test_summary_for_the_terminal_has_the_main_columns(folders: Path) -> None:
    table, _ = compare(folders, [entry(top1_error_start=30.30, published=30.24), entry("cbam")])
    header, _, cbam, verdict, note = markdown.summary(table).splitlines()
    assert header.split()[:4] == ["Backbone", "Attention", "Params", "(M)"]
    assert cbam.split()[:2] == ["resnet18", "cbam"]
    assert verdict == "One seed, no verdict: resnet18 cbam."
    assert "NOT as published" in note


def test_starts_from_different_weights_are_refused() -> None:
    def started(attention: str, digest: str, seed: int = 51) -> TableEntry:
        run = entry(attention, seed)
        return replace(run, shared_config={**run.shared_config, START_WEIGHTS: digest})

    with pytest.raises(UserError, match=r"digest of the backbone's start weights=b \(a in"):
        baselines.config_mismatches([started("none", "a"), started("cbam", "b")], allow_mixed=False)
    other_seed = [started("none", "a"), started("cbam", "a"), started("none", "b", 52), started("cbam", "b", 52)]
    assert baselines.config_mismatches(other_seed, allow_mixed=False) == [""] * 4


def test_a_run_of_other_classes_is_told_to_set_them(folders: Path) -> None:
    run = replace(entry(), record={"seed": 51, "classes": 2})
    with pytest.raises(UserError, match=r"was trained on 2 classes, but small has 3; set data\.classes"):
        compare(folders, [run])


def test_a_row_without_partner_has_no_difference(folders: Path, tmp_path: Path) -> None:
    alone = [entry("cbam", 51), entry(seed=52), entry("cbam", 52)]
    printed = report.write(*compare(folders, alone), tmp_path)
    assert "cbam: the difference is over seed 52, the mean over seeds 51, 52, and the baseline's mean over" in printed
    both = [entry(seed=51), entry(seed=52), entry("cbam"), entry("se")]
    printed = report.write(*compare(folders, both), tmp_path)
    assert "- resnet18 cbam, resnet18 se: the difference is over seed 51, the mean" in printed
    printed = report.write(*compare(folders, alone[:2]), tmp_path)
    assert "resnet18 cbam: no baseline with seed 51." in printed
    assert [cell["baseline"] for cell in cells(tmp_path)] == [None, None]


def test_runs_of_two_recipes_are_refused_and_named(folders: Path) -> None:
    mixed = [entry(), trained_with(entry("cbam"), recipe__lr=0.5)]
    complaint = r"runs/resnet18_cbam/seed51 was .*: recipe.lr=0.5 \(0.1 in runs/resnet18_none/seed51\).*allow_mixed"
    with pytest.raises(UserError, match=complaint):
        compare(folders, mixed)
    elsewhere = [entry(), trained_with(entry(model="vgg16"), recipe__lr=0.5)]
    with pytest.raises(UserError, match=r"recipe.lr=0.5"):
        compare(folders, elsewhere)
    other_weights = [entry(), trained_with(entry("cbam"), model__weights="V2")]
    with pytest.raises(UserError, match=r"model.weights=V2 \(V1 in"):
        compare(folders, other_weights)
    other_backbone = [entry(), trained_with(entry(model="vgg16"), model__weights="V2")]
    assert baselines.config_mismatches(other_backbone, allow_mixed=False) == ["", ""]


def test_the_plain_network_is_the_first_row_and_sets_the_recipe(folders: Path, tmp_path: Path) -> None:
    others = [trained_with(entry("cbam"), recipe__lr=0.5), entry(model="vgg16"), entry()]
    printed = report.write(*compare(folders, others, TableConfig(allow_mixed=True)), tmp_path)
    assert [(row["model"], row["attention"]) for row in cells(tmp_path)] == [
        ("resnet18", "none"),
        ("resnet18", "cbam"),
        ("vgg16", "none"),
    ]
    assert "resnet18 cbam: † trained with recipe.lr=0.5 (0.1 in runs/resnet18_none/seed51)." in printed


def test_mixed_recipes_are_marked_in_every_form(folders: Path, tmp_path: Path) -> None:
    mixed = [entry(), entry("cbam"), trained_with(entry("cbam", errors=0.1), recipe__lr=0.5)]
    printed = report.write(*compare(folders, mixed, TableConfig(allow_mixed=True)), tmp_path)
    assert printed.count("cbam † |") == 1
    assert "resnet18 cbam: † trained with recipe.lr=0.5 (0.1 in" in printed
    with (tmp_path / "table.csv").open() as file:
        assert [row["recipe_deviation"][:13] for row in csv.DictReader(file)] == ["", "", "recipe.lr=0.5"]
    assert r"cbam $^\dagger$ &" in (tmp_path / "table.tex").read_text()
    assert (tmp_path / "runs" / "resnet18_cbam_seed51_mixed1.npz").is_file()


def test_absent_key_is_compared_among_the_others() -> None:
    fused, plain = ({"runtime__fused_cbam": value} for value in (True, False))
    assert baselines.config_mismatches([entry(), trained_with(entry("cbam"), **fused)], allow_mixed=False) == ["", ""]
    with pytest.raises(UserError, match="fused_cbam=False"):
        baselines.config_mismatches([trained_with(entry("cbam"), **each) for each in (fused, plain)], allow_mixed=False)


def test_attention_lr_factors_are_rows_with_one_baseline(folders: Path, tmp_path: Path) -> None:
    moved = [
        entry("cbam", attention_lr_factor=factor, gate_movement_mean=factor / 100, gate_movement_largest=0.5)
        for factor in (1.0, 10.0)
    ]
    baseline = entry(attention_lr_factor=1.0, weights="moving average")
    printed = report.write(*compare(folders, [baseline, *moved]), tmp_path)
    details = (tmp_path / "details.md").read_text()
    assert "The weights of resnet18 none are the exponential moving average; those of" in details
    assert [row["baseline"] for row in cells(tmp_path)] == [None, 0, 0]
    assert "| cbam (lr x10) |" in printed
    assert "| 0.1 (0.5) |" in details
    assert "is |gate x gain - 1|" in details
    assert (tmp_path / "runs" / "resnet18_cbam_seed51_lr_factor10.npz").is_file()
    report.render(tmp_path)


def test_duplicate_model_and_seed_is_refused(folders: Path) -> None:
    with pytest.raises(UserError, match="again are the same network with the same seed"):
        compare(folders, [entry(), entry(source="again")])


def test_rendering_again_changes_no_byte(written: Path, command: Command) -> None:
    before = {file: (written / file).read_bytes() for file in (*FORMS, "table.json")}
    for file in FORMS:
        (written / file).unlink()
    done = command("scripts/render_table.py", str(written))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert before["table.md"].decode() in done.stdout
    assert {file: (written / file).read_bytes() for file in before} == before


def test_corrupted_prediction_is_named(written: Path, command: Command) -> None:
    path = written / "runs" / "resnet18_cbam_seed52.npz"
    arrays = dict(np.load(path))
    arrays["ranked"][7] = arrays["ranked"][7][::-1]
    np.savez_compressed(path, **arrays)
    done = command("scripts/render_table.py", str(written))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: The predictions {path} do not match their recorded digest. ")


@pytest.mark.parametrize(
    ("part", "position", "key", "value"),
    [
        ("runs", 0, "top1_error", 12.0),
        ("runs", 1, "top5_error", 12.0),
        ("runs", 0, "difference", -3.0),
        ("runs", 3, "difference", -3.0),
        ("runs", 3, "won", 400),
        ("runs", 3, "mcnemar_p", 0.5),
        ("rows", 0, "top1_error", 12.0),
        ("rows", 0, "top1_error_sd", 0.01),
        ("rows", 1, "difference", -3.0),
        ("rows", 1, "difference_low", -1e-6),
        ("rows", 1, "p_value", 0.001),
        ("rows", 1, "verdict", "lower"),
        ("rows", 1, "seeds", [51]),
        ("rows", 1, "detectable", 0.1),
        ("direct", 0, "difference", -3.0),
    ],
)
def test_changed_number_is_named(part: str, position: int, key: str, value: object, written: Path) -> None:
    file = written / "table.json"
    table = json.loads(file.read_text())
    table[part][position][key] = value
    file.write_text(json.dumps(table))
    with pytest.raises(UserError, match=rf"{key} of .* in table.json is .*, but its predictions or runs give"):
        report.render(written)


def test_a_printed_row_that_was_left_out_is_detected(written: Path) -> None:
    file = written / "table.json"
    table = json.loads(file.read_text())
    del table["rows"][-1]
    file.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"table.json has 2 rows, not 3"):
        report.render(written)


def test_table_is_checked_without_some_predictions(written: Path, capsys: pytest.CaptureFixture) -> None:
    (gone,) = (row["raw"] for row in json.loads((written / "table.json").read_text())["runs"] if "_se_" in row["raw"])
    (written / f"{gone}.npz").unlink()
    report.render(written)
    assert capsys.readouterr().err.splitlines() == [
        f"Unchecked: {written}/{gone}.npz is missing.",
        "Unchecked: the difference of resnet18 with attention se.",
        "Unchecked: the difference of resnet18 with attention cbam against se.",
    ]
    file = written / "table.json"
    table = json.loads(file.read_text())
    table["rows"][1]["difference"] = -9.0
    file.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"difference of resnet18 with attention cbam in table.json is -9\.0"):
        report.render(written)


def table_of(runs: str) -> str:
    rest = '"schema": 3, "task": "classification", "data": {"groups": null}, "settings": {}, "direct": []'
    return f'{{{rest}, "runs": {runs}, "rows": []}}'


@pytest.mark.parametrize(
    "text",
    ["5", "{}", '{"rows": [], "cells": []}', table_of('[{"baseline": 7}]'), table_of("[1]"), table_of("[]")],
)
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(UserError, match=r"table.json .*; run evaluate.py"):
        report.render(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"no zip file", None])
def test_unreadable_predictions_are_named(damage: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    said = ClassPredictions(np.zeros(3, np.int64), np.zeros((3, 1), np.int64), np.zeros(3, np.float32))
    said.save(path)
    assert ClassPredictions.load(path, said.sha256()).sha256() == said.sha256()
    path.write_bytes(path.read_bytes()[:300] if damage is None else damage)
    with pytest.raises(UserError, match=r"predictions.npz cannot be read"):
        ClassPredictions.load(path, said.sha256())


@pytest.mark.parametrize(
    ("place", "value"), [(["evaluated"], None), (["data"], []), (["rows", 0], None), (["rows", 1, "p_value"], "x")]
)
def test_a_table_of_another_structure_is_refused(place: list[Any], value: Any, written: Path) -> None:
    table = json.loads((written / "table.json").read_text())
    part = table
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (written / "table.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"table\.json"):
        report.render(written)


def test_table_without_rows_is_named(written: Path) -> None:
    table = json.loads((written / "table.json").read_text())
    (written / "table.json").write_text(json.dumps(table | {"runs": [], "rows": [], "direct": []}))
    with pytest.raises(UserError, match=r"table\.json has no rows; run evaluate\.py"):
        report.render(written)


def test_failed_rendering_replaces_nothing(folders: Path, written: Path) -> None:
    before = {file: (written / file).read_bytes() for file in (*FORMS, "table.json")}
    table, evidence = compare(folders, [entry()])
    table["rows"][0]["parameters"] = "many"
    with pytest.raises(TypeError):
        report.write(table, evidence, written)
    assert {file: (written / file).read_bytes() for file in before} == before


def test_names_with_dollar_signs_are_drawn_as_they_are(folders: Path, tmp_path: Path) -> None:
    name = r"$\foo$"  # no formula that matplotlib knows
    report.write(*compare(folders, [entry(model=name), entry("cbam", model=name)]), tmp_path)
    assert name in (tmp_path / "table.svg").read_text()


def test_without_matplotlib_only_the_figure_is_missing(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for file in FORMS:
        (written / file).unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report.render(written)
    assert [file for file in FORMS if (written / file).is_file()] == list(FORMS[:-3])
    assert "pip install matplotlib" in capsys.readouterr().err


def test_the_papers_errors_stand_beside_imagenet_alone(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [entry(), entry("cbam-mlp_bias=True-spatial_norm=True")]
    table, _ = compare(folders, pair)
    assert [cell["paper_top1_error"] for cell in table["rows"]] == [None, None]
    assert paper_results.errors("mobilenet_v1_a07", "se") == (32.50, 12.49)
    assert paper_results.errors("resnet50", "cbam-order=parallel") is None
    assert paper_results.errors("vgg16", "cbam") is None
    assert not DataConfig("tiny_imagenet", total_classes=200).is_imagenet_1k
    assert not DataConfig("imagenet", total_classes=1000, classes=20).is_imagenet_1k
    monkeypatch.setattr(DataConfig, "is_imagenet_1k", True)
    table, _ = compare(folders, pair)
    assert [cell["paper_top1_error"] for cell in table["rows"]] == [29.60, 29.27]


@pytest.mark.parametrize(("start", "verdict"), [(30.28, "+0.04 points, within"), (30.3, "+0.06 points, which is NOT")])
def test_start_accuracy_is_checked_against_published(start: float, verdict: str, folders: Path, tmp_path: Path) -> None:
    table, evidence = compare(folders, [entry(top1_error_start=start, published=30.24)])
    expected = f"start weights is 30.24%; the measured one differs by {verdict}"
    assert expected in report.write(table, evidence, tmp_path)
    table["evaluated"]["precision"] = "bf16"
    assert "the pipeline differ" not in report.write(table, evidence, tmp_path)
