"""The unmodified scripts in scripts/slurm on a real Slurm cluster of two nodes on this machine."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.commands import arguments
from tests.networks import SMALL, SMALL_CBAM
from tests.processes import REPOSITORY, free_port, start_ranks

pytestmark = pytest.mark.skipif(
    shutil.which("slurmctld") is None or shutil.which("munged") is None or os.geteuid() != 0,
    reason="needs Slurm and munge (apt-get install slurm-wlm munge) and root",
)

SLOW = ["model=custom", "model.factory=tests.networks:slow", "model.weights=null"]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
FirstJobId={first_job}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
MpiDefault=none
JobRequeue=1
GresTypes=gpu
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=8000 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=8000 Gres=gpu:1
PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a cluster of two nodes with a fake GPU each; yield the environment of its users."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "gres.conf").write_text("NodeName=n[1-2] Name=gpu File=/dev/null\n")
    configuration = folder / "slurm.conf"
    # Other clusters may run on this machine. A job's ID determines the port on which its processes meet.
    given = {"ports": [free_port() for _ in range(3)], "first_job": os.getpid() % 10000 + 1}
    host = socket.gethostname().partition(".")[0]
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, **given))
    environment = os.environ | {"SLURM_CONF": str(configuration), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("OMP_NUM_THREADS", None)  # the scripts set the number of threads
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    start_munge()
    daemons = [["slurmctld"], ["slurmd", "-N", "n1"], ["slurmd", "-N", "n2"]]
    for daemon in daemons:
        subprocess.run([*daemon, "-f", str(configuration)], env=environment, check=True)
    wait_for_idle(environment)
    yield environment
    ask(environment, "scancel", "--user=root")
    for pid in folder.glob("*.pid"):
        subprocess.run(["kill", pid.read_text().strip()], check=False)


def start_munge() -> None:
    if subprocess.run("munge -n | unmunge", shell=True, capture_output=True).returncode == 0:
        return
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["su", "munge", "-s", "/bin/sh", "-c", "/usr/sbin/munged"], check=True)


def ask(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for_idle(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while (state := ask(environment, "sinfo", "--noheader", "--format=%D %t")) != "2 idle":
        assert time.monotonic() < deadline, state
        time.sleep(0.2)


def wait_for(environment: dict[str, str], job: str, state: str, log: Path | None = None) -> None:
    """Wait until a job is in a state."""
    deadline = time.monotonic() + 300
    while f"JobState={state}" not in (shown := ask(environment, "scontrol", "show", "job", "--oneliner", job)):
        assert time.monotonic() < deadline, shown
        assert state == "FAILED" or "JobState=FAILED" not in shown, log and log.read_text()
        time.sleep(0.2)


def submit(environment: dict[str, str], log: Path, *given: str, options: Sequence[str] = ()) -> str:
    """Submit scripts/slurm/train.sbatch on both nodes and return the job's ID."""
    both = ["--parsable", "--nodes=2", f"--output={log}", *options, "scripts/slurm/train.sbatch"]
    return ask(environment, "sbatch", *both, *given)


def record(run: Path) -> dict[str, object]:
    loaded = json.loads((run / "record.json").read_text())
    keys = ("history", "weights_sha256", "predictions_sha256", "processes", "batch_per_process", "threads")
    return {key: loaded[key] for key in keys}


def test_two_nodes_train_and_resume_after_a_signal(slurm: dict[str, str], folders: Path, tmp_path: Path) -> None:
    common = arguments(folders, *SLOW, "recipe.epochs=3")
    for rank in start_ranks(2, "train.py", [*common, f"run.dir={tmp_path}/here"], tmp_path):
        assert rank.result().returncode == 0

    log = tmp_path / "signalled.log"
    job = submit(slurm, log, *common, f"run.dir={tmp_path}/signalled")
    wait_for(slurm, job, "RUNNING")
    while "epoch 1/3; " not in (log.read_text() if log.exists() else ""):
        time.sleep(0.1)
    ask(slurm, "scancel", "--signal=USR1", "--batch", job)
    wait_for(slurm, job, "PENDING", log)
    wait_for_idle(slurm)
    time.sleep(2)  # without the update below, Slurm delays a requeued job by two minutes
    ask(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(slurm, job, "COMPLETED", log)
    assert record(tmp_path / "signalled") == record(tmp_path / "here")
    assert record(tmp_path / "signalled")["processes"] == 2
    text = log.read_text()
    (stopped,) = re.findall(r"Stopped by SIGUSR1 (after [12] epochs and \d+ steps)", text)
    assert f"Resuming {stopped}" in text
    assert f"job {job}, start 2, on n[1-2]: python train.py" in text


@pytest.mark.slow
@pytest.mark.parametrize("limit", [[], ["--time=1", "--signal=B:USR1@50"]], ids=["requeue", "time limit"])
def test_a_job_that_slurm_ends_in_mid_epoch_resumes(limit: list[str], slurm: dict[str, str], tmp_path: Path) -> None:
    """`scontrol requeue` sends SIGTERM to every process of the job, and srun sends it to the tasks again."""
    common = ["data=shapes", f"data.root={tmp_path}/shapes", "model=mobilenet_v3_small_cbam", "model.weights=null"]
    common += ["recipe.batch_size=16", "recipe.epochs=2", "runtime.workers=2", "run.checkpoint_every_steps=1000"]
    log, run = tmp_path / "log", tmp_path / "run"
    job = submit(slurm, log, *common, f"run.dir={run}", options=limit)
    wait_for(slurm, job, "RUNNING")
    while "epoch 0/2" not in (log.read_text() if log.exists() else ""):
        time.sleep(0.1)
    if not limit:
        time.sleep(2)
        ask(slurm, "scontrol", "requeue", job)
    wait_for(slurm, job, "PENDING", log)
    wait_for_idle(slurm)
    first = log.read_text()
    stopped = re.findall(r"Stopped by \w+ (after [01] epochs and [1-9]\d* steps)\.", first)
    assert len(stopped) == 1, first
    assert "Traceback" not in first
    time.sleep(2)
    ask(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now", "TimeLimit=10")
    wait_for(slurm, job, "COMPLETED", log)
    assert f"Resuming {stopped[0]}." in log.read_text()
    straight = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "train.py"]
    ask(slurm | {"OMP_NUM_THREADS": "1"}, *straight, *common, f"run.dir={tmp_path}/straight")
    assert record(run) == record(tmp_path / "straight")


def test_preset_becomes_array_and_table(slurm: dict[str, str], folders: Path, tmp_path: Path) -> None:
    common = arguments(folders, f"run.root={tmp_path}/runs", "recipe.epochs=1")
    weights = tmp_path / "weights.pt"
    evaluation = [f"run.root={tmp_path}/runs", f"table.dir={tmp_path}/t", "table.allow_mixed=true"]
    preset = tmp_path / "mine.yaml"
    preset.write_text(
        json.dumps(
            {
                "train": [argument for argument in common if not argument.startswith("recipe.epochs=2")],
                "runs": [" ".join([*SMALL, "model.weights=null"]), " ".join([*SMALL_CBAM, f"model.weights={weights}"])],
                "evaluate": [*common[:6], "runtime.device=cpu", *evaluation],
            }
        )
    )
    printed, logs = submit_table(slurm, preset, tmp_path, "FAILED")
    assert "# mine: 2 runs; 0 done, 0 under way, 2 missing" in printed
    assert ", 2 runs" in printed
    assert f"model.weights={weights} is neither a file" in logs
    assert f"failed with exit code 2: python train.py {common[0]}" in logs
    assert f"# missing: {tmp_path}/runs/small/tests.networks.small_cbam-" in logs
    rows = json.loads((tmp_path / "t" / "table.json").read_text())["rows"]
    assert [row["attention"] for row in rows] == ["none"]

    shutil.copy(tmp_path / "runs" / "small" / "tests.networks.small" / "seed51" / "checkpoint" / "last.pt", weights)
    printed, _ = submit_table(slurm, preset, tmp_path, "COMPLETED")
    assert "# mine: 2 runs; 1 done, 0 under way, 1 missing" in printed
    rows = json.loads((tmp_path / "t" / "table.json").read_text())["rows"]
    assert [row["attention"] for row in rows] == ["none", "cbam-after.1_4.0a538c"]


def submit_table(slurm: dict[str, str], preset: Path, folder: Path, end: str) -> tuple[str, str]:
    """Return submit_table.sh's output, and the logs of its jobs once the table's job is in the state `end`."""
    logs = folder / end
    logs.mkdir()
    environment = slurm | {"SBATCH_OUTPUT": f"{logs}/%x-%j.log", "TMPDIR": str(folder)}
    printed = ask(environment, "bash", "scripts/slurm/submit_table.sh", f"sweep={preset}")
    job = next(line for line in printed.splitlines() if line.startswith("table: job ")).split()[2].rstrip(",")
    wait_for(slurm, job, end)
    return printed, "".join(log.read_text() for log in sorted(logs.iterdir()))


def test_a_multirun_becomes_jobs(slurm: dict[str, str], folders: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs hydra-submitit-launcher")
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=5"]
    given = [*SMALL, "model.weights=null", "seed=51,52", f"run.root={tmp_path}/runs"]
    command = [sys.executable, "train.py", "-m", *launcher, *arguments(folders, *given, "recipe.epochs=1")]
    ask(slurm, *command[:3], f"hydra.launcher.submitit_folder={tmp_path}/submitit", *command[3:])
    for seed in (51, 52):
        run = tmp_path / "runs" / "small" / "tests.networks.small" / f"seed{seed}"
        assert json.loads((run / "record.json").read_text())["status"] == "finished"
    assert len(list((tmp_path / "submitit").glob("*_log.out"))) == 2
