"""Block-causal latent attention against the equations, token by token in fp64."""

import math
from typing import Any

import pytest
import torch
from on_device import placed
from torch import Tensor
from torch.nn.functional import one_hot

from muonlab.model.attention import CausalMHLAConfig, MHSAConfig
from muonlab.model.attention.latents import (
    NO_MASS,
    Latents,
    differences,
    means_of_earlier,
    sum_of_earlier,
)

pytestmark = pytest.mark.usefixtures("on_device")

DIM, HEADS = 16, 2


def build(config: CausalMHLAConfig) -> Any:
    module = placed(config.build(DIM, 64, 1e-6, 0.0)).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(1 + 0.3 * noise if parameter.ndim == 1 else noise * 0.5)
    return module


def rotated(x: Tensor, position: int, base: float = 10_000.0) -> Tensor:
    """(Dh,) as complex numbers first + i·second, turned by the position."""
    half = x.shape[0] // 2
    angle = position * base ** -(torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag))


def shares_of(keys: Tensor, vectors: Tensor) -> Tensor:
    """Of a chunk's tokens (C, Dh) among a head's latents (K, Dh)."""
    unit = keys / keys.norm(dim=-1, keepdim=True)
    differences = unit - unit.mean(0)
    differences = differences / differences.norm(dim=-1, keepdim=True).clamp(min=0.1)
    latents = vectors / vectors.norm(dim=-1, keepdim=True)
    return (differences @ latents.T * keys.shape[-1]).softmax(-1)


def naive(module: Any, x: Tensor) -> Tensor:
    """One sequence (T, D): every token by itself, from the list of all tokens before it."""
    C, Dh = module.chunk, module.head_dim
    q, k, v = (x @ module.qkv.weight.T).view(-1, 3, HEADS, Dh).unbind(1)
    latents = module.latents.vectors
    outputs = []
    for t in range(len(x)):
        heads = []
        for h in range(HEADS):
            start = t // C * C  # first token of this chunk
            scores, values = [], []
            if start:
                shares = torch.cat([shares_of(c, latents[h]) for c in k[:start, h].split(C)])
                for share in shares.T:
                    mean_key = (share[:, None] * k[:start, h]).sum(0) / share.sum()
                    mean_value = (share[:, None] * v[:start, h]).sum(0) / share.sum()
                    scores.append(q[t, h] @ mean_key / math.sqrt(Dh) + share.sum().log())
                    values.append(mean_value)
            for i in range(start, t + 1):
                query, key = rotated(q[t, h], t), rotated(k[i, h], i)
                scores.append(query @ key / math.sqrt(Dh))
                values.append(v[i, h])
            heads.append(torch.stack(scores).softmax(0) @ torch.stack(values))
        outputs.append(torch.cat(heads))
    return torch.stack(outputs) @ module.out.weight.T


@pytest.mark.parametrize("length", [1, 5, 6, 17])
def test_equals_the_equations_with_gradients(length: int):
    module = build(CausalMHLAConfig(num_heads=HEADS, num_latents=5, chunk=6))
    x = torch.randn(length, DIM, dtype=torch.float64, requires_grad=True)
    expected, actual = naive(module, x), module(x[None])[0]
    # the rotary tables are fp32
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    wanted = [x, module.qkv.weight, module.out.weight]
    direction = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, wanted, direction),
        torch.autograd.grad(expected, wanted, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_one_chunk_is_full_attention():
    config = CausalMHLAConfig(num_heads=HEADS, num_latents=5, chunk=32)
    module = build(config)
    full: Any = placed(MHSAConfig(num_heads=HEADS).build(DIM, 64, 1e-6, 0.0)).double()
    full.qkv.weight, full.out.weight = module.qkv.weight, module.out.weight
    x = torch.randn(2, 30, DIM, dtype=torch.float64)
    torch.testing.assert_close(module(x), full(x), rtol=1e-10, atol=1e-10)


def test_without_latents_nothing_crosses_a_chunk():
    module = build(CausalMHLAConfig(num_heads=HEADS, num_latents=0, chunk=6))
    x = torch.randn(1, 18, DIM, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[:, 12:].square().sum(), x)
    assert torch.equal(gradient[:, :12], torch.zeros(1, 12, DIM))


def test_latents_carry_what_is_further_back_than_a_chunk():
    module = build(CausalMHLAConfig(num_heads=HEADS, num_latents=5, chunk=6))
    x = torch.randn(1, 24, DIM, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[:, 18:].square().sum(), x)
    assert (gradient[:, :6].abs().sum(-1) > 1e-6).all()


def test_sharp_latents_of_repeated_tokens_are_full_attention_without_positions(
    monkeypatch: pytest.MonkeyPatch,
):
    """Where the tokens of a latent are all alike, log mass makes its summary exact."""
    C = 6
    module = build(CausalMHLAConfig(num_heads=HEADS, num_latents=30, chunk=C))
    soft = module.latents.shares
    monkeypatch.setattr(Latents, "shares", lambda _, x: one_hot(soft(x).argmax(-1), 30).double())
    kinds = torch.randn(2, DIM, dtype=torch.float64)
    x = kinds[torch.tensor([0, 1, 1, 0, 1, 1] * 2)]
    q, k, v = (x @ module.qkv.weight.T).view(-1, 3, HEADS, module.head_dim).unbind(1)
    outputs = []
    for t in range(C, 2 * C):  # the second chunk: the first one's tokens have no positions
        heads = []
        for h in range(HEADS):
            own = [rotated(q[t, h], t) @ rotated(k[i, h], i) for i in range(C, t + 1)]
            scores = torch.cat((k[:C, h] @ q[t, h], torch.stack(own))) * module.scale
            heads.append(scores.softmax(0) @ v[: t + 1, h])
        outputs.append(torch.cat(heads))
    expected = torch.stack(outputs) @ module.out.weight.T
    torch.testing.assert_close(module(x[None])[0, C:], expected, rtol=1e-5, atol=1e-6)


def test_dropout_drops_weights_with_matching_gradients():
    config = CausalMHLAConfig(num_heads=HEADS, num_latents=5, chunk=6)
    module = placed(config.build(DIM, 64, 1e-6, 0.3)).double()
    reference = build(config)
    module.load_state_dict(reference.state_dict())
    x = torch.randn(1, 14, DIM, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return module(x)

    assert not torch.equal(call(x), reference(x))
    assert torch.autograd.gradcheck(call, (x,))
    module.eval()
    torch.testing.assert_close(module(x), reference(x))


def test_means_of_earlier_chunks():
    sums = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    mass = torch.rand(2, 5, 3, 1, dtype=torch.float64, requires_grad=True)

    def call(sums: Tensor, mass: Tensor) -> Tensor:
        return means_of_earlier(sums, sum_of_earlier(mass) + NO_MASS)

    means = call(sums, mass)
    assert torch.equal(means[:, 0], torch.zeros(2, 3, 4))
    expected = sums[:, :3].sum(1) / mass[:, :3].sum(1)
    torch.testing.assert_close(means[:, 3], expected)
    assert torch.autograd.gradcheck(call, (sums, mass))


def test_rounding_does_not_tell_tokens_apart():
    """Tokens that are all but equal keep equal shares, also in bf16."""
    latents = build(CausalMHLAConfig(num_heads=HEADS, num_latents=5, chunk=6)).latents.bfloat16()
    keys = torch.randn(1, HEADS, 1, DIM // HEADS).expand(1, HEADS, 6, -1).bfloat16()
    rounded = (keys * (1 + 2**-8 * torch.randint(2, keys.shape))).bfloat16()
    mass = latents.shares(differences(rounded)).float().sum(-2)
    torch.testing.assert_close(mass, torch.full_like(mass, 6 / 5), rtol=0.3, atol=0)
