"""Simulate the verdict on image outcomes: false claims, coverage and power of the rule and of simpler ones.

    python scripts/simulate_verdict.py into=results/verdict [repetitions=40000]

In a simulated comparison, every network of every seed classifies every image, and all variances are estimated from
these outcomes, as in a table. The script writes simulation.csv with one line per cell, and simulation.md with the worst
cell and the power of each rule. The same repetitions give the same bytes. 40,000 take about 10 minutes on one core.
"""

import csv
import io
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.processes.startup import prepare_process

if __name__ == "__main__":
    prepare_process()  # before the imports that take seconds

import numpy as np

from engine import cli
from engine.runs.atomic_io import atomic_write
from engine.tasks.crossed_model import squared_half_width
from engine.tasks.student import student_quantile

IMAGES, SEEDS = (1_000, 5_000, 50_000), (2, 3, 5, 10)
DISCORDANCES, SHARES = (0.02, 0.08, 0.12), (0.07, 0.3, 0.5, 0.8)
SPREADS, POWER_SPREADS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0), (0.0, 0.1, 0.2)
EFFECT = 0.3  # points, in the cells for power, which have 50,000 images
NORMAL = 1.959964


@dataclass(frozen=True)
class Cell:
    """A kind of comparison.

    Attributes:
        images: number of images.
        discordance: share of images that one network of a pair classifies correctly and the other does not.
        share: part of the discordance that is fixed for an image; the rest is drawn for each seed.
        seeds: number of seeds.
        spread: standard deviation over seeds of the true difference of a pair, in points.
        effect: true difference, in points.
    """

    images: int
    discordance: float
    share: float
    seeds: int
    spread: float
    effect: float


@dataclass(frozen=True)
class Estimates:
    """The estimates of R comparisons: arrays [R], variances in points squared.

    Attributes:
        difference, seed_variance, common, residual: as in `CrossedDifference`.
        over_images: variance over images of the mean difference, as a bootstrap of the images finds it.
        sign: statistic of the sign test over images, with continuity correction.
    """

    difference: np.ndarray
    seed_variance: np.ndarray
    common: np.ndarray
    residual: np.ndarray
    over_images: np.ndarray
    sign: np.ndarray


def simulate(cell: Cell, repetitions: int, random: np.random.Generator) -> Estimates:
    """Simulate comparisons.

    An image's difference is +1 where only the network errs, -1 where only its baseline errs, and 0 otherwise. Images
    whose sums over the previous seeds are equal are exchangeable, so it suffices to count them.
    """
    seeds, images = cell.seeds, cell.images
    fixed = round(cell.share * images)
    effect = cell.effect / 100
    up, down = _split(np.full(repetitions, fixed), np.full(repetitions, effect), cell.discordance, random)
    # The fixed images do not depend on the seed, so the others carry the whole seed effect.
    shifts = effect + random.normal(0, cell.spread / 100, (repetitions, seeds)) / (1 - fixed / images)
    counts = np.zeros((repetitions, 2 * seeds + 1), dtype=np.int64)  # of images by their sum so far: -S, ..., S
    counts[:, seeds] = images - fixed
    sums, squares = np.empty((repetitions, seeds)), seeds * (up + down)
    for seed in range(seeds):
        reached = slice(seeds - seed, seeds + seed + 1)
        more, fewer = _split(counts[:, reached], shifts[:, seed, None], cell.discordance, random)
        counts[:, reached] -= more + fewer
        counts[:, reached.start + 1 : reached.stop + 1] += more
        counts[:, reached.start - 1 : reached.stop - 1] += fewer
        sums[:, seed] = up - down + (more - fewer).sum(axis=1)
        squares = squares + (more + fewer).sum(axis=1)
    sum_squares = counts @ np.arange(-seeds, seeds + 1) ** 2 + seeds**2 * (up + down)
    lost, won = counts[:, seeds + 1 :].sum(axis=1) + up, counts[:, :seeds].sum(axis=1) + down
    return _estimates(cell, sums, squares, sum_squares, won, lost)


def _split(
    counts: np.ndarray, shift: np.ndarray, discordance: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many of the images get +1 and -1, with the mean `shift` and at least the given discordance."""
    either = np.maximum(discordance, np.abs(shift))
    above, below = (either + shift) / 2, (either - shift) / 2
    more = random.binomial(counts, above)
    return more, random.binomial(counts - more, below / (1 - above))


def _estimates(
    cell: Cell, sums: np.ndarray, squares: np.ndarray, sum_squares: np.ndarray, won: np.ndarray, lost: np.ndarray
) -> Estimates:
    """Return the estimates from each seed's sum over images, and from the sums of squares over seeds and images."""
    images, seeds = cell.images, cell.seeds
    scale = 100**2 / (images * (images - 1))
    total = sums.sum(axis=1)
    own = (sums**2).sum(axis=1)
    diagonal = scale * (squares - own / images) / seeds
    across = scale * (sum_squares - squares - (total**2 - own) / images) / (seeds * (seeds - 1))
    common = np.maximum(0, across)
    return Estimates(
        difference=100 * total / (seeds * images),
        seed_variance=(100 * sums / images).var(axis=1, ddof=1),
        common=common,
        residual=np.maximum(0, diagonal - common),
        over_images=(100 / seeds / images) ** 2 * (sum_squares - total**2 / images),
        sign=(np.abs(won - lost) - 1) / np.sqrt(np.maximum(1, won + lost)),
    )


@cache
def _quantiles() -> tuple[np.ndarray, np.ndarray]:
    """Return log degrees of freedom, and the 97.5% quantile of Student's distribution for each."""
    freedom = np.geomspace(1, 1e6, 600)
    return np.log(freedom), np.array([student_quantile(0.05, one) for one in freedom])


def interpolated_quantile(freedom: np.ndarray) -> np.ndarray:
    """Return the 97.5% quantile of Student's distribution for an array of degrees of freedom, to 1e-4."""
    return np.interp(np.log(np.clip(freedom, 1, 1e6)), *_quantiles())


Rule = Callable[[Estimates, int, int], np.ndarray]  # (estimates, seeds, images) to the half-width of the interval


def crossed(found: Estimates, seeds: int, images: int) -> np.ndarray:
    """The rule of the tables."""
    parts = found.seed_variance, found.common, found.residual
    return np.sqrt(squared_half_width(*parts, seeds, images, interpolated_quantile))


def quadrature(found: Estimates, seeds: int, images: int) -> np.ndarray:  # noqa: ARG001
    return np.sqrt(_student(seeds) ** 2 * found.seed_variance / seeds + NORMAL**2 * found.common)


def waived(share: float) -> Rule:
    """Return the quadrature rule with a share of Student's penalty waived."""

    def rule(found: Estimates, seeds: int, images: int) -> np.ndarray:
        part = share * (_student(seeds) ** 2 - NORMAL**2) * found.residual / seeds
        least = NORMAL**2 * (found.common + found.residual / seeds)
        return np.sqrt(np.maximum(quadrature(found, seeds, images) ** 2 - part, least))

    return rule


def satterthwaite(found: Estimates, seeds: int, images: int) -> np.ndarray:  # noqa: ARG001
    of_seeds = np.maximum(found.seed_variance, found.residual) / seeds
    variance = of_seeds + found.common
    return interpolated_quantile(variance**2 * (seeds - 1) / np.maximum(of_seeds**2, 1e-300)) * np.sqrt(variance)


def double_counting(found: Estimates, seeds: int, images: int) -> np.ndarray:  # noqa: ARG001
    """The interval of version 0.1, which contains the residual twice."""
    return np.sqrt(_student(seeds) ** 2 * found.seed_variance / seeds + NORMAL**2 * found.over_images)


RULES: dict[str, Rule] = {
    "version 0.1": double_counting,
    "quadrature": quadrature,
    "25% waived": waived(0.25),
    "50% waived": waived(0.5),
    "satterthwaite": satterthwaite,
    "crossed": crossed,
}


def _student(seeds: int) -> float:
    return student_quantile(0.05, seeds - 1)


def claims_and_coverage(cell: Cell, repetitions: int, random: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Return, for each rule, the shares of comparisons with a claim and with the true difference in the interval."""
    found = simulate(cell, repetitions, random)
    result = {}
    for name, rule in RULES.items():
        half_width = rule(found, cell.seeds, cell.images)
        claimed = np.abs(found.difference) > half_width
        if name == "version 0.1":  # a sign test and the interval over images had to agree
            claimed &= (found.sign > NORMAL) & (np.abs(found.difference) > NORMAL * np.sqrt(found.over_images))
        covered = np.abs(found.difference - cell.effect) <= half_width
        result[name] = float(claimed.mean()), float(covered.mean())
    return result


def cells() -> Iterator[Cell]:
    """Yield the cells without a difference, then those for power."""
    for values in itertools.product(IMAGES, DISCORDANCES, SHARES, SEEDS, SPREADS):
        yield Cell(*values, effect=0.0)
    for values in itertools.product((50_000,), DISCORDANCES, SHARES, SEEDS, POWER_SPREADS):
        yield Cell(*values, effect=EFFECT)


Results = Sequence[tuple[Cell, dict[str, tuple[float, float]]]]


def table(results: Results) -> str:
    """Return one CSV line per cell, with every rule's claims and coverage."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*(one.name for one in fields(Cell)), *(f"{r}: {x}" for r in RULES for x in ("claims", "coverage"))]
    )
    for cell, found in results:
        writer.writerow([*astuple(cell), *(f"{value:.4f}" for rule in RULES for value in found[rule])])
    return text.getvalue()


def summary(results: Results) -> str:
    """Return the worst cells and the mean power of each rule as Markdown."""
    null = [(cell, found) for cell, found in results if cell.effect == 0]
    titles = [f"{n} seeds" for n in SEEDS]
    lines = ["False claims in the worst cell (%), and the lowest coverage (%):", "", _line("Rule", *titles)]
    lines.append(_line("---", *["--:"] * len(SEEDS)))
    for rule in RULES:
        own = [[found[rule] for cell, found in null if cell.seeds == seeds] for seeds in SEEDS]
        worst = [f"{100 * max(c for c, _ in one):.1f}, {100 * min(c for _, c in one):.1f}" for one in own]
        lines.append(_line(rule, *worst))
    for discordance in DISCORDANCES:
        lines += ["", *_power(results, discordance)]
    return "\n".join(lines) + "\n"


def _power(results: Results, discordance: float) -> list[str]:
    """Return the mean power over the shares of fixed images, for one discordance."""
    spreads = " / ".join(f"{spread:g}" for spread in POWER_SPREADS)
    title = (
        f"Power at {EFFECT:g} points, 50,000 images and a discordance of {discordance:g}, mean over the shares of "
        f"fixed images, at spreads of {spreads} points:"
    )
    lines = [title, "", _line("Rule", *(f"{n} seeds" for n in SEEDS)), _line("---", *["--:"] * len(SEEDS))]
    for rule in RULES:
        texts = [
            " / ".join(f"{_mean_power(results, rule, discordance, seeds, spread):.2f}" for spread in POWER_SPREADS)
            for seeds in SEEDS
        ]
        lines.append(_line(rule, *texts))
    return lines


def _mean_power(results: Results, rule: str, discordance: float, seeds: int, spread: float) -> float:
    wanted = (discordance, seeds, spread, EFFECT)
    own = [found[rule][0] for c, found in results if (c.discordance, c.seeds, c.spread, c.effect) == wanted]
    return float(np.mean(own))


def _line(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def main(into: str, repetitions: str = "40000") -> None:
    """Simulate every cell and write both files."""
    results = []
    for number, cell in enumerate(cells()):
        random = np.random.default_rng([51, number])
        results.append((cell, claims_and_coverage(cell, int(repetitions), random)))
    folder = Path(into)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("simulation.csv", table(results)), ("simulation.md", summary(results))):
        content = text.encode()
        atomic_write(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
        print(folder / name)


if __name__ == "__main__":
    cli.run_script(main)
