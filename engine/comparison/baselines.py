"""Which rows may stand in one table, and which is whose baseline."""

from collections.abc import Sequence

from engine.comparison.entry import TableEntry
from engine.errors import UserError


def config_mismatches(entries: Sequence[TableEntry], allow_mixed: bool) -> list[str]:
    """How each contender's recipe differs from that of the table's first run; empty where it does not.

    Start weights are compared among runs of one backbone, a key that only some have among those. Published weights have
    no recipe.

    Raises:
        UserError: naming two runs and the keys in which they differ, unless `allow_mixed`.
    """
    texts = [_deviation(entry, entries) for entry in entries]
    for entry, text in zip(entries, texts, strict=True):
        if text and not allow_mixed:
            raise UserError(
                f"{entry.facts['source']} was trained differently from the other runs: {text}. Train them alike, "
                "name the runs to compare with runs=[DIR,...], or have such rows marked with table.allow_mixed=true."
            )
    return texts


def _deviation(entry: TableEntry, entries: Sequence[TableEntry]) -> str:
    texts = []
    for key, value in entry.setting.items():
        runs = [other for other in entries if key in other.setting]
        alike = [r for r in runs if key != "model.weights" or r.facts["model"] == entry.facts["model"]]
        expected = alike[0].setting[key]
        if value != expected:
            texts.append(f"{key}={value} ({expected} in {alike[0].facts['source']})")
    return ", ".join(texts)


def find_baselines(entries: Sequence[TableEntry], deviating: Sequence[str]) -> list[int | None]:
    """Position of each contender's baseline: the same backbone and seed without attention, of the same recipe if any.

    None for a contender without attention, and for one whose baseline is not there.

    Raises:
        UserError: if two contenders are the same in all of this.
    """
    seen: dict[tuple, str] = {}
    for entry, deviation in zip(entries, deviating, strict=True):
        facts = entry.facts
        key = (facts["model"], facts["attention"], facts["seed"], deviation)
        if key in seen:
            raise UserError(
                f"{seen[key]} and {facts['source']} are the same network under the same seed; "
                "name one of them with runs=[DIR,...]."
            )
        seen[key] = facts["source"]
    return [_baseline(position, entries, deviating) for position in range(len(entries))]


def _baseline(position: int, entries: Sequence[TableEntry], deviating: Sequence[str]) -> int | None:
    facts = entries[position].facts
    if facts["attention"] == "none":
        return None
    partners = [
        i
        for i, other in enumerate(entries)
        if other.record
        and (other.facts["model"], other.facts["attention"], other.facts["seed"])
        == (facts["model"], "none", facts["seed"])
    ]
    return min(partners, key=lambda i: deviating[i] != deviating[position], default=None)
