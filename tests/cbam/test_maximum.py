"""Maxima with the first index, as torch's, in both memory formats."""

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cbam.maximum import (
    first_maximum_of_channels,
    first_maximum_of_positions,
    maximum_of_channels,
    maximum_of_positions,
)

SHAPES = [(2, 256, 5, 3), (3, 128, 1, 1), (2, 130, 3, 4), (2, 96, 4, 4), (1, 1, 2, 2)]
FORMATS = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])


def feature_map(kind: str, shape: tuple[int, ...], memory_format: torch.memory_format) -> Tensor:
    torch.manual_seed(51)
    values = {
        "random": torch.randn(shape),
        "negative": torch.randint(-3, 0, shape).float(),
        "ties": torch.randint(0, 3, shape).float(),
        "zeros": torch.zeros(shape),
    }
    return values[kind].contiguous(memory_format=memory_format)


@FORMATS
@pytest.mark.parametrize("kind", ["random", "negative", "ties", "zeros"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_maxima_and_first_indices_are_torchs(
    shape: tuple[int, ...], kind: str, memory_format: torch.memory_format
) -> None:
    x = feature_map(kind, shape, memory_format)
    assert all(map(torch.equal, maximum_of_channels(x), x.max(1)))
    assert all(map(torch.equal, maximum_of_positions(x), x.flatten(2).max(2)))


@FORMATS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nan_is_the_maximum_and_its_index_is_valid(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    x = feature_map("random", shape, memory_format).fill_(torch.nan)
    for maximum, index in (maximum_of_channels(x), maximum_of_positions(x)):
        assert maximum.isnan().all()
        assert index.min() >= 0
    assert maximum_of_channels(x)[1].max() < shape[1]
    assert maximum_of_positions(x)[1].max() < shape[2] * shape[3]


@FORMATS
def test_maxima_are_found_without_a_copy_of_the_map(memory_format: torch.memory_format) -> None:
    x = feature_map("random", (2, 256, 8, 8), memory_format)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        maximum_of_channels(x)
        maximum_of_positions(x)
    assert not {event.name for event in seen.events()} & {"aten::clone", "aten::copy_"}


def maxima(x: Tensor) -> tuple[Tensor, Tensor]:
    return first_maximum_of_positions(x), first_maximum_of_channels(x)


@FORMATS
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", ["random", "negative", "ties", "zeros"])
def test_gradients_go_to_the_first_maximum(kind: str, compiled: bool, memory_format: torch.memory_format) -> None:
    x = feature_map(kind, (2, 64, 5, 3), memory_format).requires_grad_()

    positions, channels = (torch.compile(maxima) if compiled else maxima)(x)
    assert torch.equal(positions, x.amax((2, 3)))
    assert torch.equal(channels, x.amax(1, keepdim=True))
    (of_positions,) = torch.autograd.grad(positions.sum(), x, retain_graph=True)
    (of_channels,) = torch.autograd.grad(channels.sum(), x)
    first = x.detach().flatten(2).max(2, keepdim=True)[1]
    assert torch.equal(of_positions.flatten(2), torch.zeros(2, 64, 15).scatter_(2, first, 1.0))
    assert torch.equal(of_channels, torch.zeros(2, 64, 5, 3).scatter_(1, x.detach().max(1, keepdim=True)[1], 1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_compiled_gradients_go_to_the_first_maximum_in_any_dtype(dtype: torch.dtype) -> None:
    """Two values of float64 differ by less than float32 resolves."""
    x = torch.full((1, 4, 2, 2), -1.0, dtype=dtype)
    x[0, 1, 0, 1], x[0, 2, 0, 1] = 1, 1 + torch.finfo(dtype).eps
    x.requires_grad_()
    (of_channels,) = torch.autograd.grad(torch.compile(first_maximum_of_channels)(x)[0, 0, 0, 1], x)
    assert of_channels.nonzero().tolist() == [[0, 2, 0, 1]]


def test_compiled_maximum_of_positions_propagates_nan() -> None:
    x = torch.randn(2, 3, 4, 4)
    x[0, 1, 2, 3] = torch.nan
    maximum = torch.compile(first_maximum_of_positions)(x.requires_grad_())
    maximum.sum().backward()
    assert maximum.isnan().nonzero().tolist() == [[0, 1]]
    assert x.grad[0, 1].nonzero().tolist() == [[2, 3]]
