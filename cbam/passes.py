"""PyTorch operations for any device and dtype: the passes over the feature map of `cbam.closed_form`.

Each pass works on whole maps, in place where possible: on a CPU, allocating memory costs more than arithmetic.
Gate-sized tensors are fp32 (fp64 for an fp64 map) and are rounded to the dtype of the map where the two are combined.
"""

import torch
from torch import Tensor

from cbam.maximum import maximum_of_channels, maximum_of_positions


def pool_positions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and maximum over positions, [2, N, C], and the maximum's first position, [N, C]."""
    maximum, position = maximum_of_positions(x)
    return torch.stack([x.mean((2, 3)), maximum]).to(gate_dtype(x)), position


def pool_channels(x: Tensor, gate: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and maximum of gate * x over channels, [N, 2, H, W], and the maximum's first channel, [N, H, W].

    Writes gate * x to ``out``, where `scale` expects it. The gate is [N, C].
    """
    torch.mul(x, _of_channels(gate, x), out=out)
    maximum, channel = maximum_of_channels(out)
    return torch.stack([out.mean(1), maximum], dim=1).to(gate_dtype(x)), channel


def scale(_x: Tensor, _channel_factor: Tensor, spatial_factor: Tensor, out: Tensor) -> None:
    """Write x times factors [N, C] and [N, 1, H, W] to ``out``, where `pool_channels` left x times the first."""
    out.mul_(spatial_factor.to(out.dtype))


def factor_gradients(
    gradient: Tensor, x: Tensor, channel_factor: Tensor, spatial_factor: Tensor, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `scale` with respect to its factors, [N, C] and [N, 1, H, W]. Overwrites ``out``."""
    product = torch.mul(gradient, x, out=out).flatten(2)
    spatial_gradient = torch.bmm(channel_factor[:, None].to(x.dtype), product)
    return _sum_positions(product, spatial_factor), spatial_gradient.view_as(spatial_factor).to(gate_dtype(x))


def gate_gradient(x: Tensor, plane_gradients: Tensor, channel: Tensor) -> Tensor:
    """Return the gradient of `pool_channels` with respect to its gate, [N, C]."""
    of_mean, of_maximum = plane_gradients[:, 0] / x.shape[1], plane_gradients[:, 1]
    gradient = _sum_positions(x.flatten(2), of_mean)
    attained = x.gather(1, channel[:, None])[:, 0] * of_maximum
    return _add_by_channel(gradient, channel.flatten(1), attained.flatten(1))


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

    Each scatter adds at most one value to an element, so that its order does not matter.
    """
    dtype, channels, positions = out.dtype, out.shape[1], out[0, 0].numel()
    of_mean, of_maximum = plane_gradients.to(dtype).split(1, dim=1)
    # Two operations: for a channels_last map, torch vectorizes at most one factor that is the same for all channels.
    torch.mul(gradient, spatial_factor.to(dtype), out=out).add_(of_mean / channels)
    out.scatter_add_(1, channel[:, None], of_maximum)
    pooled_mean, pooled_maximum = pooled_gradients
    torch.addcmul(_of_channels(pooled_mean / positions, out), out, _of_channels(channel_factor, out), out=out)
    out.flatten(2).scatter_add_(2, position[..., None], pooled_maximum[..., None].to(dtype))


def gate_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of gate-sized tensors: fp32, or fp64 for an fp64 map."""
    return torch.promote_types(x.dtype, torch.float32)


def _of_channels(factor: Tensor, x: Tensor) -> Tensor:
    return factor[..., None, None].to(x.dtype)


def _sum_positions(x: Tensor, weight: Tensor) -> Tensor:
    """Return the sum over the positions of x [N, C, P] times a weight of P values per image: [N, C]."""
    n, c, p = x.shape
    return torch.bmm(weight.reshape(n, 1, p).to(x.dtype), x.mT).view(n, c).to(gate_dtype(x))


def _add_by_channel(total: Tensor, channel: Tensor, values: Tensor) -> Tensor:
    """Add values [N, P] to the channels [N, P] of a total [N, C], in a fixed order."""
    if total.is_cuda:  # scatter_add_ adds atomically there; an accumulating index_put_ sorts first
        image = torch.arange(len(total), device=total.device)[:, None].expand_as(channel)
        return total.index_put_((image, channel), values, accumulate=True)
    return total.scatter_add_(1, channel, values)
