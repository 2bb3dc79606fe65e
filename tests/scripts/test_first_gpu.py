"""`scripts/first_gpu.py` on the CPU: what is measured is small, but every line of it runs."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_networks, gpu_tests, kernels
from scripts import first_gpu
from tests.commands import assert_one_line
from tests.conftest import Command, write_image
from tests.processes import REPOSITORY

pytest.importorskip("triton", reason="the kernels need Triton")


@pytest.fixture
def images(tmp_path: Path) -> str:
    write_image(tmp_path / "images" / "of" / "one.JPEG", 90, seed=1)
    return str(tmp_path / "images")


def test_every_measurement_runs_on_the_cpu(images: str, command: Command, tmp_path: Path) -> None:
    sections = ("results", "times", "convolution", "networks")
    given = ["--images", images, "--device", "cpu", "--name", "here", "--into", str(tmp_path)]
    done = command("scripts/first_gpu.py", *given, "--sections", *sections)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) <= 40
    report = json.loads((tmp_path / "here.json").read_text())["sections"]
    assert tuple(report) == sections
    for row in report["results"]["rows"]:
        assert row["float32: same bits twice"] == row["bfloat16: same bits twice"] == "yes"
        assert "FAILED" not in "".join(map(str, row.values()))
    assert {row["layout"] for row in report["times"]["rows"]} == {"NHWC", "NCHW"}
    assert [row["variant"] for row in report["networks"]["rows"]][:3] == ["plain", "CBAM, eager", "SE"]
    assert (tmp_path / "here.md").read_text().startswith("# Benchmark: here")


def test_the_report_of_a_gpu_has_at_most_40_lines() -> None:
    shapes = len(kernels.CUDA_SHAPES)
    rows = {
        "results": shapes,
        "times": shapes * len(kernels.LAYOUTS),
        "convolution": shapes,
        "networks": len(gpu_networks.VARIANTS),
        "tests": 1,
    }
    assert rows.keys() == set(first_gpu.SECTIONS)
    assert sum(rows.values()) + len(rows) + 1 <= 40


def test_a_section_that_fails_does_not_end_the_others(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(kernels, "results", fail)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # as before, after the test
    monkeypatch.setattr(sys, "argv", ["first_gpu.py", "--images", images, "--device", "cpu", "--into", str(tmp_path)])
    sys.argv += ["--name", "here", "--sections", "results", "convolution"]
    with pytest.raises(SystemExit, match="error: results failed"):
        first_gpu.main(first_gpu.parse())
    assert "out of memory" in capsys.readouterr().err
    assert tuple(json.loads((tmp_path / "here.json").read_text())["sections"]) == ("convolution",)


def test_tests_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_one() -> None:\n    pass\n")
    monkeypatch.setattr(gpu_tests, "TESTS", (str(tmp_path / "test_one.py"),))
    section = gpu_tests.measure(deadline=time.monotonic() + 300)
    (row,) = section["rows"]
    assert (row["passed"], row["failed"], row["run"]) == (1, 0, "all of them")


def test_tests_end_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tests, "TESTS", ("tests/cbam/test_maximum.py",))
    (row,) = gpu_tests.measure(deadline=0)["rows"]
    assert row["run"] == "stopped for lack of time"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", "nowhere", "--device", "cpu"), "error: There is no folder nowhere; set --images"),
        (("--images", str(REPOSITORY / "cbam"), "--device", "cpu"), "error: There are no images below"),
        (("--images", "."), "error: torch sees no GPU"),
    ],
    ids=["folder", "images", "device"],
)
def test_errors_are_one_line(arguments: tuple[str, ...], message: str, command: Command) -> None:
    assert_one_line(command("scripts/first_gpu.py", *arguments), message)
