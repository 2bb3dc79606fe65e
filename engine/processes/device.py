"""The device and precision of a configuration, and the transfer of tensors to the device."""

import socket
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.processes.distributed import ProcessGroup

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str, group: ProcessGroup) -> torch.device:
    """Return this process's device; `auto` is CUDA if available, one device for each process of a machine.

    Raises:
        UserError: if CUDA is requested but unavailable, or there are fewer devices than processes.
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
            f"Process {local_rank + 1} on this machine has no CUDA device of its own (torch sees {count}); "
            "start at most one process per device."
        )
    # A launcher may expose to each process only its own device.
    device = torch.device("cuda", local_rank if count > 1 else 0)
    torch.cuda.set_device(device)
    require_one_each(
        group.all_gather_object((socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)))
    )
    return device


def require_one_each(owned: Sequence[tuple[str, str]]) -> None:
    """Reject processes that share a device, which NCCL does not support.

    Args:
        owned: machine and device of each process.
    """
    for machine, uuid in owned:
        if owned.count((machine, uuid)) > 1:
            raise UserError(
                f"Several processes on {machine} use the same CUDA device ({uuid}); start at most one process per "
                "device."
            )


def to_device(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """Move a model to the device, with its convolution weights in the given memory format."""
    return model.to(device).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class Transfer:
    """Copy of host tensors to the device, overlapped with computation on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return a copy on the device; the tensor may be overwritten as soon as this returns."""
        if self.stream is None:
            return tensor.clone()
        with torch.cuda.stream(self.stream):
            copy = tensor.pin_memory().to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        copy.record_stream(current)  # keeps its memory from being reused during the computation
        return copy
