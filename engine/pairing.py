"""Which rows may stand in one table, and which is whose baseline."""

from collections.abc import Sequence

from engine.contender import Contender
from engine.errors import UserError


def deviations(contenders: Sequence[Contender], allow_mixed: bool) -> list[str]:
    """How each contender's recipe differs from that of the table's first run; empty where it does not.

    Start weights are compared among runs of one backbone, a key that only some have among those. Published weights have
    no recipe.

    Raises:
        UserError: naming two runs and the keys in which they differ, unless `allow_mixed`.
    """
    texts = [_deviation(contender, contenders) for contender in contenders]
    for contender, text in zip(contenders, texts, strict=True):
        if text and not allow_mixed:
            raise UserError(
                f"{contender.facts['source']} was trained differently from the other runs: {text}. Train them alike, "
                "name the runs to compare with runs=[DIR,...], or have such rows marked with table.allow_mixed=true."
            )
    return texts


def _deviation(contender: Contender, contenders: Sequence[Contender]) -> str:
    texts = []
    for key, value in contender.setting.items():
        runs = [other for other in contenders if key in other.setting]
        alike = [r for r in runs if key != "model.weights" or r.facts["model"] == contender.facts["model"]]
        expected = alike[0].setting[key]
        if value != expected:
            texts.append(f"{key}={value} ({expected} in {alike[0].facts['source']})")
    return ", ".join(texts)


def baselines(contenders: Sequence[Contender], deviating: Sequence[str]) -> list[int | None]:
    """Position of each contender's baseline: the same backbone and seed without attention, of the same recipe if any.

    None for a contender without attention, and for one whose baseline is not there.

    Raises:
        UserError: if two contenders are the same in all of this.
    """
    seen: dict[tuple, str] = {}
    for contender, deviation in zip(contenders, deviating, strict=True):
        facts = contender.facts
        key = (facts["model"], facts["attention"], facts["seed"], deviation)
        if key in seen:
            raise UserError(
                f"{seen[key]} and {facts['source']} are the same network under the same seed; "
                "name one of them with runs=[DIR,...]."
            )
        seen[key] = facts["source"]
    return [_baseline(position, contenders, deviating) for position in range(len(contenders))]


def _baseline(position: int, contenders: Sequence[Contender], deviating: Sequence[str]) -> int | None:
    facts = contenders[position].facts
    if facts["attention"] == "none":
        return None
    partners = [
        i
        for i, other in enumerate(contenders)
        if other.record
        and (other.facts["model"], other.facts["attention"], other.facts["seed"])
        == (facts["model"], "none", facts["seed"])
    ]
    return min(partners, key=lambda i: deviating[i] != deviating[position], default=None)
