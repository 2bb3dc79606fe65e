"""The processes that train one network together, one device each, over PyTorch's process group."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from engine.errors import UserError
from engine.processes.cluster import ClusterEnvironment

# Timeout for the other processes to start, and for each step: a busy cluster's file system may take minutes.
PATIENCE = timedelta(minutes=30)

_ROLL_CALL_PATIENCE = timedelta(seconds=20)  # among processes that have all timed out

T = TypeVar("T")


class ProcessGroup:
    """The processes of a run, as seen by one of them. The default is a single process, which communicates nothing."""

    def __init__(self, cluster: ClusterEnvironment | None = None) -> None:
        self.cluster = cluster or ClusterEnvironment()
        self.rank, self.world_size = self.cluster.rank, self.cluster.world_size

    @property
    def is_main_process(self) -> bool:
        """True on the one process that writes files."""
        return self.rank == 0

    def shard(self, batch: Sequence[T]) -> Sequence[T]:
        """Return this process's part of a batch. Concatenated in the order of the ranks, the parts are the batch."""
        size = len(batch) // self.world_size
        return batch[self.rank * size : (self.rank + 1) * size]

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, on the values' device and with the same bits each time."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def all_reduce_max(self, *values: int) -> list[int]:
        """Return the maximum of each value over all processes, reduced on the CPU without waiting for a device."""
        if self.world_size == 1:
            return list(values)
        agreed = torch.tensor(values)
        distributed.all_reduce(agreed, distributed.ReduceOp.MAX)
        return [int(value) for value in agreed]

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        self.all_reduce_max(0)

    def all_gather_object(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: T) -> T:
        """Return the main process's value; the values of the others are ignored."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        distributed.broadcast_object_list(box, device=torch.device("cpu"))
        first: T = box[0]
        return first

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the block on the main process first; the others follow and find its stored results."""
        if not self.is_main_process:
            self.barrier()
        yield
        if self.is_main_process:
            self.barrier()

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy the main process's buffers, such as running statistics, to all processes."""
        if self.world_size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def wrap_ddp(self, model: nn.Module, deterministic: bool) -> nn.Module:
        """Return the model with its gradients averaged over all processes.

        Args:
            model: has the same weights on all processes.
            deterministic: whether a resumed run has to be bitwise equal to an uninterrupted one.
        """
        if self.world_size == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        # Otherwise DDP regroups the gradients after a process's first step. Sums over more than two processes depend
        # on the grouping, so that the first step after resuming would differ from an uninterrupted run's.
        keeps_groups = deterministic and self.world_size > 2
        return DistributedDataParallel(model, gradient_as_bucket_view=True, find_unused_parameters=keeps_groups)


def accumulating(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Return the context for one micro-batch of a step: gradients are averaged over the processes only
    in the last."""
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


@contextmanager
def init_distributed(
    cluster: ClusterEnvironment, purpose: str, patience: timedelta = PATIENCE
) -> Iterator[ProcessGroup]:
    """Join the other processes of the run, and leave the group at the end.

    Args:
        cluster: environment of this process.
        purpose: name of the group, the same on all processes; the processes may join several, one after the other.
        patience: timeout for the other processes, at the start and at each step.

    Raises:
        UserError: if processes did not start (the error names them), or another process ended early.
    """
    if cluster.world_size == 1:
        yield ProcessGroup(cluster)
        return
    store = _reach_first(cluster, purpose, patience)
    try:
        _await_all(store, cluster, patience)
        backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(
            backends, store=store, rank=cluster.rank, world_size=cluster.world_size, timeout=patience
        )
        yield ProcessGroup(cluster)
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        # The group is not destroyed: pending work would wait for the lost process forever.
        sentence = f"{_lost(error, store, cluster)} Run the same command again to resume from the last checkpoint."
        raise UserError(sentence) from error
    distributed.destroy_process_group()


def _reach_first(cluster: ClusterEnvironment, purpose: str, patience: timedelta) -> Store:
    """Return the key-value store of all processes. Either the launcher or process 0 hosts it."""
    try:
        server = TCPStore(
            cluster.address,
            cluster.port,
            is_master=cluster.rank == 0 and not cluster.hosted,
            timeout=patience,
            wait_for_workers=False,
        )
    except (distributed.DistNetworkError, distributed.DistStoreError, ValueError) as error:
        raise UserError(
            f"Process {cluster.rank} of {cluster.world_size} cannot reach process 0 at "
            f"{cluster.address}:{cluster.port} ({str(error).splitlines()[0]}); check that it has started, or set "
            "MASTER_ADDR and MASTER_PORT."
        ) from error
    return PrefixStore(f"{purpose} {cluster.attempt}", server)


def _await_all(store: Store, cluster: ClusterEnvironment, patience: timedelta) -> None:
    absent = _roll_call("start", store, cluster, patience)
    if absent:
        raise UserError(
            f"Of {cluster.world_size} processes, {_listed(absent)} did not start within "
            f"{patience.total_seconds():.0f} s; check their output and their machines."
        )


def _roll_call(name: str, store: Store, cluster: ClusterEnvironment, patience: timedelta) -> list[int]:
    """Return the ranks that did not answer in time."""
    store.set(f"{name} {cluster.rank}", "here")
    absent = list(range(cluster.world_size))
    deadline = time.monotonic() + patience.total_seconds()
    while absent and time.monotonic() < deadline:
        absent = [rank for rank in absent if not store.check([f"{name} {rank}"])]
        time.sleep(0.1)
    return absent


def _lost(error: RuntimeError, store: Store, cluster: ClusterEnvironment) -> str:
    """Return a sentence that names the lost process as far as it is known."""
    reason = str(error).splitlines()[0]
    if "timed out" not in reason.lower() and "timeout" not in reason.lower():
        process = f"Process {cluster.rank} of {cluster.world_size}"
        return f"{process} lost contact with another process ({reason}); see the error of that process."
    # Process 0 may host the store: if it ended first, the others could not finish their roll call and would name it.
    patience = _ROLL_CALL_PATIENCE * (1.5 if cluster.rank == 0 else 1)
    try:
        absent = _roll_call("time out", store, cluster, patience)
    except RuntimeError:
        absent = [0]  # the store has gone with it
    return (
        f"Process {cluster.rank} of {cluster.world_size} timed out waiting for {_listed(absent) or 'another process'}."
    )


def _listed(group: Sequence[int]) -> str:
    return f"process{'es' if len(group) > 1 else ''} {', '.join(map(str, group))}" if group else ""
