"""Prefix latent attention against its equations, token by token in fp64."""

import math
from typing import Any

import pytest
import torch
from on_device import placed
from torch import Tensor

from muonlab.model.attention import PrefixMHLAConfig, prefix_mhla

pytestmark = pytest.mark.usefixtures("on_device")

DIM, HEADS = 16, 2


def naive(module: Any, x: Tensor) -> Tensor:
    """One sequence (T, D), one token after the other."""
    Dh = module.head_dim
    q, k, v = (x @ module.qkv.weight.T).view(-1, 3, HEADS, Dh).unbind(1)
    cosines = torch.cosine_similarity(k[:, :, None], module.latents.vectors, dim=-1)  # (T, H, K)
    shares = (cosines * Dh).softmax(-1).transpose(0, 1)
    outputs = []
    for t in range(len(x)):
        heads = []
        for h in range(HEADS):
            p = shares[h, : t + 1]  # (t + 1, K)
            mass = p.sum(0)
            mean_keys, mean_values = (p.T @ y[: t + 1, h] / mass[:, None] for y in (k, v))
            scores = mean_keys @ q[t, h] / math.sqrt(Dh) + mass.log()
            heads.append(scores.softmax(0) @ mean_values)
        outputs.append(torch.cat(heads))
    return torch.stack(outputs) @ module.out.weight.T


@pytest.mark.parametrize("length", [1, 3, 4, 5, 14])
def test_equals_the_equations_with_gradients(length: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prefix_mhla, "CHUNK", 4)
    config = PrefixMHLAConfig(num_heads=HEADS, num_latents=5)
    module = placed(config.build(DIM, 64, 1e-6, 0.0)).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.4)
    x = torch.randn(length, DIM, dtype=torch.float64, requires_grad=True)
    expected, actual = naive(module, x), module(x[None])[0]
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)
    wanted = [x, module.qkv.weight, module.out.weight]
    direction = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, wanted, direction),
        torch.autograd.grad(expected, wanted, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
