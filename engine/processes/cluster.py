"""The rank of this process and the address at which the processes meet, from torchrun's or Slurm's variables."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.errors import UserError


@dataclass(frozen=True)
class ClusterEnvironment:
    """This process among the processes of a run; by default, the only one.

    Attributes:
        rank: rank of this process, from 0.
        world_size: number of processes.
        local_rank: rank of this process on its machine.
        processors: number of the machine's processors that this process may use.
        address: address of the machine of rank 0.
        port: port on that machine at which the processes meet.
        hosted: whether the launcher itself listens on that port; otherwise rank 0 does.
        attempt: number of times that the launcher has restarted the processes.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    processors: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    address: str = ""
    port: int = 0
    hosted: bool = False
    attempt: int = 0


def world_info_from_env(environment: Mapping[str, str]) -> ClusterEnvironment:
    """Return the environment of a process started by torchrun or srun; without their variables, a single process.

    Raises:
        UserError: if Slurm does not report the address of the first node.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _by_torchrun(environment)
    # A batch script also has its job's variables but is not a task, so only a step's variables count.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _by_srun(environment)
    return ClusterEnvironment()


def slurm_start() -> str:
    """Return this process's Slurm job and the number of times it was requeued; empty outside Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"job {job}, start {os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else ""


def is_earlier_start(other: str) -> bool:
    """Return whether `other` is an earlier start of this job. It has ended: Slurm does not requeue a running job."""
    here = slurm_start()
    return bool(here) and other != here and other.partition(",")[0] == here.partition(",")[0]


def _by_torchrun(environment: Mapping[str, str]) -> ClusterEnvironment:
    return ClusterEnvironment(
        rank=int(environment["RANK"]),
        world_size=int(environment["WORLD_SIZE"]),
        local_rank=int(environment.get("LOCAL_RANK", "0")),
        processors=max(1, ClusterEnvironment().processors // int(environment.get("LOCAL_WORLD_SIZE", "1"))),
        address=environment.get("MASTER_ADDR", "localhost"),
        port=int(environment.get("MASTER_PORT", "29500")),
        hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def _by_srun(environment: Mapping[str, str]) -> ClusterEnvironment:
    # Jobs that share a node have different IDs. Linux uses ports from 32768 up for outgoing connections.
    port = 12000 + (int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])) % 20000
    return ClusterEnvironment(
        rank=int(environment["SLURM_PROCID"]),
        world_size=int(environment["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        processors=int(environment.get("SLURM_CPUS_PER_TASK", ClusterEnvironment().processors)),
        address=environment.get("MASTER_ADDR") or _address_of_first(environment["SLURM_STEP_NODELIST"]),
        port=int(environment.get("MASTER_PORT", port)),
    )


def _address_of_first(nodes: str) -> str:
    """Return the address of the first node of a list such as `gpu[07-09,12]`, which can differ from its name."""
    try:
        names = _scontrol("show", "hostnames", nodes).split()
        found = re.search(r"\bNodeAddr=(\S+)", _scontrol("show", "node", "--oneliner", names[0]))
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f"Slurm does not report the address of the first node of {nodes} ({error}); set MASTER_ADDR."
        ) from error
    return found[1] if found else names[0]


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=True).stdout
