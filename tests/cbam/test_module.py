"""CBAM against an independent implementation of the paper's formula in float64, with gradients derived by hand."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cbam import CBAM, ChannelAttention, SpatialAttention

Array = np.ndarray


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


@dataclass
class Reference:
    """Equations 1 to 3 in loops over positions; a maximum's gradient goes to the first position that attains it."""

    w0: Array  # [hidden, C]
    w1: Array  # [C, hidden]
    kernel: Array  # [2, k, k]

    def forward(self, x: Array) -> Array:
        n, c, h, w = x.shape
        self.x, flat = x, x.reshape(n, c, h * w)
        self.first = flat.argmax(axis=2)
        self.pooled = [flat.mean(axis=2), np.take_along_axis(flat, self.first[:, :, None], 2)[:, :, 0]]
        self.hidden = [p @ self.w0.T for p in self.pooled]
        self.mc = sigmoid(sum(np.maximum(z, 0) @ self.w1.T for z in self.hidden))
        self.y = x * self.mc[:, :, None, None]
        self.first_channel = self.y.argmax(axis=1)
        k = self.kernel.shape[1]
        planes = np.stack([self.y.mean(axis=1), self.y.max(axis=1)], axis=1)
        self.padded = np.pad(planes, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
        z = np.zeros((n, h, w))
        for i in range(h):
            for j in range(w):
                z[:, i, j] = (self.padded[:, :, i : i + k, j : j + k] * self.kernel).sum(axis=(1, 2, 3))
        self.ms = sigmoid(z)
        return self.y * self.ms[:, None]

    def backward(self, grad: Array) -> dict[str, Array]:
        n, c, h, w = self.x.shape
        k = self.kernel.shape[1]
        grad_y = grad * self.ms[:, None]
        grad_z = (grad * self.y).sum(axis=1) * self.ms * (1 - self.ms)
        grad_kernel, grad_padded = np.zeros_like(self.kernel), np.zeros_like(self.padded)
        for i in range(h):
            for j in range(w):
                window = np.s_[:, :, i : i + k, j : j + k]
                grad_kernel += (self.padded[window] * grad_z[:, i, j, None, None, None]).sum(axis=0)
                grad_padded[window] += self.kernel * grad_z[:, i, j, None, None, None]
        grad_planes = grad_padded[:, :, k // 2 : k // 2 + h, k // 2 : k // 2 + w]
        grad_y = grad_y + grad_planes[:, :1] / c
        for b, i, j in np.ndindex(n, h, w):
            grad_y[b, self.first_channel[b, i, j], i, j] += grad_planes[b, 1, i, j]
        grad_x = grad_y * self.mc[:, :, None, None]
        grad_logit = (grad_y * self.x).sum(axis=(2, 3)) * self.mc * (1 - self.mc)
        grad_w0, grad_w1 = np.zeros_like(self.w0), np.zeros_like(self.w1)
        grad_pooled = []
        for pooled, hidden in zip(self.pooled, self.hidden, strict=True):
            grad_w1 += grad_logit.T @ np.maximum(hidden, 0)
            grad_hidden = (grad_logit @ self.w1) * (hidden > 0)
            grad_w0 += grad_hidden.T @ pooled
            grad_pooled.append(grad_hidden @ self.w0)
        grad_x = grad_x + grad_pooled[0][:, :, None, None] / (h * w)
        for b, channel in np.ndindex(n, c):
            row, column = divmod(self.first[b, channel], w)
            grad_x[b, channel, row, column] += grad_pooled[1][b, channel]
        return {"x": grad_x, "w0": grad_w0, "w1": grad_w1, "kernel": grad_kernel}


def feature_map(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    if kind == "ties":  # only three values, so that most maxima are attained many times
        return torch.randint(-1, 2, shape, generator=generator).double()
    if kind == "zeros":
        return torch.zeros(shape, dtype=torch.float64)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros"])
@pytest.mark.parametrize(
    ("shape", "ratio", "kernel_size"),
    [((2, 8, 5, 6), 2, 7), ((3, 5, 7, 7), 16, 3), ((1, 1, 1, 1), 1, 7), ((2, 32, 3, 9), 16, 7)],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_equal_the_formula(
    kind: str, shape: tuple[int, ...], ratio: int, kernel_size: int, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    module = CBAM(shape[1], ratio, kernel_size).double()
    reference = Reference(
        module.ca.shared_MLP[0].weight.detach().numpy()[:, :, 0, 0],
        module.ca.shared_MLP[2].weight.detach().numpy()[:, :, 0, 0],
        module.sa.conv.weight.detach().numpy()[0],
    )
    x = feature_map(kind, shape)
    expected = reference.forward(x.numpy())
    leaf = x.clone(memory_format=memory_format).requires_grad_()
    refined, residual = module(leaf)
    np.testing.assert_allclose(refined.detach().numpy(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(residual.detach().numpy(), expected + x.numpy(), rtol=0, atol=1e-10)

    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    refined.backward(grad)
    gradients = reference.backward(grad.numpy())
    for name, got in {
        "x": leaf.grad,
        "w0": module.ca.shared_MLP[0].weight.grad[:, :, 0, 0],
        "w1": module.ca.shared_MLP[2].weight.grad[:, :, 0, 0],
        "kernel": module.sa.conv.weight.grad[0],
    }.items():
        np.testing.assert_allclose(got.numpy(), gradients[name], rtol=0, atol=1e-10, err_msg=name)


def test_residual_gradient_is_refined_plus_input() -> None:
    torch.manual_seed(0)
    module = CBAM(8, 2).double()
    x = feature_map("normal", (2, 8, 5, 5)).requires_grad_()
    grad = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    (of_refined,) = torch.autograd.grad(module(x)[0], x, grad)
    (of_residual,) = torch.autograd.grad(module(x)[1], x, grad)
    torch.testing.assert_close(of_residual, of_refined + grad, rtol=0, atol=1e-12)


def random_normed(module: CBAM) -> CBAM:
    """Return the module in evaluation mode and float64, with norm statistics as after training."""
    for name, value in module.state_dict().items():
        if ".norm." in name and value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return module.double().eval()


def variant(module: CBAM, x: Array, order: str, pooling: str) -> Array:
    """Compute a variant's formula in numpy from the module's parameters."""
    p = {name: value.numpy() for name, value in module.state_dict().items()}

    def mlp(v: Array) -> Array:
        hidden = np.maximum(v @ p["ca.shared_MLP.0.weight"][:, :, 0, 0].T + p.get("ca.shared_MLP.0.bias", 0), 0)
        return hidden @ p["ca.shared_MLP.2.weight"][:, :, 0, 0].T + p.get("ca.shared_MLP.2.bias", 0)

    def channel(y: Array) -> Array:
        pooled = {"avg": [y.mean(axis=(2, 3))], "max": [y.max(axis=(2, 3))]}
        pooled["both"] = pooled["avg"] + pooled["max"]
        return sigmoid(sum(mlp(v) for v in pooled[pooling]))[:, :, None, None]

    def spatial(y: Array) -> Array:
        planes = np.stack([y.mean(axis=1), y.max(axis=1)], axis=1)
        if "sa.reduce.weight" in p:
            planes = (y * p["sa.reduce.weight"][0][None]).sum(axis=1, keepdims=True)
        kernel = p["sa.conv.weight"][0]
        k = kernel.shape[1]
        padded = np.pad(planes, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(2, 3))
        z = np.einsum("nchwij,cij->nhw", windows, kernel)[:, None]
        if "sa.norm.weight" in p:
            z = (z - p["sa.norm.running_mean"]) / np.sqrt(p["sa.norm.running_var"] + 1e-5)
            z = z * p["sa.norm.weight"] + p["sa.norm.bias"]
        return sigmoid(z)

    if order == "parallel":
        return x * channel(x) * spatial(x)
    for gate in order.split("_"):
        x = x * (channel(x) if gate == "channel" else spatial(x))
    return x


@pytest.mark.parametrize("order", ["channel_spatial", "spatial_channel", "parallel", "channel", "spatial"])
@pytest.mark.parametrize("pooling", ["avg", "max", "both"])
@pytest.mark.parametrize("spatial_pooling", ["mean_max", "conv"])
@pytest.mark.parametrize("official", [False, True], ids=["plain", "biases_and_norm"])
def test_every_variant_equals_its_formula(order: str, pooling: str, spatial_pooling: str, official: bool) -> None:
    torch.manual_seed(0)
    options = {"mlp_bias": official, "spatial_norm": official, "spatial_pooling": spatial_pooling}
    module = random_normed(CBAM(8, 2, 3, order=order, pooling=pooling, **options))
    x = feature_map("normal", (2, 8, 5, 6))
    with torch.no_grad():
        got = module.refine(x).numpy()
    np.testing.assert_allclose(got, variant(module, x.numpy(), order, pooling), rtol=0, atol=1e-10)
    has = {name.split(".")[0] for name in module.state_dict()}
    assert has == {"channel": {"ca"}, "spatial": {"sa"}}.get(order, {"ca", "sa"})


@pytest.mark.parametrize("order", ["channel_spatial", "spatial_channel", "parallel", "channel", "spatial"])
@pytest.mark.parametrize("spatial_norm", [False, True])
@pytest.mark.parametrize("spatial_pooling", ["mean_max", "conv"])
@pytest.mark.parametrize("training", [False, True])
def test_zeroed_gates_scale_exactly_and_learn(
    order: str, spatial_norm: bool, spatial_pooling: str, training: bool
) -> None:
    module = CBAM(6, 2, mlp_bias=True, order=order, spatial_norm=spatial_norm, spatial_pooling=spatial_pooling)
    module.train(training)
    x = torch.randn(2, 6, 4, 5)
    factor = module.zero_gates_()
    assert factor == (0.5 if order in ("channel", "spatial") else 0.25)
    refined = module.refine(x)
    assert torch.equal(refined, factor * x)
    refined.square().sum().backward()
    gates = {name.split(".")[0] for name, value in module.named_parameters() if value.grad.abs().sum() > 0}
    assert gates == {"channel": {"ca"}, "spatial": {"sa"}}.get(order, {"ca", "sa"})


def test_parameters_have_the_usual_names() -> None:
    shapes = {name: tuple(value.shape) for name, value in CBAM(32, 16, 7).state_dict().items()}
    assert shapes == {
        "ca.shared_MLP.0.weight": (2, 32, 1, 1),
        "ca.shared_MLP.2.weight": (32, 2, 1, 1),
        "sa.conv.weight": (1, 2, 7, 7),
    }


def test_hidden_width_is_at_least_one() -> None:
    assert ChannelAttention(8, ratio=16).shared_MLP[0].out_channels == 1


def test_gates_have_the_documented_shapes() -> None:
    x = torch.rand(2, 6, 4, 5)
    assert ChannelAttention(6, 2)(x).shape == (2, 6, 1, 1)
    assert SpatialAttention(3)(x).shape == (2, 1, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"in_planes": 0}, "in_planes must be a positive integer; got 0"),
        ({"in_planes": 8, "ratio": 0}, "ratio must be a positive integer; got 0"),
        ({"in_planes": 8, "ratio": 2.5}, "ratio must be a positive integer; got 2.5"),
        ({"in_planes": 8, "kernel_size": -1}, "kernel_size must be a positive integer; got -1"),
        ({"in_planes": 8, "order": "both"}, "order must be one of channel_spatial, spatial_channel, parallel"),
        ({"in_planes": 8, "pooling": "mean"}, "pooling must be one of avg, max, both; got 'mean'"),
        ({"in_planes": 8, "spatial_pooling": "avg"}, "spatial_pooling must be one of mean_max, conv; got 'avg'"),
        ({"in_planes": 0, "order": "spatial"}, "in_planes must be a positive integer; got 0"),
        ({"in_planes": 8, "kernel_size": 4}, "kernel_size must be odd so that the map keeps its size; got 4"),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CBAM(**arguments)


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        ((8, 4, 4), r"\[N, C, H, W\]; got shape \(8, 4, 4\)"),
        ((1, 6, 4, 4), r"Expected 8 channels; got shape \(1, 6, 4, 4\)"),
        ((1, 8, 0, 4), r"at least one channel and one position; got shape \(1, 8, 0, 4\)"),
    ],
)
def test_inputs_that_are_no_feature_map_are_refused(shape: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CBAM(8)(torch.zeros(shape))


def test_an_empty_batch_passes_through() -> None:
    assert CBAM(8)(torch.zeros(0, 8, 4, 4))[0].shape == (0, 8, 4, 4)


def test_it_is_importable_with_torch_alone() -> None:
    import subprocess
    import sys

    blocked = ("torchvision", "hydra", "omegaconf", "tensorboard", "tqdm", "models", "engine")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); from cbam import CBAM; print(CBAM(4))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
