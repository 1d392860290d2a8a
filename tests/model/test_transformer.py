"""The whole model: initialisation, loss, causality with every router, decoding, bad configs."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from on_device import placed
from torch.nn import functional

from muonlab.model import ModelConfig
from muonlab.model.attention import MHSAConfig
from muonlab.model.ffn import DenseConfig
from muonlab.model.moe import MoEConfig

pytestmark = pytest.mark.usefixtures("on_device")

V = 37


TINY = ModelConfig(
    vocab_size=V, dim=16, num_layers=2, max_length=40, ffn=MoEConfig(hidden_dim=16, num_experts=4)
)


def tiny(**options) -> ModelConfig:
    return replace(TINY, **options)


def sharp(config: ModelConfig, seed: int = 0):
    """A model whose outputs depend strongly on its inputs."""
    model = placed(config.build(seed))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return model


def test_arms_of_a_comparison_start_with_the_same_values():
    first = dict(tiny().build(3).named_parameters())
    variant = tiny(ffn=DenseConfig(hidden_dim=16), attention=MHSAConfig(qk_norm=True))
    second = dict(variant.build(3).named_parameters())
    shared = [n for n in first if n in second and first[n].shape == second[n].shape]
    assert {"embedding.weight", "blocks.0.attention.qkv.weight", "norm.weight"} <= set(shared)
    assert all(torch.equal(first[name], second[name]) for name in shared)
    other = tiny().build(4)
    assert not torch.equal(other.embedding.weight, first["embedding.weight"])
    state = torch.get_rng_state()
    tiny().build(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_init_std():
    config = ModelConfig(vocab_size=500, dim=128, num_layers=2, init_std=0.05)
    model = config.build(0)
    assert model.embedding.weight.std().item() == pytest.approx(0.05, rel=0.03)
    attention: Any = model.layers()[0].attention
    assert attention.qkv.weight.std().item() == pytest.approx(0.05, rel=0.03)
    assert attention.out.weight.std().item() == pytest.approx(0.05 / math.sqrt(4), rel=0.03)
    assert torch.equal(model.norm.weight, torch.ones(128))


def test_loss_is_the_cross_entropy_of_the_logits_plus_balancing():
    model = sharp(tiny())
    tokens, targets = torch.randint(V, (2, 3, 11))
    out = model(tokens, targets)
    expected = functional.cross_entropy(model.logits(tokens).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(out.cross_entropy, expected)
    balancing = sum(router.loss for router in out.routers)
    torch.testing.assert_close(out.loss, expected + balancing)
    assert len(out.routers) == 2


def test_score_equals_the_forward_loss():
    model = sharp(tiny()).eval()
    tokens, targets = torch.randint(V, (2, 3, 11))
    scores, routers = model.score(tokens, targets)
    torch.testing.assert_close(scores.losses.mean(), model(tokens, targets).cross_entropy)
    assert torch.equal(
        scores.correct, model.logits(tokens).argmax(-1).flatten() == targets.flatten()
    )
    assert all(router.tokens_per_expert.sum() == 66 for router in routers)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("gate", "balancing"),
    list(itertools.product(("softmax", "sigmoid"), ("none", "auxiliary", "bias"))),
)
def test_no_router_lets_the_future_in(gate, balancing, training: bool):
    ffn = MoEConfig(hidden_dim=16, num_experts=4, gate=gate, balancing=balancing)
    model = sharp(tiny(ffn=ffn)).train(training)
    tokens = torch.randint(V, (3, 30))
    changed = tokens.clone()
    changed[:, 13:] = torch.randint(V, (3, 17))
    before, after = model.logits(tokens), model.logits(changed)
    # expert products run over batches that the future changes: equal up to rounding
    torch.testing.assert_close(after[:, :13], before[:, :13], rtol=1e-5, atol=1e-5)
    assert (after[:, 13:] - before[:, 13:]).abs().amax() > 1
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model.logits(tokens[order]), before[order], rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_parameter():
    model = sharp(tiny())
    tokens, targets = torch.randint(V, (2, 4, 32))
    model(tokens, targets).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_bf16_stays_near_fp32():
    model = placed(tiny().build(0))
    tokens, targets = torch.randint(V, (2, 4, 32))
    expected = model(tokens, targets).loss
    model.compute_dtype = torch.bfloat16
    torch.testing.assert_close(model(tokens, targets).loss, expected, rtol=1e-2, atol=1e-2)


def test_dropout_acts_in_training_only():
    model = sharp(tiny(dropout=0.5))
    tokens = torch.randint(V, (2, 16))
    assert not torch.equal(model.logits(tokens), model.logits(tokens))
    model.eval()
    assert torch.equal(model.logits(tokens), model.logits(tokens))


def test_embedding_scale_and_tied_head():
    model = placed(tiny(scale_embedding=True).build(0))
    assert model.head.weight is model.embedding.weight
    plain = placed(tiny().build(0))
    tokens = torch.randint(V, (1, 4))
    seen = []
    for each in (model, plain):
        each.layers()[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        each.logits(tokens)
    torch.testing.assert_close(seen[0], 4 * seen[1])  # width 16
    assert tiny(tie_head=False).build(0).head.weight is not model.embedding.weight


def test_decoding_ragged_prompts_equals_the_full_pass():
    model = sharp(tiny()).eval()
    rows = [torch.randint(V, (length,)) for length in (9, 4, 6)]
    prompts = torch.zeros(3, 9, dtype=torch.long)
    for i, row in enumerate(rows):
        prompts[i, : len(row)] = row
    state = model.new_state(3, 16)
    logits = model.decode(prompts, state, [9, 4, 6])
    for _ in range(5):
        for i, row in enumerate(rows):
            expected = model.logits(row[None])[0, -1]
            torch.testing.assert_close(logits[i], expected, rtol=1e-4, atol=1e-4)
        chosen = logits.argmax(-1)
        rows = [torch.cat((row, token[None])) for row, token in zip(rows, chosen, strict=True)]
        logits = model.decode(chosen[:, None], state)
    assert state.lengths == [14, 9, 11]


def test_a_full_state_refuses_more_tokens():
    model = placed(tiny().build(0))
    state = model.new_state(1, 4)
    model.decode(torch.zeros(1, 3, dtype=torch.long), state)
    with pytest.raises(ValueError, match="5 tokens do not fit the decoding state of 4"):
        model.decode(torch.zeros(1, 2, dtype=torch.long), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim is 0; it must be at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"init_std": 0.0}, "init_std is 0.0"),
        ({"dim": 130}, "num_heads is 4; model width 130 must be an even multiple"),
    ],
)
def test_bad_config_is_one_clear_line(options: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        ModelConfig(**options)
    assert "\n" not in str(error.value)
