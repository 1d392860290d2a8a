"""The mixture of experts against a per-token loop; balancing, noise and statistics."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import here, placed
from torch import Tensor

from muonlab.model import sizes
from muonlab.model.ffn import ACTIVATIONS
from muonlab.model.grouped import assign_slots, combine, dispatch, grouped_linear
from muonlab.model.moe import MoE, MoEConfig, router_statistics

pytestmark = pytest.mark.usefixtures("on_device")

DIM = 6


def build(config: MoEConfig, seed: int = 0) -> MoE:
    generator = torch.Generator().manual_seed(seed)
    layer = config.build(DIM, 0.0, config.every - 1)
    assert isinstance(layer, MoE)
    placed(layer).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        layer.selection_bias.copy_(torch.randn(config.num_experts, generator=generator) * 0.3)
    return layer


def expert(x: Tensor, expand: Tensor, out: Tensor, config: MoEConfig, width: int) -> Tensor:
    hidden = expand @ x
    act = ACTIVATIONS[config.activation]
    hidden = act(hidden[:width]) * hidden[width:] if config.gated else act(hidden)
    return out @ hidden


def loop(layer: MoE, tokens: Tensor) -> Tensor:
    """One token at a time, one expert at a time."""
    config = layer.config
    rows = []
    for x in tokens:
        logits = layer.router.weight @ x
        scores = logits.softmax(0) if config.gate == "softmax" else logits.sigmoid()
        ranking = scores + layer.selection_bias if config.balancing == "bias" else scores
        chosen = ranking.argsort(descending=True)[: config.top_k].tolist()
        total = sum(scores[e] for e in chosen) if config.normalize_gates else 1.0
        row = torch.zeros_like(x)
        for e in chosen:
            gate = scores[e] / total * config.routed_scale
            row = row + gate * expert(x, layer.expand[e], layer.out[e], config, config.hidden_dim)
        if layer.shared is not None:
            weights = (layer.shared.expand.weight, layer.shared.out.weight)
            row = row + expert(x, *weights, config, layer.shared.hidden_dim)
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5, 32, 33])
@pytest.mark.parametrize("shared", [0, 1])
@torch.no_grad()
def test_decoding_equals_the_per_token_loop(num_tokens: int, shared: int):
    """The forms for one token, for a few, for few enough to meet every expert, and for many."""
    config = MoEConfig(
        hidden_dim=4, num_experts=6, gated=True, num_shared_experts=shared, routed_scale=1.5,
        gate="sigmoid", balancing="bias",
    )  # fmt: skip
    layer = build(config)
    tokens = torch.randn(num_tokens, DIM, dtype=torch.float64)
    actual = layer.decode(tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(actual, loop(layer, tokens), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("gate", "balancing", "shared", "gated", "activation"),
    list(
        itertools.product(
            ("softmax", "sigmoid"),
            ("none", "auxiliary", "bias"),
            (0, 2),
            (False, True),
            ("relu", "gelu", "silu", "tanh", "relu2"),
        )
    ),
)
def test_equals_a_per_token_loop_with_gradients(gate, balancing, shared, gated, activation):
    config = MoEConfig(
        hidden_dim=4,
        num_experts=5,
        top_k=2,
        gate=gate,
        balancing=balancing,
        num_shared_experts=shared,
        gated=gated,
        activation=activation,
        normalize_gates=gated,  # both values occur with every other option
        routed_scale=1.5,
        auxiliary_coefficient=0.0,
    )
    layer = build(config)
    x = torch.randn(2, 4, DIM, dtype=torch.float64, requires_grad=True)
    out, report = layer(x)
    expected = loop(layer, x.flatten(0, 1)).view_as(x)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)
    assert report.tokens_per_expert.sum() == 16
    wanted = [x, *layer.parameters()]
    direction = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(out, wanted, direction),
        torch.autograd.grad(expected, wanted, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@settings(max_examples=25)
@given(
    num_experts=st.integers(1, 6),
    top_k=st.integers(1, 3),
    num_tokens=st.sampled_from([1, 7, 40, 300]),
    seed=st.integers(0, 99),
    chosen=st.sampled_from([sizes.CPU, sizes.GPU]),
)
def test_grouped_products_equal_a_loop_even_with_idle_experts(
    num_experts: int, top_k: int, num_tokens: int, seed: int, chosen: sizes.Sizes
):
    """With the slots counted, as on a CPU, and with their bound, as on a GPU."""
    generator = torch.Generator().manual_seed(seed)
    top_k = min(top_k, num_experts)
    popularity = torch.randn(num_experts, generator=generator) * 5  # some experts idle
    noise = torch.randn(num_tokens, num_experts, generator=generator)
    expert_of = (popularity + noise).topk(top_k).indices
    x = torch.randn(num_tokens, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(num_experts, 3, 5, generator=generator, dtype=torch.float64)
    weight.requires_grad_()
    gates = torch.rand(num_tokens, top_k, generator=generator, dtype=torch.float64)
    gates.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CPU", "GPU"):
            patch.setattr(sizes, name, chosen)
        slots = assign_slots(expert_of, num_experts)
    block = chosen.slot_block(num_tokens * top_k // num_experts)
    assert (slots.ends % block == 0).all()
    assert slots.ends[-1] == len(slots.token_at)
    assert torch.equal(slots.tokens_per_expert, expert_of.flatten().bincount(minlength=num_experts))
    actual = combine(grouped_linear(dispatch(x, slots), weight, slots), gates, slots)
    expected = torch.einsum("nk,nkfd,nd->nf", gates, weight[expert_of], x)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(actual, (x, weight, gates), direction),
        torch.autograd.grad(expected, (x, weight, gates), direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_auxiliary_loss_is_p2s_formula():
    config = MoEConfig(hidden_dim=4, num_experts=5, auxiliary_coefficient=0.01)
    layer = build(config)
    x = torch.randn(30, DIM, dtype=torch.float64)
    _, report = layer(x)
    probabilities = (x @ layer.router.weight.T).softmax(-1)
    chosen = probabilities.topk(2).indices
    share = torch.stack([(chosen == e).double().sum() for e in range(5)]) / 60
    expected = 0.01 * 5 * (share * probabilities.mean(0)).sum()
    torch.testing.assert_close(report.loss, expected)


def test_the_router_computes_in_fp32_under_autocast():
    layer = build(MoEConfig(hidden_dim=4, balancing="none", z_loss_coefficient=1.0)).float()
    x = torch.randn(9, DIM)
    expected = layer(x)[1].loss
    with torch.autocast(here().type, torch.bfloat16):
        report = layer(x)[1]
    assert report.loss == expected


def test_z_loss_is_the_mean_squared_log_partition():
    config = MoEConfig(hidden_dim=4, balancing="none", z_loss_coefficient=0.5)
    layer = build(config)
    x = torch.randn(9, DIM, dtype=torch.float64)
    expected = 0.5 * (x @ layer.router.weight.T).logsumexp(-1).square().mean()
    torch.testing.assert_close(layer(x)[1].loss, expected)


def test_bias_balancing_evens_the_load_without_a_loss():
    config = MoEConfig(hidden_dim=4, balancing="bias", bias_rate=0.02, gate="sigmoid")
    layer = build(config)
    layer.selection_bias.zero_()
    x = torch.randn(256, DIM, dtype=torch.float64) + 1.0

    def load_cv() -> float:
        return router_statistics([layer(x)[1].tokens_per_expert], [0.0])["moe/load_cv"]

    before = load_cv()
    for _ in range(100):
        _, report = layer(x)
        layer.update_balance()
        assert report.loss == 0
    assert load_cv() < 0.3 * before
    layer.update_balance()
    bias = layer.selection_bias.clone()
    layer.eval()
    layer(x)
    layer.update_balance()
    assert torch.equal(layer.selection_bias, bias)  # evaluation leaves no trace


def test_router_noise_is_reproducible_and_only_in_training():
    config = MoEConfig(hidden_dim=4, router_noise=1.0, balancing="none")
    layer = build(config)
    x = torch.randn(50, DIM, dtype=torch.float64)

    def noisy(seed: int) -> Tensor:
        return layer(x, torch.Generator(here()).manual_seed(seed))[0]

    global_state = torch.get_rng_state()
    assert torch.equal(noisy(1), noisy(1))
    assert not torch.equal(noisy(1), noisy(2))
    assert torch.equal(torch.get_rng_state(), global_state)
    layer.eval()
    assert torch.equal(noisy(1), noisy(2))


def test_alternate_layers_are_dense_of_the_active_width():
    config = MoEConfig(hidden_dim=4, every=2, num_shared_experts=1)
    dense = config.build(DIM, 0.0, 0)
    assert not isinstance(dense, MoE)
    assert dense.out.weight.shape == (DIM, 12)
    assert isinstance(config.build(DIM, 0.0, 1), MoE)


def test_router_statistics():
    loads = [torch.tensor([4, 4, 4, 4]), torch.tensor([16, 0, 0, 0])]
    statistics = router_statistics(loads, [1.0, 3.0])
    assert statistics["moe/load_cv"] == pytest.approx((0 + 3**0.5) / 2)
    assert statistics["moe/max_load"] == 4
    assert statistics["moe/dead_experts"] == 3 / 8
    assert statistics["moe/router_entropy"] == 2
    assert router_statistics([], []) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 9}, "top_k is 9; it must be from 1 to num_experts 8"),
        ({"top_k": 1}, "normalize_gates is True"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"router_noise": -1.0}, "router_noise is -1.0"),
        ({"every": 0}, "every is 0"),
        ({"routed_scale": 0.0}, "routed_scale is 0.0"),
    ],
)
def test_bad_config_is_one_clear_line(options: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        MoEConfig(**options)
    assert "\n" not in str(error.value)
