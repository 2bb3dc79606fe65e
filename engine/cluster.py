"""Which process of a run this one is, and where the processes meet: from torchrun's variables or Slurm's."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.errors import UserError


@dataclass(frozen=True)
class ClusterEnvironment:
    """This process among those of a run; alone by default.

    Attributes:
        rank: of this process, from 0.
        world_size: how many there are.
        local_rank: of this process among those on its machine.
        processors: how many of the machine's processors are this process's.
        address: of the machine of rank 0.
        port: on which the processes meet there.
        hosted: whether the launcher itself listens on that port; otherwise rank 0 does.
        attempt: how many times the launcher has started the processes anew.
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
    """What the variables say that torchrun, or a step that srun started, gives its processes; alone without either.

    Raises:
        UserError: if Slurm does not tell the address of the first node.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _by_torchrun(environment)
    # A batch script sees its job's variables as well, though it is no task; only those of a step count.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _by_srun(environment)
    return ClusterEnvironment()


def slurm_start() -> str:
    """Return the job of Slurm that this process belongs to and how often it was requeued; empty outside Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"job {job}, start {os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else ""


def is_earlier_start(other: str) -> bool:
    """Return whether `other` is another start of this job, which has ended: Slurm requeues no job that runs."""
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
    # Jobs that share a node have different numbers. Below 32768, where Linux takes ports for outgoing connections.
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
    """The address of the first node of a list such as `gpu[07-09,12]`, which need not be its name."""
    try:
        names = _scontrol("show", "hostnames", nodes).split()
        found = re.search(r"\bNodeAddr=(\S+)", _scontrol("show", "node", "--oneliner", names[0]))
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f"Slurm does not tell the address of the first node of {nodes} ({error}); set MASTER_ADDR."
        ) from error
    return found[1] if found else names[0]


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=True).stdout
