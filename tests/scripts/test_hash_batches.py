"""scripts/hash_batches.py: equal digests for equal data."""

from pathlib import Path

from tests.commands import arguments
from tests.conftest import Command


def test_digests_tell_equal_data_from_different_data(command: Command, folders: Path) -> None:
    common = arguments(folders, "model.weights=null")[:-3]
    digests = [
        command("scripts/hash_batches.py", *common, *more).stdout.splitlines()
        for more in (["runtime.workers=0"], ["runtime.workers=2", "model=vgg11_cbam"], ["seed=52", "runtime.workers=0"])
    ]
    assert len(digests[0]) == 3
    assert digests[0] == digests[1]
    assert digests[0][0] == digests[2][0]  # the same files
    assert digests[0][1:] != digests[2][1:]
