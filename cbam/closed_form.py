"""CBAM with closed-form gradients: few passes over the feature map; the input is the only map saved.

With x [N, C, H, W], P = H W, channel gate m [N, C], spatial gate s [N, 1, H, W] and a constant gain k:

    forward   a, b = mean, max of x over positions      m = sigmoid(MLP(a) + MLP(b))
              u, v = mean, max of m x over channels     s = sigmoid(conv([u; v]))        y = k s m x

    backward  of g = dL/dy, where channel j(p) and position i(c) attain the maxima:
              dL/ds = k sum_c g m x, then du, dv through the sigmoid and the convolution
              dL/dm = sum_p x (k s g + du / C + [c = j(p)] dv), then da, db through the sigmoid and the MLP
              dL/dx = m (k s g + du / C + [c = j(p)] dv) + da / P + [p = i(c)] db

A pass reads or writes a feature map. The passes have three implementations: `cbam.passes` (PyTorch operations),
`cbam.traced_passes` (the same for torch.compile) and `cbam.fused_passes` (Triton kernels for CUDA). The kernels read
the map three times forward and write it once; backward, they read x and g twice each and write the gradient. Compiled,
backward reads g three times. The gates and the gradients of the pooled values are small and computed here for all.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.torch_version import TorchVersion

from cbam import passes, traced_passes
from cbam.checks import is_transformed, require_feature_map
from cbam.convolution import convolution_gradients, in_full_precision
from cbam.passes import gate_dtype

# Gradients of the closed form traced by torch.compile are correct in torch 2.14, and wrong in 2.11.
IS_TRACEABLE = TorchVersion(torch.__version__) >= TorchVersion("2.14")
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def accepts(x: Tensor, gain: Tensor | float) -> bool:
    """Return whether the closed form supports this call: a non-empty map, no gradient for the gain, no transform."""
    is_gain_trained = isinstance(gain, Tensor) and gain.requires_grad
    return x.numel() > 0 and x.is_floating_point() and not is_gain_trained and not is_transformed()


def compiles_modules(x: Tensor) -> bool:
    """Return whether torch.compile traces this call and should trace the gates' modules instead of the closed form."""
    return torch.compiler.is_compiling() and (x.is_cpu or not IS_TRACEABLE)


def kernels_accept(x: Tensor) -> bool:
    """Return whether the Triton kernels support this input: on CUDA, of `KERNEL_DTYPES`, with 32-bit image offsets."""
    return (
        x.is_cuda
        and x.dtype in KERNEL_DTYPES
        and x[0].numel() < 2**31
        and max(len(x), x[0, 0].numel() // 8) <= 65_535  # CUDA's limit on blocks: of an image, of 8 positions or more
    )


def refine(
    x: Tensor,
    first: Tensor,
    first_bias: Tensor | None,
    last: Tensor,
    last_bias: Tensor | None,
    kernel: Tensor,
    scale: Tensor | None = None,
    gain: Tensor | float = 1.0,
    fused: bool = False,
) -> Tensor:
    """Return the refined map of a CBAM in its default order and poolings, without a norm, in the dtype of x.

    Gates and pooled values are fp32 (fp64 for an fp64 map), even under autocast or with TF32; compiled without the
    kernels, their products use TF32 if the program allows it. Supports first derivatives in reverse mode only, and no
    gradient for the gain.

    Args:
        x: [N, C, H, W].
        first, first_bias: weight [hidden, C, 1, 1] and bias of the MLP's first layer.
        last, last_bias: weight [C, hidden, 1, 1] and bias of the MLP's last layer.
        kernel: weight of the spatial gate's convolution, [1, 2, k, k].
        scale: [2], divides the mean and the maximum over positions; None for ones.
        gain: scalar.
        fused: whether to run the passes as Triton kernels.

    Raises:
        ValueError: if x is not [N, C, H, W] with at least one channel and position.
    """
    require_feature_map(x, first.shape[1])
    if not x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()
    if isinstance(gain, Tensor):
        gain = gain.to(x.device, gate_dtype(x))
    else:
        gain = torch.full((), gain, dtype=gate_dtype(x), device=x.device)  # on CUDA, a copy would wait for the device
    return _Refine.apply(x, first, first_bias, last, last_bias, kernel, scale, gain, fused)


def _passes(fused: bool) -> ModuleType:
    if not fused:
        return traced_passes if torch.compiler.is_compiling() else passes
    from cbam import fused_passes  # imports Triton, which nothing else requires

    return fused_passes


def _forward(
    x: Tensor,
    first: Tensor,
    first_bias: Tensor | None,
    last: Tensor,
    last_bias: Tensor | None,
    kernel: Tensor,
    scale: Tensor | None,
    gain: Tensor,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the refined map and the tensors for backward: gates, their pooled inputs, argmax indices, hidden units."""
    over, dtype = _passes(fused), gate_dtype(x)
    refined = torch.empty_like(x)
    with in_full_precision(x):
        pooled, position = over.pool_positions(x)
        pooled = _divide(pooled, scale)
        hidden = F.relu(F.linear(pooled, _matrix(first, dtype), _cast(first_bias, dtype)))
        channel_gate = torch.sigmoid(F.linear(hidden, _matrix(last, dtype), _cast(last_bias, dtype)).sum(0))
        planes, channel = over.pool_channels(x, channel_gate, refined)
        spatial_gate = torch.sigmoid(F.conv2d(planes, kernel.to(dtype), padding=kernel.shape[-1] // 2))
        over.scale(x, channel_gate, gain * spatial_gate, refined)
    return refined, channel_gate, spatial_gate, pooled, position, hidden, planes, channel


def _backward(
    gradient: Tensor,
    x: Tensor,
    first: Tensor,
    last: Tensor,
    kernel: Tensor,
    scale: Tensor | None,
    gain: Tensor,
    channel_gate: Tensor,
    spatial_gate: Tensor,
    position: Tensor,
    hidden: Tensor,
    planes: Tensor,
    channel: Tensor,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, of the outputs of both MLP layers, and of the convolution's weight."""
    over, dtype = _passes(fused), gate_dtype(x)
    x_gradient = torch.empty_like(x)
    with in_full_precision(x):
        factors = channel_gate, gain * spatial_gate
        from_scale, spatial_gradient = over.factor_gradients(gradient, x, *factors, x_gradient)
        logits_gradient = torch.ops.aten.sigmoid_backward(gain * spatial_gradient, spatial_gate)
        plane_gradients, kernel_gradient = convolution_gradients(logits_gradient, planes, kernel.to(dtype))

        channel_gradient = from_scale + over.gate_gradient(x, plane_gradients, channel)
        # Of MLP(a) + MLP(b), and thus of each.
        sum_gradient = torch.ops.aten.sigmoid_backward(channel_gradient, channel_gate)
        hidden_gradient = torch.ops.aten.threshold_backward(sum_gradient @ _matrix(last, dtype), hidden, 0)
        pooled_gradients = _divide(hidden_gradient @ _matrix(first, dtype), scale)

        over.input_gradient(gradient, *factors, plane_gradients, channel, pooled_gradients, position, x_gradient)
    return x_gradient, hidden_gradient, sum_gradient, kernel_gradient


# The kernels as operators, which torch.compile calls without looking into them. A call of an operator takes longer.
_refine = torch.library.custom_op("cbam::refine", _forward, mutates_args=())
_refine_backward = torch.library.custom_op("cbam::refine_backward", _backward, mutates_args=())


def _divide(pooled: Tensor, scale: Tensor | None) -> Tensor:
    """Divide pooled vectors [2, N, C], or their gradients, by the scales [2]."""
    return pooled if scale is None else pooled / scale[:, None, None].to(pooled.dtype)


def _is_opaque(fused: bool) -> bool:
    return fused and torch.compiler.is_compiling()


def _like(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of a weight in its shape, dtype and memory format."""
    return torch.empty_like(weight).copy_(gradient.view(weight.shape))


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight of a 1x1 convolution as a matrix."""
    return weight.flatten(1).to(dtype)


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


@_refine.register_fake
def _refine_shapes(x: Tensor, first: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    n, c, h, w = x.shape
    dtype, index = gate_dtype(x), torch.int32 if arguments[-1] else torch.int64
    channel_gate = x.new_empty(n, c, dtype=dtype)
    spatial_gate = x.new_empty(n, 1, h, w, dtype=dtype)
    pooled = x.new_empty(2, n, c, dtype=dtype)
    position = x.new_empty(n, c, dtype=index)
    hidden = x.new_empty(2, n, first.shape[0], dtype=dtype)
    planes = x.new_empty(n, 2, h, w, dtype=dtype)
    channel = x.new_empty(n, h, w, dtype=index)
    return torch.empty_like(x), channel_gate, spatial_gate, pooled, position, hidden, planes, channel


@_refine_backward.register_fake
def _gradient_shapes(_: Tensor, x: Tensor, first: Tensor, __: Tensor, kernel: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    gate: Tensor = rest[2]  # after scale and gain
    hidden_gradient = gate.new_empty(2, len(gate), first.shape[0])
    return torch.empty_like(x), hidden_gradient, torch.empty_like(gate), gate.new_empty(kernel.shape)


class _Refine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        """Run the forward pass and save the inputs and results that backward needs."""
        first, first_bias, last, last_bias, kernel, scale, gain, ctx.fused = arguments
        refined, *kept = (_refine if _is_opaque(ctx.fused) else _forward)(x, *arguments)
        ctx.is_contiguous = x.is_contiguous()  # asked in backward, torch.compile would copy the map for an answer
        ctx.biases = first_bias is not None, last_bias is not None
        ctx.save_for_backward(x, first, last, kernel, scale, gain, *kept)
        return refined

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # backward(create_graph=True)
            raise RuntimeError(
                "Closed-form CBAM has no second derivative; to use create_graph=True, "
                "set has_closed_form=False on every CBAM of the network."
            )
        x, first, last, kernel, scale, gain, *kept = ctx.saved_tensors
        gate, spatial_gate, pooled, position, hidden, planes, channel = kept
        layout = torch.contiguous_format if ctx.is_contiguous else torch.channels_last
        gradient = gradient.contiguous(memory_format=layout)
        inputs = gradient, x, first, last, kernel, scale, gain, gate, spatial_gate, position, hidden, planes, channel
        differentiate = _refine_backward if _is_opaque(ctx.fused) else _backward
        of_x, of_hidden, of_sum, of_kernel = differentiate(*inputs, ctx.fused)
        with in_full_precision(x):
            of_first = _like(first, of_hidden.flatten(0, 1).T @ pooled.flatten(0, 1))
            of_last = _like(last, of_sum.T @ hidden.sum(0))
        of_first_bias = of_hidden.sum((0, 1)).to(first.dtype) if ctx.biases[0] else None
        of_last_bias = (2 * of_sum.sum(0)).to(last.dtype) if ctx.biases[1] else None  # added in both MLP(a) and MLP(b)
        return of_x, of_first, of_first_bias, of_last, of_last_bias, _like(kernel, of_kernel), None, None, None
