"""The checks that runs may share a table, and the baseline of each run."""

from collections.abc import Sequence

from engine.comparison.entry import START_WEIGHTS, TableEntry
from engine.errors import UserError

# Keys of the start weights, which differ between networks.
_OF_NETWORK = ("model.weights", "model.head", "preprocessing.")


def config_mismatches(entries: Sequence[TableEntry], allow_mixed: bool) -> list[str]:
    """Return the differences of each entry's recipe from that of the table's first run; empty if there are none.

    Start weights are compared among the runs of one backbone. A key that only some runs have is compared among those.
    Runs of different detectors are not compared. Published weights have no recipe.

    Raises:
        UserError: naming two runs and the keys in which they differ, unless `allow_mixed`.
    """
    texts = [_deviation(entry, entries) for entry in entries]
    for entry, text in zip(entries, texts, strict=True):
        if text and not allow_mixed:
            raise UserError(
                f"{entry.row['source']} was trained differently from the other runs: {text}. Train them with "
                "the same recipe, select runs with runs=[DIR,...], or set table.allow_mixed=true to mark such rows."
            )
    return texts


def _deviation(entry: TableEntry, entries: Sequence[TableEntry]) -> str:
    mismatches = []
    for key, value in entry.shared_config.items():
        reference = next(other for other in entries if _comparable(key, other, entry))
        expected = reference.shared_config[key]
        if value != expected:
            mismatches.append(f"{key}={value} ({expected} in {reference.row['source']})")
    return ", ".join(mismatches)


def _comparable(key: str, one: TableEntry, other: TableEntry) -> bool:
    """Return whether two runs must agree on a key."""
    if key not in one.shared_config or one.row.get("detector") != other.row.get("detector"):
        return False
    if key == START_WEIGHTS:  # the head's initialization depends on the seed
        return all(one.row[name] == other.row[name] for name in ("model", "seed"))
    return not key.startswith(_OF_NETWORK) or bool(one.row["model"] == other.row["model"])


def find_baselines(entries: Sequence[TableEntry], deviating: Sequence[str]) -> list[int | None]:
    """Return the position of each entry's baseline: the plain network of the same seed and, if possible, recipe.

    The baseline of a network with static gates is the same network with its own gates.

    The position is None for a plain network (`none`) and for an entry without a baseline.

    Raises:
        UserError: if two entries have the same network, seed and recipe.
    """
    seen: dict[tuple, str] = {}
    for entry, deviation in zip(entries, deviating, strict=True):
        row = entry.row
        detector, factor = row.get("detector"), row.get("attention_lr_factor")
        key = (row["model"], detector, row["attention"], factor, row["seed"], deviation)
        if key in seen:
            raise UserError(
                f"{seen[key]} and {row['source']} are the same network with the same seed; "
                "select one of them with runs=[DIR,...]."
            )
        seen[key] = row["source"]
    return [_baseline(position, entries, deviating) for position in range(len(entries))]


def _baseline(position: int, entries: Sequence[TableEntry], deviating: Sequence[str]) -> int | None:
    row = entries[position].row
    if row["attention"] == "none":
        return None
    same = ["model", "detector", "seed"]
    if "static_of" in row:
        same += ["attention_lr_factor"]
    partners = [
        i
        for i, other in enumerate(entries)
        if other.record
        and other.row["attention"] == row.get("static_of", "none")
        and all(other.row.get(key) == row.get(key) for key in same)
    ]
    return min(partners, key=lambda i: deviating[i] != deviating[position], default=None)
