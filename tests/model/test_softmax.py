"""Causal softmax attention against the formula and against torch's kernel."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from muonlab.model import sizes
from muonlab.model.attention.softmax import cached_attention, causal_attention

pytestmark = pytest.mark.usefixtures("on_device")

BLOCK = sizes.CPU.attention_block


def plain_attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    repeats = queries.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(repeats, dim=1) for x in (keys, values))
    T = queries.shape[2]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    scores = (queries @ keys.mT * scale).masked_fill(future, -math.inf)
    return scores.softmax(-1) @ values


def random_inputs(T: int, heads: int, kv_heads: int, dtype: torch.dtype, value_dim: int = 6):
    generator = torch.Generator().manual_seed(T)
    shapes = ((2, heads, T, 4), (2, kv_heads, T, 4), (2, kv_heads, T, value_dim))
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for s in shapes
    ]


@pytest.mark.parametrize("length", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 37])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_equals_the_formula_with_gradients(length: int, heads: int, kv_heads: int):
    inputs = random_inputs(length, heads, kv_heads, torch.float64)
    expected = plain_attention(*inputs, scale=0.5)
    actual = causal_attention(*inputs, scale=0.5)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    direction = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("value_dim", [3, 4, 6])
def test_both_kernels_agree(value_dim: int, monkeypatch: pytest.MonkeyPatch):
    inputs = random_inputs(BLOCK + 9, 4, 2, torch.float32, value_dim)
    explicit = causal_attention(*inputs, scale=0.5)
    gradients = torch.autograd.grad(explicit.square().sum(), inputs)
    monkeypatch.setattr(sizes, "CPU", replace(sizes.CPU, explicit_attention_length=0))
    flash = causal_attention(*inputs, scale=0.5)
    torch.testing.assert_close(explicit, flash, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(flash.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradcheck(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sizes, "CPU", replace(sizes.CPU, attention_block=4))
    inputs = random_inputs(5, 2, 1, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: causal_attention(*x, scale=0.5), inputs)


def test_dropout_drops_weights_and_keeps_the_mean():
    queries, keys, values = random_inputs(3, 1, 1, torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack(
            [causal_attention(queries, keys, values, scale=0.5, dropout=0.5) for _ in range(500)]
        )
        expected = causal_attention(queries, keys, values, scale=0.5)
    assert draws.std(0).amax() > 0.1
    torch.testing.assert_close(draws.mean(0), expected, rtol=0, atol=0.5)


def test_cached_attention_of_ragged_rows_equals_the_formula():
    queries, keys, values = random_inputs(9, 4, 2, torch.float64)
    full = plain_attention(queries, keys, values, scale=0.5)
    positions = torch.tensor([[3, 4], [7, 8]])
    rows = torch.arange(2).unsqueeze(1)
    new = queries.transpose(1, 2)[rows, positions].transpose(1, 2)
    visible = torch.arange(9) <= positions.unsqueeze(-1)
    out = cached_attention(new, keys, values, visible, scale=0.5)
    expected = full.transpose(1, 2)[rows, positions].transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
