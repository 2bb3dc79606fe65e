"""Networks that predict the same class for every image: they have not learned to tell the classes apart."""

from collections.abc import Sequence
from typing import Any

from engine.comparison.columns import is_static
from engine.comparison.compare import Evidence
from engine.logging import log


def one_class_networks(table: dict[str, Any], evidence: Evidence) -> list[str]:
    """Return the run directories, or the names of networks without a run, that predict one class for every image.

    Controls with static gates are not among them, but their networks are.
    """
    return [
        run["source"] if run["seed"] is not None else run["model"]
        for run, own in zip(table["runs"], evidence.runs, strict=True)
        if own.predictions.only_class() is not None and not is_static(run)
    ]


def warn_of_one_class(found: Sequence[Sequence[str]]) -> None:
    """Log a warning that names the networks, if there are any.

    Args:
        found: the result of `one_class_networks` for each part of the data set. A network is named if it is in all.
    """
    names = [name for name in found[0] if all(name in part for part in found)]
    if names:
        some = "1 network predicts" if len(names) == 1 else f"{len(names)} networks predict"
        log.warning(
            f"warning: {some} the same class for every validation image, whatever it shows: {', '.join(names)}. Train "
            f"{'it' if len(names) == 1 else 'them'} longer or with a higher rate (recipe.lr)."
        )
