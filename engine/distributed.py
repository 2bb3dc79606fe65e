"""The processes that train one network together, a device each, over PyTorch's process group."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from engine.cluster import ClusterEnvironment
from engine.errors import UserError

# For the others to start, and then at each step: the file system of a busy cluster may take minutes.
PATIENCE = timedelta(minutes=30)

_ROLL_CALL_PATIENCE = timedelta(seconds=20)  # among processes that all ran out of patience

T = TypeVar("T")


class ProcessGroup:
    """The processes of a run as one of them sees them; of a single process by default, which nothing here changes."""

    def __init__(self, cluster: ClusterEnvironment | None = None) -> None:
        self.cluster = cluster or ClusterEnvironment()
        self.rank, self.world_size = self.cluster.rank, self.cluster.world_size

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def shard(self, batch: Sequence[T]) -> Sequence[T]:
        """This process's part of a batch; the parts one after the other, in the order of the ranks, make the whole."""
        size = len(batch) // self.world_size
        return batch[self.rank * size : (self.rank + 1) * size]

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the values' device, the same bits each time."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def all_reduce_max(self, *values: int) -> list[int]:
        """The highest over all processes of each value, agreed between the hosts: no device is waited for."""
        if self.world_size == 1:
            return list(values)
        agreed = torch.tensor(values)
        distributed.all_reduce(agreed, distributed.ReduceOp.MAX)
        return [int(value) for value in agreed]

    def barrier(self) -> None:
        """Until all processes are here."""
        self.all_reduce_max(0)

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all processes, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: T) -> T:
        """The first process's value; those of the others do not count."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        distributed.broadcast_object_list(box, device=torch.device("cpu"))
        first: T = box[0]
        return first

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the block on the main process first; the others follow, and find what it has stored."""
        if not self.is_main_process:
            self.barrier()
        yield
        if self.is_main_process:
            self.barrier()

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's running statistics, as they are after the last step."""
        if self.world_size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def wrap_ddp(self, model: nn.Module, deterministic: bool) -> nn.Module:
        """The model with its gradients averaged over all processes.

        Args:
            model: with the same weights on all.
            deterministic: whether a resumed run has to repeat the bits of one that was not interrupted.
        """
        if self.world_size == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        # Otherwise gradients are grouped anew after a process's first step. The sums of more than two numbers depend
        # on the grouping, so that this first step would not be what it is in a run that goes on.
        keeps_groups = deterministic and self.world_size > 2
        return DistributedDataParallel(model, gradient_as_bucket_view=True, find_unused_parameters=keeps_groups)


def accumulating(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Around each part of a step's work: the gradients travel with the last part alone."""
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


@contextmanager
def init_distributed(
    cluster: ClusterEnvironment, purpose: str, patience: timedelta = PATIENCE
) -> Iterator[ProcessGroup]:
    """Meet the other processes of the run; leave them at the end.

    Args:
        cluster: of this process among them.
        purpose: what they meet for, the same on all; one after the other, they may meet for several.
        patience: how long to wait for the others, at the start and at each step.

    Raises:
        UserError: naming the processes that did not come, or if another one ended on the way.
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
        # Without destroying the group: work that waits for a lost process would never end.
        sentence = f"{_lost(error, store, cluster)} Run the same command again to resume from the last checkpoint."
        raise UserError(sentence) from error
    distributed.destroy_process_group()


def _reach_first(cluster: ClusterEnvironment, purpose: str, patience: timedelta) -> Store:
    """What all processes read and write, which the first one keeps."""
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
            f"Process {cluster.rank} of {cluster.world_size} does not reach the first one at "
            f"{cluster.address}:{cluster.port} ({str(error).splitlines()[0]}); see whether that one has started, or "
            "set MASTER_ADDR and MASTER_PORT."
        ) from error
    return PrefixStore(f"{purpose} {cluster.attempt}", server)


def _await_all(store: Store, cluster: ClusterEnvironment, patience: timedelta) -> None:
    absent = _roll_call("start", store, cluster, patience)
    if absent:
        raise UserError(
            f"Of {cluster.world_size} processes, {_listed(absent)} did not start within "
            f"{patience.total_seconds():.0f} s; see what they or their machines printed."
        )


def _roll_call(name: str, store: Store, cluster: ClusterEnvironment, patience: timedelta) -> list[int]:
    """The ranks that did not answer in time."""
    store.set(f"{name} {cluster.rank}", "here")
    absent = list(range(cluster.world_size))
    deadline = time.monotonic() + patience.total_seconds()
    while absent and time.monotonic() < deadline:
        absent = [rank for rank in absent if not store.check([f"{name} {rank}"])]
        time.sleep(0.1)
    return absent


def _lost(error: RuntimeError, store: Store, cluster: ClusterEnvironment) -> str:
    """A sentence on which process is gone, as far as can be told."""
    reason = str(error).splitlines()[0]
    if "timed out" not in reason.lower() and "timeout" not in reason.lower():
        return (
            f"Process {cluster.rank} of {cluster.world_size} lost another one, whose own message says why ({reason})."
        )
    try:
        absent = _roll_call("time out", store, cluster, _ROLL_CALL_PATIENCE)
    except RuntimeError:
        absent = [0]  # it has the store
    return f"Process {cluster.rank} of {cluster.world_size} timed out waiting for {_listed(absent) or 'another one'}."


def _listed(group: Sequence[int]) -> str:
    return f"process{'es' if len(group) > 1 else ''} {', '.join(map(str, group))}" if group else ""
