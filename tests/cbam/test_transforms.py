"""CBAM under torch.func and torch.jit.trace, which do not support every autograd.Function."""

import pytest
import torch
from torch import Tensor

from cbam import CBAM
from cbam.layer import CBAMLayer


def test_gradients_of_single_images_are_those_of_separate_passes() -> None:
    torch.manual_seed(51)
    cbam, images = CBAM(16, ratio=4).double(), torch.randn(4, 16, 5, 5, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        refined, _ = torch.func.functional_call(cbam, parameters, (image[None],))
        return refined.square().sum()

    together = torch.vmap(torch.func.grad(loss), (None, 0))(dict(cbam.named_parameters()), images)
    for i in range(4):
        cbam.zero_grad()
        cbam.refine(images[i : i + 1]).square().sum().backward()
        for name, parameter in cbam.named_parameters():
            torch.testing.assert_close(together[name][i], parameter.grad)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_forward_and_second_derivatives_agree_with_autograd() -> None:
    torch.manual_seed(51)
    cbam = CBAM(8, ratio=4).double()
    x = torch.randn(1, 8, 3, 3, dtype=torch.float64)
    tangent = torch.randn_like(x)
    forward = torch.func.jvp(cbam.refine, (x,), (tangent,))[1]
    cbam.has_closed_form = False
    jacobian = torch.autograd.functional.jacobian(cbam.refine, x)
    torch.testing.assert_close(forward.flatten(), jacobian.reshape(72, 72) @ tangent.flatten())
    cbam.has_closed_form = True
    hessian = torch.func.hessian(lambda x: cbam.refine(x).sum())(x)
    cbam.has_closed_form = False
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(lambda x: cbam.refine(x).sum(), x))


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("training", [False, True])
def test_a_traced_layer_computes_the_same(training: bool) -> None:
    torch.manual_seed(51)
    layer, x = CBAMLayer(16).train(training), torch.randn(2, 16, 6, 6)
    traced = torch.jit.trace(layer, x)
    larger = torch.randn(3, 16, 9, 7)
    torch.testing.assert_close(traced(larger), layer(larger))
