"""RMSNorm, rotary positions, feed-forward and their gradients against torch and the formulas."""

import pytest
import torch
from on_device import placed
from torch.nn import functional

from muonlab.model.attention.rotary import Rotary
from muonlab.model.ffn import Activation, DenseConfig
from muonlab.model.layers import Linear, RMSNorm

pytestmark = pytest.mark.usefixtures("on_device")


def test_rms_norm_equals_torch_with_gradients():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    norm = placed(RMSNorm(8, eps=1e-6)).double()
    torch.nn.init.normal_(norm.weight)
    expected = functional.rms_norm(x, (8,), norm.weight, 1e-6)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(norm, (x,))
    direction = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(norm(x), norm.weight, direction),
        torch.autograd.grad(expected, norm.weight, direction),
        rtol=1e-10,
        atol=1e-12,
    )


def test_linear_computes_in_the_dtype_of_its_input_and_keeps_fp32_weights():
    layer = placed(Linear(8, 4))
    out = layer(torch.randn(3, 8, dtype=torch.bfloat16))
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def complex_rotation(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """(B, T, H, Dh) rotated as complex numbers first + i·second."""
    half = x.shape[-1] // 2
    frequency = base ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = positions[..., None, None] * frequency
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.cat((turned.real, turned.imag), dim=-1)


def test_rotary_equals_complex_rotation():
    x = torch.randn(2, 7, 3, 8, dtype=torch.float64)
    rotary = placed(Rotary(8, 16, 100.0))
    expected = complex_rotation(x, torch.arange(7).expand(2, 7), 100.0).transpose(1, 2)
    torch.testing.assert_close(rotary(x), expected, rtol=1e-5, atol=1e-6)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [9, 8, 15, 3, 3, 0, 1]])
    expected = complex_rotation(x, positions, 100.0).transpose(1, 2)
    torch.testing.assert_close(rotary(x, positions), expected, rtol=1e-5, atol=1e-6)


def test_rotary_gradient_is_the_inverse_rotation():
    x = torch.randn(1, 5, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(placed(Rotary(4, 8, 100.0)), (x,))


ACTIVATIONS = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "relu2": lambda x: functional.relu(x) ** 2,
}


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_feed_forward_equals_the_formula(activation: Activation, gated: bool):
    torch.manual_seed(0)
    config = DenseConfig(hidden_dim=12, activation=activation, gated=gated)
    layer = placed(config.build(8, 0.0, 0)).double()
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    hidden = x @ layer.expand.weight.T
    act = ACTIVATIONS[activation]
    hidden = act(hidden[:, :12]) * hidden[:, 12:] if gated else act(hidden)
    torch.testing.assert_close(layer(x), hidden @ layer.out.weight.T)
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dim": 0}, "hidden_dim is 0"),
        ({"activation": "swish"}, "activation is 'swish'; it must be one of relu, gelu"),
    ],
)
def test_bad_feed_forward_config_is_one_clear_line(options: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        DenseConfig(**options)
    assert "\n" not in str(error.value)
