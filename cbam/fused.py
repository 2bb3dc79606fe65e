"""CBAM in nine passes over the feature map, keeping none but its input: for CUDA, where it needs Triton.

With x [N, C, H, W], P = H W, channel gate m [N, C], spatial gate s [N, 1, H, W] and a constant gain k:

    forward   a, b = mean, max of x over positions      m = sigmoid(MLP(a) + MLP(b))
              u, v = mean, max of m x over channels     s = sigmoid(conv([u; v]))        y = k s m x

    backward  of g = dL/dy, with j(p) and i(c) where the maxima over channels and positions are attained:
              dL/ds = k sum_c g m x, and through the sigmoid and the convolution du, dv
              dL/dm = sum_p x (k s g + du / C + [c = j(p)] dv), and through the sigmoid and the MLP da, db
              dL/dx = m (k s g + du / C + [c = j(p)] dv) + da / P + [p = i(c)] db

Forward the map is read three times and written once; backward x is read twice, g twice, and the gradient written. What
is between, gates and pooled vectors, is small and left to PyTorch.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cbam.checks import require_feature_map

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def accepts(x: Tensor, gain: Tensor | float) -> bool:
    """Whether the kernels take this input: on CUDA, of an ordinary dtype, indexed by 32 bits within an image."""
    return (
        x.is_cuda
        and x.dtype in DTYPES
        and x.numel() > 0
        and x[0].numel() < 2**31
        and x[0, 0].numel() <= 64 * 65_535  # CUDA starts so many blocks, of 64 positions
        and not (isinstance(gain, Tensor) and gain.requires_grad)
    )


def refine(x: Tensor, mlp: nn.Sequential, conv: nn.Conv2d, gain: Tensor | float) -> Tensor:
    """`CBAM.refine` in the default order and poolings: [N, C, H, W] -> [N, C, H, W] in the dtype of x.

    Gates and pooled values are fp32, also under autocast. The modules of the gates are not called, so their hooks do
    not run. It has a first derivative backward; none forward, none for the gain, and no second one.

    Args:
        x: a feature map that `accepts` accepts.
        mlp: of the channel gate: a 1x1 convolution, a ReLU, a 1x1 convolution.
        conv: of the spatial gate.
        gain: a constant scalar.

    Raises:
        ValueError: for an input that is not a non-empty [N, C, H, W].
    """
    first, last = mlp[0], mlp[2]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    require_feature_map(x, first.in_channels)
    if not x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()
    gain = torch.as_tensor(gain, dtype=torch.float32, device=x.device)
    refined, *_ = _refine(x, first.weight, first.bias, last.weight, last.bias, conv.weight, gain)
    return refined


@torch.library.custom_op("cbam::refine", mutates_args=())
def _refine(
    x: Tensor,
    first: Tensor,
    first_bias: Tensor | None,
    last: Tensor,
    last_bias: Tensor | None,
    kernel: Tensor,
    gain: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The refined map, and what the backward pass needs: both gates, what they were pooled from, and where."""
    from cbam import kernels  # imports Triton, which the plain module does without

    with torch.autocast(x.device.type, enabled=False):
        pooled, position = kernels.pool_positions(x)
        hidden = F.relu(F.linear(pooled, _matrix(first), _float(first_bias)))
        channel_gate = torch.sigmoid(F.linear(hidden, _matrix(last), _float(last_bias)).sum(0))
        planes, channel = kernels.pool_channels(x, channel_gate)
        spatial_gate = torch.sigmoid(F.conv2d(planes, kernel.float(), padding=kernel.shape[-1] // 2))
        refined = kernels.scale(x, channel_gate, gain * spatial_gate)
    return refined, channel_gate, spatial_gate, pooled, position, planes, channel


@torch.library.custom_op("cbam::refine_backward", mutates_args=())
def _refine_backward(
    gradient: Tensor,
    x: Tensor,
    first: Tensor,
    first_bias: Tensor | None,
    last: Tensor,
    kernel: Tensor,
    gain: Tensor,
    channel_gate: Tensor,
    spatial_gate: Tensor,
    pooled: Tensor,
    position: Tensor,
    planes: Tensor,
    channel: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of both layers of the MLP, weight and bias, and of the convolution."""
    from cbam import kernels

    with torch.autocast(x.device.type, enabled=False):
        factors = channel_gate, gain * spatial_gate
        from_scale, spatial_gradient = kernels.factor_gradients(gradient, x, *factors)
        logits_gradient = gain * spatial_gradient * spatial_gate * (1 - spatial_gate)
        plane_gradients, kernel_gradient = _convolution_gradients(logits_gradient, planes, kernel.float())

        channel_gradient = from_scale + kernels.gate_gradient(x, plane_gradients, channel)
        sum_gradient = channel_gradient * channel_gate * (1 - channel_gate)  # of MLP(a) + MLP(b): the same for both
        hidden = F.relu(F.linear(pooled, _matrix(first), _float(first_bias)))
        hidden_gradient = (sum_gradient @ _matrix(last)) * (hidden > 0)
        pooled_gradients = hidden_gradient @ _matrix(first)

        x_gradient = kernels.input_gradient(gradient, *factors, plane_gradients, channel, pooled_gradients, position)
        return (
            x_gradient,
            (hidden_gradient.flatten(0, 1).T @ pooled.flatten(0, 1)).reshape(first.shape).to(first.dtype),
            hidden_gradient.sum((0, 1)).to(first.dtype),
            (sum_gradient.T @ hidden.sum(0)).reshape(last.shape).to(last.dtype),
            (2 * sum_gradient.sum(0)).to(last.dtype),
            kernel_gradient.to(kernel.dtype),
        )


def _convolution_gradients(gradient: Tensor, planes: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    padding = [kernel.shape[-1] // 2] * 2
    mask = [True, True, False]
    of_planes, of_kernel, _ = torch.ops.aten.convolution_backward(
        gradient, planes, kernel, None, [1, 1], padding, [1, 1], False, [0, 0], 1, mask
    )
    return of_planes.contiguous(), of_kernel


def _matrix(weight: Tensor) -> Tensor:
    """The weight of a 1x1 convolution as the matrix that it is, fp32."""
    return weight.flatten(1).float()


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


@_refine.register_fake
def _refine_shapes(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    n, c, h, w = x.shape
    channel_gate = x.new_empty(n, c, dtype=torch.float32)
    spatial_gate = x.new_empty(n, 1, h, w, dtype=torch.float32)
    pooled = x.new_empty(2, n, c, dtype=torch.float32)
    position = x.new_empty(n, c, dtype=torch.int32)
    planes = x.new_empty(n, 2, h, w, dtype=torch.float32)
    channel = x.new_empty(n, h, w, dtype=torch.int32)
    return torch.empty_like(x), channel_gate, spatial_gate, pooled, position, planes, channel


@_refine_backward.register_fake
def _gradient_shapes(_: Tensor, x: Tensor, first: Tensor, __: Any, last: Tensor, kernel: Tensor, *___: Any) -> Any:
    biases = first.new_empty(first.shape[0]), last.new_empty(last.shape[0])
    like = torch.empty_like
    return like(x), like(first), biases[0], like(last), biases[1], like(kernel)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, first, first_bias, last, last_bias, kernel, gain = inputs
    ctx.biases = first_bias is not None, last_bias is not None
    ctx.save_for_backward(x, first, first_bias, last, kernel, gain, *output[1:])


def _differentiate(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing unpacks them only once
    layout = torch.contiguous_format if saved[0].is_contiguous() else torch.channels_last
    of = _refine_backward(gradient.contiguous(memory_format=layout), *saved)
    first_bias, last_bias = (of[i] if given else None for i, given in zip((2, 4), ctx.biases, strict=True))
    return of[0], of[1], first_bias, of[3], last_bias, of[5], None


_refine.register_autograd(_differentiate, setup_context=_keep)
