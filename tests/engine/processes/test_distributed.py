"""Several processes train one network: the same batches and losses, one writer, and errors that name a lost process."""

import itertools
import json
import math
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from engine.config.recipe import RecipeConfig
from engine.data import file_index
from engine.data.loader import EpochBatches
from engine.errors import UserError
from engine.processes import cluster, distributed
from engine.processes.cluster import ClusterEnvironment
from engine.processes.device import require_one_each
from engine.processes.distributed import ProcessGroup
from engine.runs import checkpoint
from tests.commands import arguments, assert_one_line
from tests.networks import SMALL, SMALL_CBAM
from tests.processes import REPOSITORY, free_port, start_ranks


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("first", [0, 3])
def test_ranks_batches_make_up_the_global_batch(world_size: int, first: int) -> None:
    def batches(place: ClusterEnvironment) -> list[list[tuple[int, int]]]:
        batches = EpochBatches(100, 16, 51, ProcessGroup(place))
        batches.epoch, batches.first = 2, first
        return [list(batch) for batch in batches]

    group = [batches(ClusterEnvironment(rank, world_size)) for rank in range(world_size)]
    together = [list(itertools.chain(*parts)) for parts in zip(*group, strict=True)]
    assert together == batches(ClusterEnvironment())
    assert len(together) == 6 - first


@pytest.mark.parametrize("count", [2, 4])
def test_data_digests_do_not_depend_on_ranks(count: int, folders: Path, tmp_path: Path) -> None:
    common = arguments(folders, "model.weights=null", "runtime.workers=0")[:-2]
    (alone,) = start_ranks(1, "scripts/hash_batches.py", common, tmp_path)
    together = start_ranks(count, "scripts/hash_batches.py", common, tmp_path)
    first, *others = (process.result() for process in together)
    assert first.returncode == 0, first.stderr
    assert first.stdout == alone.result().stdout
    assert first.stdout.count("epoch") == 2
    assert [other.stdout for other in others] == [""] * (count - 1)


def drop_nothing() -> None:
    nn.Dropout.forward = lambda _, values: values  # type: ignore[method-assign, assignment]


def train(count: int, folders: Path, folder: Path, *more: str) -> dict[str, Any]:
    """Return the record of a run with `count` ranks and without dropout."""
    given = arguments(folders, "model.weights=null", f"run.dir=run{count}", *more)
    processes = start_ranks(count, "train.py", given, folder, drop_nothing)
    first, *others = (process.result() for process in processes)
    assert first.returncode == 0, first.stderr
    assert [(other.returncode, other.stdout) for other in others] == [(0, "")] * (count - 1), others[0].stderr
    record: dict[str, Any] = json.loads((folder / f"run{count}" / "record.json").read_text())
    assert (record["processes"], record["batch_per_process"]) == (count, 16 // count)
    return record


def test_process_count_changes_only_rounding(folders: Path, tmp_path: Path) -> None:
    """Compares one epoch. A single process accumulates micro-batches, several do not."""
    network = ["model=custom", "model.factory=tests.networks:without_norms", "attention=cbam", "attention.after=1|3"]
    network += ["recipe.epochs=1", "recipe.lr=0.001"]
    alone = train(1, folders, tmp_path, *network)
    for count in (2, 4):
        together = train(count, folders, tmp_path, *network)
        for before, after in zip(alone["history"], together["history"], strict=True):
            assert after == pytest.approx(before, rel=1e-5)
    assert alone["history"][1]["train_loss"] != alone["history"][0]["val_loss"]


def test_evaluate_shares_the_images_between_processes(folders: Path, tmp_path: Path) -> None:
    """21 images do not divide by two. Each is counted once, and only one process prints and writes.

    Runs with different batches per process, which their norms depend on, are not compared.
    """
    train(2, folders, tmp_path, *SMALL, "recipe.epochs=1")
    common = [*arguments(folders)[:6], "runtime.device=cpu", "runs=[run2]"]
    first, second = (
        process.result() for process in start_ranks(2, "evaluate.py", [*common, "table.dir=two"], tmp_path)
    )
    (alone,) = (process.result() for process in start_ranks(1, "evaluate.py", [*common, "table.dir=one"], tmp_path))
    assert first.returncode == 0, first.stderr
    assert first.stdout.replace("Written to two", "Written to one") == alone.stdout
    assert second.stdout == ""
    one, two = (json.loads((tmp_path / name / "table.json").read_text()) for name in ("one", "two"))
    assert one["rows"] == two["rows"]
    train(1, folders, tmp_path, *SMALL_CBAM, "recipe.epochs=1")
    (mixed,) = start_ranks(1, "evaluate.py", [*common[:-1], "runs=[run1,run2]"], tmp_path)
    assert_one_line(mixed.result(), "run1 was trained differently", "batch per process=16 (8 in run2)")


def test_a_batch_that_does_not_divide_is_a_clear_error(folders: Path, tmp_path: Path) -> None:
    given = arguments(
        folders, "model=resnet18", "model.weights=null", "recipe.batch_size=9", "recipe.accumulation_steps=3"
    )
    results = [process.result() for process in start_ranks(2, "train.py", given, tmp_path)]
    for result in results:
        assert result.returncode == 2, result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: "), result.stderr
    # A process that is still meeting the other when that one ends reports the end instead, after torch's log of it.
    reason = "recipe.batch_size=9 is not divisible by recipe.accumulation_steps=3 times 2 processes"
    assert any(reason in result.stderr for result in results)
    assert not (tmp_path / "runs").exists()


def test_run_resumes_with_its_number_of_processes(folders: Path, tmp_path: Path) -> None:
    network = [*SMALL, "recipe.epochs=50", "run.checkpoint_every_steps=1", "model.weights=null"]
    given = arguments(folders, *network, "run.dir=run")
    processes = start_ranks(2, "train.py", given, tmp_path)
    while not (tmp_path / "run" / "checkpoint" / "previous.pt").exists():
        time.sleep(0.01)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.result()
    (alone,) = start_ranks(1, "train.py", given, tmp_path)
    assert_one_line(
        alone.result(), "run was started with another number of processes (2, not 1); resume with the same number"
    )


def hide_an_image() -> None:
    """Remove one image from the second process's copy of the data."""
    if os.environ["RANK"] == "1":
        read = file_index._read

        def less(folder: Path) -> file_index._Folder:
            found = read(folder)
            return found._replace(images=found.images[1:])

        file_index._read = less


@pytest.mark.parametrize("script", ["train.py", "scripts/hash_batches.py", "evaluate.py"])
def test_processes_with_different_images_are_refused(script: str, folders: Path, tmp_path: Path) -> None:
    given = arguments(folders)[:6]
    if script != "evaluate.py":
        given = arguments(folders, "model=resnet18", "model.weights=null", "run.dir=run")
    for process in start_ranks(2, script, given, tmp_path, hide_an_image):
        assert_one_line(process.result(), "Process 1 of 2 found images that differ from those of process 0")
    assert not (tmp_path / "run").exists()


def lose_the_second() -> None:
    """Make the second process's training loss NaN."""
    cross_entropy = nn.functional.cross_entropy

    def lost(*given: Tensor, **options: Any) -> Tensor:
        trains = "label_smoothing" in options and os.environ["RANK"] == "1"
        return cross_entropy(*given, **options) * (math.nan if trains else 1)

    nn.functional.cross_entropy = lost  # type: ignore[assignment]


def test_nonfinite_loss_on_one_rank_stops_all(folders: Path, tmp_path: Path) -> None:
    given = arguments(folders, *SMALL_CBAM, "run.dir=run", "run.checkpoint_every_steps=1")
    first, second = (process.result() for process in start_ranks(2, "train.py", given, tmp_path, lose_the_second))
    assert_one_line(first, "The loss is nan at step 0", "training images of another process")
    assert_one_line(second, "The loss is nan at step 0", f"training images {folders}")
    weights = checkpoint.load(tmp_path / "run" / "checkpoint" / "last.pt")["model"]
    assert all(value.isfinite().all() for value in weights.values())


def test_two_processes_on_one_device_are_refused() -> None:
    require_one_each([("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-1")])
    with pytest.raises(UserError, match=r"Several processes on b use the same CUDA device \(GPU-1\)"):
        require_one_each([("a", "GPU-1"), ("b", "GPU-1"), ("b", "GPU-1")])


def test_processes_that_do_not_come_are_named() -> None:
    world = ClusterEnvironment(rank=0, world_size=4, address="127.0.0.1", port=free_port())
    with (
        pytest.raises(UserError, match=r"Of 4 processes, processes 1, 2, 3 did not start within 1 s"),
        distributed.init_distributed(world, "test", timedelta(seconds=1)),
    ):
        pass
    world = ClusterEnvironment(rank=1, world_size=4, address="127.0.0.1", port=free_port())
    with (
        pytest.raises(UserError, match=r"Process 1 of 4 cannot reach process 0 at 127\.0\.0\.1:\d+ "),
        distributed.init_distributed(world, "test", timedelta(seconds=1)),
    ):
        pass


def test_death_during_rendezvous_ends_all_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "die.py").write_text(
        "import os, sys, torch\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from engine import cli\n"
        "from engine.processes import cluster, distributed\n"
        "world = cluster.world_info_from_env(os.environ)\n"
        "if world.rank == 0: torch.distributed.init_process_group = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "with cli.one_line_errors(), distributed.init_distributed(world, 'test'): pass\n"
    )
    first, second = start_ranks(2, str(tmp_path / "die.py"), [], tmp_path)
    assert first.result().returncode == -signal.SIGKILL
    left = second.result()
    assert left.returncode == 2, left.stderr
    assert "Traceback" not in left.stderr
    last = left.stderr.splitlines()[-1]  # torch may first log the broken connection
    assert last.startswith("error: Process 1 of 2 lost contact with another process ("), last


def test_a_process_that_hangs_is_named(tmp_path: Path) -> None:
    """The second of three processes hangs; the other two time out and name it."""
    (tmp_path / "hang.py").write_text(
        "import os, sys, time, torch\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from datetime import timedelta\n"
        "from engine import cli\n"
        "from engine.processes import cluster, distributed\n"
        "distributed._ROLL_CALL_PATIENCE = timedelta(seconds=3)\n"
        "world = cluster.world_info_from_env(os.environ)\n"
        "with cli.one_line_errors(), distributed.init_distributed(world, 'test', timedelta(seconds=3)) as group:\n"
        "    assert group.all_reduce_max(group.rank) == [2]\n"
        "    while group.rank == 1: time.sleep(1)\n"
        "    group.all_reduce_max(1)\n"
    )
    first, _, third = start_ranks(3, str(tmp_path / "hang.py"), [], tmp_path)
    for rank, process in ((0, first), (2, third)):
        assert_one_line(process.result(), f"Process {rank} of 3 timed out waiting for process 1.")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ClusterEnvironment(processors=8)),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
            | {"MASTER_ADDR": "gpu07", "MASTER_PORT": "29400", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            ClusterEnvironment(5, 8, 1, 2, "gpu07", 29400, hosted=True),
        ),
        # A batch script, and a shell on a compute node: the job has tasks, but this process is none of them.
        (
            {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"},
            ClusterEnvironment(processors=8),
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, ClusterEnvironment(processors=8)),
        (
            {"SLURM_JOB_ID": "40007", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}
            | {"SLURM_LOCALID": "1", "SLURM_CPUS_PER_TASK": "6", "MASTER_ADDR": "10.0.0.7"},
            ClusterEnvironment(3, 4, 1, 6, "10.0.0.7", 12009),
        ),
    ],
)
def test_places_follow_from_the_launchers_variables(
    environment: dict[str, str], expected: ClusterEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cluster.world_info_from_env(environment) == expected


def test_the_first_nodes_address_comes_from_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's name need not resolve, because Slurm reports its address."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\n"
        'case "$2" in hostnames) printf "gpu07\\ngpu08\\n";; node) echo "NodeName=$4 NodeAddr=10.1.0.7 X=1";; esac\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    task = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    task |= {"SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "gpu[07-08]"}
    assert cluster.world_info_from_env(task).address == "10.1.0.7"
    scontrol.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UserError, match=r"first node of gpu\[07-08\] .*; set MASTER_ADDR"):
        cluster.world_info_from_env(task)


@pytest.mark.parametrize("batch_size", [10, 4])
def test_parts_of_a_batch(batch_size: int) -> None:
    recipe = RecipeConfig(epochs=1, batch_size=batch_size, lr=0.1, weight_decay=0.0)
    with pytest.raises(UserError, match=r"divisible|divide"):
        recipe.check_parts(4)
