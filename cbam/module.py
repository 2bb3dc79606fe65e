"""The CBAM module; equations are numbered as in the paper."""

from torch import Tensor, nn

from cbam import closed_form
from cbam.channel import ChannelAttention
from cbam.checks import require_one_of, require_positive
from cbam.scaled_gate import ScaledGate
from cbam.spatial import SpatialAttention

ORDERS = ("channel_spatial", "spatial_channel", "parallel", "channel", "spatial")
SPATIAL_POOLINGS = ("mean_max", "conv")


class CBAM(nn.Module):
    """Channel gate, then spatial gate: F' = Mc(F) * F, F'' = Ms(F') * F' (equation 1).

    The defaults follow the paper's text. With both ``mlp_bias`` and ``spatial_norm`` it is the official implementation,
    whose parameter counts are those of the paper's tables.

    Args:
        in_planes: channels C of the feature map.
        ratio: reduction ratio of the channel gate's MLP.
        kernel_size: side of the spatial gate's convolution, odd.
        pooling: pooling of the channel gate: ``both``, ``avg`` or ``max`` (Table 1).
        mlp_bias: whether the channel gate's MLP has biases.
        spatial_pooling: ``mean_max``, or ``conv``: a learned 1x1 convolution to one plane (Table 2).
        spatial_norm: whether a BatchNorm follows the spatial gate's convolution.
        order: ``channel_spatial``, ``spatial_channel``, ``parallel`` (both gates computed from F; the paper does
            not specify their combination, here F'' = Mc(F) * Ms(F) * F), or one gate alone: ``channel``, ``spatial``
            (Tables 2, 3).

    Raises:
        ValueError: in the constructor if an option of a gate in ``order`` is out of range; in a call if the input is
            not [N, in_planes, H, W] with at least one channel and position (the spatial gate does not check C).

    Attributes:
        has_closed_form: whether training uses `cbam.closed_form`, which saves no feature map for backward except its
            input, and takes about half the time of autograd on a CPU, or less. True for the default order and poolings
            without a norm.
        fused: whether the closed form runs Triton kernels on CUDA. Default: False.

    The closed form is used in training only, and computes the gates without calling their modules. The modules are
    called in evaluation, under torch.compile on a CPU or before torch 2.14, and if one of them has a hook.

    >>> refined, residual = CBAM(64)(torch.rand(2, 64, 14, 14))
    >>> refined.shape, residual.shape
    (torch.Size([2, 64, 14, 14]), torch.Size([2, 64, 14, 14]))
    """

    fused = False

    def __init__(
        self,
        in_planes: int,
        ratio: int = 16,
        kernel_size: int = 7,
        *,
        pooling: str = "both",
        mlp_bias: bool = False,
        spatial_pooling: str = "mean_max",
        spatial_norm: bool = False,
        order: str = "channel_spatial",
    ) -> None:
        super().__init__()
        require_positive("in_planes", in_planes)
        require_one_of("spatial_pooling", spatial_pooling, SPATIAL_POOLINGS)
        require_one_of("order", order, ORDERS)
        self.order = order
        if order != "spatial":
            self.ca = ChannelAttention(in_planes, ratio, pooling, mlp_bias)
        if order != "channel":
            self.sa = SpatialAttention(kernel_size, spatial_norm, in_planes if spatial_pooling == "conv" else None)
        self.has_closed_form = (order, pooling, spatial_pooling, spatial_norm) == (ORDERS[0], "both", "mean_max", False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (refined F'', F'' + x), each [N, C, H, W] in the dtype of x."""
        refined = self.refine(x)
        return refined, refined + x

    def refine(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Return only F'', which the paper's networks use, times a constant. This saves the cost of the second output.

        Args:
            x: [N, C, H, W].
            gain: scalar, multiplied into the last gate, which is smaller than the map.
        """
        if self.training and self.has_closed_form and not self._has_hooks() and closed_form.accepts(x, gain):
            fused = self.fused and closed_form.kernels_accept(x)
            if fused or not closed_form.compiles_modules(x):
                return self._refine_in_closed_form(x, gain, fused)
        if self.order == "channel_spatial":
            x = self.ca(x) * x
            return gain * self.sa(x) * x
        if self.order == "spatial_channel":
            x = self.sa(x) * x
            return gain * self.ca(x) * x
        if self.order == "parallel":
            return self.ca(x) * x * (gain * self.sa(x))
        gate = self.ca if self.order == "channel" else self.sa
        return gain * gate(x) * x

    def _has_hooks(self) -> bool:
        kinds = "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"
        return any(getattr(gate, kind) for gate in (self.ca, self.sa) for kind in kinds)

    def _refine_in_closed_form(self, x: Tensor, gain: Tensor | float, fused: bool) -> Tensor:
        return closed_form.refine(x, *self.ca.mlp_parameters(), self.sa.kernel(), self.ca.scale, gain, fused)

    def zero_gates_(self) -> float:
        """Zero the last layer of each gate, so that the gate is exactly 0.5 for every input and can still learn.

        Returns:
            The factor by which ``refine`` now scales its input: 0.25 with two gates, 0.5 with one. It is a power of
            two, so that ``refine`` with its inverse as the gain is bitwise the identity in fp32 and bf16.
        """
        gates = [gate for gate in self.children() if isinstance(gate, ScaledGate)]
        for gate in gates:
            gate.zero_()
        return 0.5 ** len(gates)
