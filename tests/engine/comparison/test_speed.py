"""Speed and memory in the table: measured where asked for, per network, with the hardware."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.analysis.throughput import BatchCost
from engine.comparison import report, speed
from engine.comparison.entry import TableEntry
from engine.config.schemas import TableConfig
from engine.data.transforms import Preprocessing
from tests.engine.comparison.test_report import cells, compare, entry, trained_with

TRAINED = {"processes": 2, "batch_per_process": 64, "device": "Some GPU"}
EVALUATION = ("images_per_second", "image_milliseconds", "batch_milliseconds", "device_memory")


def recorded(one: TableEntry, **facts: Any) -> TableEntry:
    return replace(one, record=one.record | TRAINED | facts)


def test_speed_is_measured_where_asked_for(folders: Path, tmp_path: Path) -> None:
    report.write(*compare(folders, [entry()]), tmp_path)
    assert "Images/s" not in (tmp_path / "details.md").read_text()
    report.write(*compare(folders, [entry()], TableConfig(speed=True), batch=4), tmp_path)
    details = (tmp_path / "details.md").read_text()
    assert "Images/s is the speed of the network alone, in batches of 4 in fp32 on " in details
    assert "Latency of one image (ms) | Latency of a batch (ms)" in details
    assert "in training" not in details  # an earlier version's records, without the seconds of a step
    (row,) = cells(tmp_path)
    assert row["batch_milliseconds"] == pytest.approx(4000 / row["images_per_second"])
    assert row["image_milliseconds"] > 0
    assert row["device_memory"] is None  # on a CPU


def test_speed_is_of_each_size_of_images(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "batch_cost", lambda _, batch, size, __: BatchCost(batch * size / 1000, batch))
    larger = replace(trained_with(entry("cbam"), recipe__lr=0.5), preprocessing=Preprocessing(48, 48))
    given = [entry(), entry("cbam"), entry("cbam", 52), larger]
    table, _ = compare(folders, given, TableConfig(allow_mixed=True, speed=True), batch=4)
    measured = [[row[key] for key in EVALUATION] for row in table["rows"]]
    assert measured == [[1000 / 32, 32, 128, 4], [1000 / 32, 32, 128, 4], [1000 / 48, 48, 192, 4]]


def test_speed_of_training_is_that_of_the_records(folders: Path, tmp_path: Path) -> None:
    runs = [
        recorded(entry(), step_seconds=0.5, peak_device_memory=3 * 2**30, peak_process_memory=2**30),
        recorded(entry("cbam"), step_seconds=1.0, peak_device_memory=None, peak_process_memory=2**30),
        recorded(entry("cbam", 52), step_seconds=2.0, peak_device_memory=None, peak_process_memory=2**31, processes=1),
    ]
    report.write(*compare(folders, runs, TableConfig(speed=True)), tmp_path)
    details = (tmp_path / "details.md").read_text()
    assert "with the loading of the images, on 2 x Some GPU, Some GPU. Memory in training is" in details
    assert [(row["train_images_per_second"], row["train_memory"]) for row in cells(tmp_path)] == [
        (256, 3 * 2**30),
        ((128 + 32) / 2, 2**31),
    ]
