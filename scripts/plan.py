"""Plan a comparison from a pilot: seeds against the difference that they detect, and hours.

    python scripts/plan.py pilot=results/PILOT difference=0.3 [attention=cbam] [images=50000] [power=0.8]

The pilot is a table with at least two seeds of each network. `difference` is the true difference to be found, in
points. `attention` selects one kind of attention by its label in table.csv, such as cbam-calibrate.0; without it, the
variances are averaged over all contrasts with the baseline. `images` is the number of validation images of the planned
comparison (default: the pilot's). Hours are the training time of both networks for all seeds, from the `train_seconds`
in the pilot's records.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

from engine import cli
from engine.comparison.planning import MOST_SEEDS, Contrast, Pilot, Plan, read_pilot, seeds_needed
from engine.errors import UserError
from engine.logging import aligned, print_line

SEEDS = (2, 3, 4, 5, 7, 10, 15, 20)


def main(
    pilot: str, difference: str, power: str = "0.8", images: str | None = None, attention: str | None = None
) -> None:
    """Print the plan.

    Raises:
        UserError: if a value is not a number in range, or the pilot cannot be read.
    """
    wanted, target = _number("difference", difference), _number("power", power)
    if not target < 1:
        raise UserError(f"power={power} must be below 1.")
    own = read_pilot(Path(pilot), attention)
    planned = own if images is None else own.on(max(2, int(_number("images", images))))
    lines = [_description(own), "", *_table(planned, target), "", _answer(planned, wanted, target)]
    if planned is own:
        lines += [
            "The Detectable of the pilot's table is an approximation, which is usually lower (docs/methodology.md)."
        ]
    print_line("\n".join(lines))


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"{key}={text} is not a number.") from error
    if not value > 0:
        raise UserError(f"{key}={text} must be positive.")
    return value


def _description(pilot: Pilot) -> str:
    several = len(pilot.contrasts) > 1
    lines = [
        f"Pilot: {len(pilot.contrasts)} contrast{'s' if several else ''} with {pilot.seeds} seeds on {pilot.images:,} "
        "images."
    ]
    if several:
        lines.append("The plan averages their variances; attention=NAME selects a kind. Their differences (points):")
        lines += aligned([_cells(contrast) for contrast in pilot.contrasts])
    if pilot.of_errors:
        lines.append(f"For about {pilot.discordance:.1%} of the images, only one network of a pair is correct.")
    lines += [
        f"Of the variance over images, {pilot.fixed_share:.0%} is common to all seeds. Apart from the images, "
        f"the difference varies over seeds with a standard deviation of {pilot.excess**0.5:.2f} points.",
        f"A variance from {pilot.seeds} seeds is imprecise; take more seeds than the plan where hours allow it.",
    ]
    return "\n".join(lines)


def _cells(contrast: Contrast) -> tuple[str, ...]:
    differences = f"{contrast.difference:+.2f} ± {contrast.deviation:.2f}"
    factor = f"lr x{contrast.lr_factor}" if contrast.lr_factor else ""
    return "", contrast.model, f"attention={contrast.attention}", factor, differences


def _table(pilot: Pilot, power: float) -> list[str]:
    title = f"Detectable on {pilot.images:,} images (points, {power:.0%} power)"
    rows = [("Seeds", title, "Hours")]
    for seeds in SEEDS:
        hours = "-" if pilot.hours is None else f"{seeds * pilot.hours:.1f}"
        rows.append((str(seeds), f"{Plan(pilot, seeds).detectable(power):.2f}", hours))
    unknown = "Hours are unknown: the pilot's records have no train_seconds, as those of earlier versions."
    return aligned(rows) if pilot.hours is not None else [*aligned(rows), unknown]


def _answer(pilot: Pilot, difference: float, power: float) -> str:
    seeds = seeds_needed(pilot, difference, power)
    if seeds is None:
        return f"To find a difference of {difference:g} points takes more than {MOST_SEEDS} seeds; take more images."
    found = Plan(pilot, seeds).power(difference)
    return f"To find a difference of {difference:g} points takes {seeds} seeds (power {found:.2f})."


if __name__ == "__main__":
    # Also without `pilot=`, as other scripts take their folder.
    if len(sys.argv) > 1 and "=" not in sys.argv[1] and not sys.argv[1].startswith("-"):
        sys.argv[1] = f"pilot={sys.argv[1]}"
    cli.run_script(main)
