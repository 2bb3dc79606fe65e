"""scripts/hash_batches.py: equal digests for equal data."""

from pathlib import Path

import pytest

from tests.commands import EVERYTHING, arguments, replaced
from tests.conftest import Command
from tests.processes import start_ranks


def test_digests_tell_equal_data_from_different_data(command: Command, folders: Path) -> None:
    common = arguments(folders, "model.weights=null")[:-3]
    digests = [
        command("scripts/hash_batches.py", *replaced(common, *more)).stdout.splitlines()
        for more in (["runtime.workers=0"], ["runtime.workers=2", "model=vgg11_cbam"], ["seed=52", "runtime.workers=0"])
    ]
    assert len(digests[0]) == 3
    assert digests[0] == digests[1]
    assert digests[0][0] == digests[2][0]  # the same files
    assert digests[0][1:] != digests[2][1:]


@pytest.mark.parametrize("more", [EVERYTHING, ["recipe.augment=randaugment"], ["recipe.augment=colorjitter"]])
def test_augmented_digests_do_not_depend_on_workers_or_ranks(
    more: list[str], command: Command, folders: Path, tmp_path: Path
) -> None:
    common = arguments(folders, "model.weights=null", *more)
    digests = [
        command("scripts/hash_batches.py", *replaced(common, f"runtime.workers={workers}")).stdout.splitlines()
        for workers in (0, 1, 4)
    ]
    ranks = [rank.result() for rank in start_ranks(2, "scripts/hash_batches.py", common, tmp_path)]
    digests.append(ranks[0].stdout.splitlines())
    assert digests == [digests[0]] * 4
    assert len(set(digests[0])) == 3
