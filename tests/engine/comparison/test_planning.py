"""The plan from a pilot against simulated image outcomes."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine.comparison.planning import Pilot, Plan, read_pilot, seeds_needed
from engine.errors import UserError
from tests.conftest import Command, script_module

RESULTS = Path(__file__).resolve().parents[3] / "results"


def test_seeds_of_a_plan_are_those_of_the_simulation() -> None:
    """Within 20%: the number of seeds planned for 1 point has about the planned power with simulated images."""
    pilot = read_pilot(RESULTS / "tiny_imagenet_scratch", None)
    planned = seeds_needed(pilot, 1.0, 0.8)
    assert planned is not None
    simulation = script_module("simulate_verdict")
    powers = {}
    for seeds in (round(0.8 * planned), round(1.2 * planned)):
        cell = simulation.Cell(pilot.images, pilot.discordance, pilot.fixed_share, seeds, pilot.excess**0.5, -1.0)
        powers[seeds] = simulation.claims_and_coverage(cell, 4_000, np.random.default_rng(0))["crossed"][0]
    fewer, more = powers.values()
    assert fewer < 0.8 < more


def test_more_seeds_and_images_detect_less() -> None:
    pilot = Pilot(0.1, 0.5, 0.3, 2_000, 2_000, (), 3, None)
    detectable = [Plan(pilot, seeds).detectable(0.8) for seeds in (3, 5, 10)]
    assert detectable == sorted(detectable, reverse=True)
    assert Plan(pilot.on(50_000), 5).detectable(0.8) < detectable[1]
    assert Plan(pilot, 5).power(detectable[1]) == pytest.approx(0.8, abs=0.01)
    assert seeds_needed(pilot, 0.001, 0.8) is None


def test_script_prints_the_plan(command: Command) -> None:
    pilot = f"pilot={RESULTS / 'tiny_imagenet_scratch'}"
    done = command("scripts/plan.py", pilot, "difference=1", "images=50000")
    assert done.returncode == 0, done.stderr
    assert "The plan averages their variances; attention=NAME selects a kind." in done.stdout
    assert "  resnet18  attention=se    lr x1  -0.88 ± 0.23\n" in done.stdout
    assert "Detectable on 50,000 images (points, 80% power)" in done.stdout
    assert "To find a difference of 1 points takes 6 seeds" in done.stdout
    assert "Hours are unknown: the pilot's records have no train_seconds" in done.stdout
    done = command("scripts/plan.py", str(RESULTS / "tiny_imagenet_scratch"), "difference=much")
    assert (done.returncode, done.stderr) == (2, "error: difference=much is not a number.\n")


def test_script_prints_the_plan_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = script_module("plan")
    lines: list[str] = []
    monkeypatch.setattr(plan, "print_line", lines.append)
    plan.main(str(RESULTS / "trashnet"), "3", attention="cbam")
    (text,) = lines
    assert text.startswith(
        "Pilot: 1 contrast with 5 seeds on 503 images.\n"
        "For about 15.2% of the images, only one network of a pair is correct.\n"
        "Of the variance over images, 5% is common to all seeds."
    )
    assert "attention=" not in text
    assert text.endswith(
        "The Detectable of the pilot's table is an approximation, which is usually lower (docs/methodology.md)."
    )
    with pytest.raises(UserError, match=r"no difference of attention=eac over at least two seeds; it has cbam, .*eca"):
        plan.main(str(RESULTS / "trashnet"), "3", attention="eac")


@pytest.mark.parametrize(
    ("pilot", "label", "seeds", "of_table", "of_plan"),
    [
        ("trashnet", "cbam", 5, 2.83, 2.97),
        ("trashnet", "cbam-calibrate.0", 5, 28.98, 29.34),
        ("bccd", "cbam", 3, 2.53, 4.84),
    ],
)
def test_the_plan_detects_less_than_the_formula_of_the_table(
    pilot: str, label: str, seeds: int, of_table: float, of_plan: float
) -> None:
    """The numbers of docs/methodology.md. Only in the second is v, the variance over seeds, above the images' part."""
    content = json.loads((RESULTS / pilot / "table.json").read_text())
    (row,) = [row for row in content["rows"] if row["attention"] == label]
    assert row["detectable"] == pytest.approx(of_table, abs=0.005)
    assert Plan(read_pilot(RESULTS / pilot, label), seeds).detectable(0.8) == pytest.approx(of_plan, abs=0.005)


def test_a_pilot_without_any_difference_is_refused(tmp_path: Path) -> None:
    table = json.loads((RESULTS / "tiny_imagenet_scratch" / "table.json").read_text())
    for row in table["rows"]:
        if row["baseline"] is not None:
            row |= {"difference": 0.0, "difference_sd": 0.0}
    (tmp_path / "table.json").write_text(json.dumps(table))
    with pytest.raises(
        UserError, match=r"Every difference of the pilot .*table\.json is 0, in every seed, so it has no"
    ):
        read_pilot(tmp_path, None)


def test_a_folder_of_tables_lists_them() -> None:
    with pytest.raises(UserError, match=r"attention_lr contains 2 tables; give one of them: .*blood_cells, .*tiny_ima"):
        read_pilot(RESULTS / "attention_lr", None)


def test_pilot_of_one_seed_is_refused() -> None:
    with pytest.raises(UserError, match="the variation between seeds is unknown; train a second seed"):
        read_pilot(RESULTS / "tiny_imagenet_20", None)
