"""PyTorch operations for torch.compile: the passes over the feature map of `cbam.closed_form`, as in `cbam.passes`.

Inductor generates the kernels. It reads a map once for several reductions only if they precede all operations on their
results, and writes an intermediate map to memory if two operations use it and it depends on more than four tensors.
The operations are ordered and written accordingly. Gate-sized tensors are fp32 (fp64 for an fp64 map), and maps are not
rounded in between.
"""

import torch
from torch import Tensor

from cbam.passes import gate_dtype


def pool_positions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and maximum over positions, [2, N, C], and the maximum's first position, [N, C]. Reads x once."""
    values = x.to(gate_dtype(x)).flatten(2)
    maximum, position = values.max(2)
    return torch.stack([values.mean(2), maximum]), position.int()


def pool_channels(x: Tensor, gate: Tensor, _out: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and maximum of gate * x over channels, [N, 2, H, W], and the maximum's first channel, [N, H, W].

    Reads x once. The gate is [N, C].
    """
    values = x * gate[..., None, None]
    maximum, channel = values.max(1)
    return torch.stack([values.mean(1), maximum], dim=1), channel.int()


def scale(x: Tensor, channel_factor: Tensor, spatial_factor: Tensor, out: Tensor) -> None:
    """Write x times factors [N, C] and [N, 1, H, W] to ``out``. Reads x once and writes once."""
    out.copy_(x * channel_factor[..., None, None] * spatial_factor)


def factor_gradients(
    gradient: Tensor, x: Tensor, channel_factor: Tensor, spatial_factor: Tensor, _out: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `scale` with respect to its factors, [N, C] and [N, 1, H, W].

    Inductor computes the first with `gate_gradient`, so that the two read x and ``gradient`` twice.
    """
    product = gradient.to(gate_dtype(x)) * x
    of_positions = (product * channel_factor[..., None, None]).sum(1, keepdim=True)
    return (product * spatial_factor).sum((2, 3)), of_positions


def gate_gradient(x: Tensor, plane_gradients: Tensor, channel: Tensor) -> Tensor:
    """Return the gradient of `pool_channels` with respect to its gate, [N, C]. Reads x once."""
    return (x * _of_planes(plane_gradients, channel, x.shape[1])).sum((2, 3))


def input_gradient(
    gradient: Tensor,
    channel_factor: Tensor,
    spatial_factor: Tensor,
    plane_gradients: Tensor,
    channel: Tensor,
    pooled_gradients: Tensor,
    position: Tensor,
    out: Tensor,
) -> None:
    """Write the gradient with respect to x, through scale, pool_channels and pool_positions, to ``out``.

    Reads ``gradient`` once and writes once.
    """
    _, c, h, w = gradient.shape
    of_scaled = gradient * spatial_factor + _of_planes(plane_gradients, channel, c)
    of_mean, of_maximum = (values[..., None, None] for values in pooled_gradients)
    each = torch.arange(h * w, dtype=torch.int32, device=gradient.device).view(h, w)
    is_highest = each == position[..., None, None]
    of_pooled = of_mean / (h * w) + torch.where(is_highest, of_maximum, 0)
    out.copy_(of_scaled * channel_factor[..., None, None] + of_pooled)


def _of_planes(plane_gradients: Tensor, channel: Tensor, channels: int) -> Tensor:
    """Return the gradient of `pool_channels` with respect to gate * x, [N, C, H, W]."""
    of_mean, of_maximum = plane_gradients.split(1, dim=1)
    each = torch.arange(channels, dtype=torch.int32, device=channel.device)[:, None, None]
    return of_mean / channels + torch.where(each == channel[:, None], of_maximum, 0)
