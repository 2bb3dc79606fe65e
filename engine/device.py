"""The device and precision that a configuration asks for, and how tensors get there."""

import socket
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.distributed import ProcessGroup
from engine.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str, group: ProcessGroup) -> torch.device:
    """`auto` is CUDA where there is one; each process of a machine takes its own.

    Raises:
        UserError: if CUDA is asked for and absent, or there are fewer devices than processes.
    """
    local_rank = group.cluster.local_rank
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("runtime.device=cuda, but torch sees no CUDA device; set runtime.device=cpu or auto.")
    if not available or name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if 1 < count <= local_rank:
        raise UserError(
            f"Process {local_rank + 1} of this machine has no CUDA device of its own, torch sees {count}; "
            "start no more processes than devices."
        )
    # A launcher may show each process its own device alone.
    device = torch.device("cuda", local_rank if count > 1 else 0)
    torch.cuda.set_device(device)
    require_one_each(
        group.all_gather_object((socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)))
    )
    return device


def require_one_each(owned: Sequence[tuple[str, str]]) -> None:
    """Refuse processes that share a device, which NCCL does not support.

    Args:
        owned: of each process its machine and the device that it took.
    """
    for machine, uuid in owned:
        if owned.count((machine, uuid)) > 1:
            raise UserError(
                f"Several processes on {machine} see one and the same CUDA device ({uuid}); start no more processes "
                "than devices."
            )


def to_device(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """The model on the device, its convolutions' weights in the memory format that is fastest there."""
    return model.to(device).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class Transfer:
    """Copies tensors of the host to the device; on CUDA while it computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensor: Tensor) -> Tensor:
        """A copy: the tensor may be written to as soon as this returns."""
        if self.stream is None:
            return tensor.clone()
        with torch.cuda.stream(self.stream):
            copy = tensor.pin_memory().to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        copy.record_stream(current)  # its memory is not given away while the computation reads it
        return copy
