"""`spectral`: the bound, Frank–Wolfe, AdamW's bound and the probes against oracles."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muonlab.lab.experiment import Context
from muonlab.papers.theory import spectral, spectral_training
from muonlab.papers.theory.training import hidden_matrices, moments, singular_values
from muonlab.recipes import nano


def test_the_largest_output_of_the_schedules() -> None:
    assert spectral.largest_output("svd") == 1.0
    assert spectral.largest_output("keller5") == pytest.approx(1.2024, abs=5e-4)


@pytest.mark.parametrize("schedule", ["svd", "keller5"])
def test_no_walk_leaves_the_bound(schedule: str) -> None:
    rows = {row["gradients"]: row for row in spectral.bounded_walk(schedule, 0.1, 700)}
    assert max(float(row["largest_ratio"]) for row in rows.values()) <= 1 + 1e-9
    if schedule == "svd":
        assert float(rows["constant"]["final_ratio"]) > 0.99  # and it is reached


def test_frank_wolfe_reaches_the_clipped_solution() -> None:
    rows = spectral.frank_wolfe(400)
    assert all(float(row["smallest_gap"]) <= float(row["bound"]) for row in rows)
    assert float(rows[-1]["distance"]) < 0.1 < float(rows[0]["distance"])


@settings(max_examples=20)
@given(beta1=st.floats(0, 0.95), beta2=st.floats(0.9, 0.999), seed=st.integers(0, 1000))
def test_no_gradients_exceed_the_bound_of_adam(beta1: float, beta2: float, seed: int) -> None:
    if beta1**2 > 0.99 * beta2:
        return
    generator = torch.Generator().manual_seed(seed)
    bound = spectral_training.adamw_update(beta1, beta2, 60)
    m = v = 0.0
    growth = 1 + torch.rand(1, generator=generator).item()
    for update in range(1, 61):
        g = torch.randn(1, generator=generator).item() * growth**update
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        step = abs(m / (1 - beta1**update)) / math.sqrt(v / (1 - beta2**update))
        assert step <= bound * (1 + 1e-9)


def test_the_first_update_of_adam_can_reach_one() -> None:
    assert spectral_training.adamw_update(0.9, 0.95, 1) == pytest.approx(1.0)


def test_rotated_queries_and_keys_are_those_of_the_attention() -> None:
    """Attention by these queries and keys is the module's own output."""
    model = nano().model.build(0)
    attention: Any = model.layers()[0].attention
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    queries, keys = spectral_training.rotated_queries_and_keys(attention, x)
    values = attention.qkv(x).unflatten(-1, (3, 2, 16))[..., 2, :, :].transpose(1, 2)
    out = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    torch.testing.assert_close(attention.out(out.transpose(1, 2).flatten(2)), attention(x))


def test_the_logit_bound_bounds_logits() -> None:
    model = nano().model.build(0)
    norms = {
        name: singular_values(weight)[:, -1].max().item()
        for name, (weight, _) in hidden_matrices(model).items()
    }
    tokens = torch.randint(512, (4, 32), generator=torch.Generator().manual_seed(0))
    largest = spectral_training.largest_logit(model, tokens)
    assert 0 < largest <= spectral_training.logit_bound(model, norms)
    assert model.training


def test_hidden_matrices_are_the_blocks_that_muon_sees() -> None:
    found = hidden_matrices(nano().model.build(0))
    assert found["blocks.0.attention.qkv.weight[1]"][0].shape == (1, 32, 32)
    assert {weight.shape[0] for weight, _ in found.values()} == {1, 4}  # 4 experts


def test_training_under_observation_is_training(tmp_path: Path) -> None:
    """Moments carry gradients, losses fall, and the probe leaves the run as it was."""
    arm = spectral_training.ARMS[0]
    rows = spectral_training.train_arm(arm, 0, 12, 6, tmp_path)
    losses = [float(row["loss"]) for row in rows if row["part"] == "probe"]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    matrices = [row for row in rows if row["part"] == "matrix"]
    assert all(float(row["norm"]) <= float(row["bound"]) for row in matrices)

    config = spectral_training.arm_config(arm, 0, 12)
    data = config.data.prepare(tmp_path, progress=False)
    unobserved = [moment.loss for moment in moments(config, data)]
    assert unobserved[::6] == losses
    other = dataclasses.replace(config, seed=1)
    assert next(iter(moments(other, data))).loss != unobserved[0]


@pytest.mark.slow
def test_spectral_at_its_smallest(tmp_path: Path) -> None:
    sizes = spectral.Sizes(
        num_updates=900, training_updates=20, training_seeds=(0,), probe_every=10
    )
    findings = spectral.find(spectral.measure(sizes, Context(cache_dir=tmp_path)))
    bound, prevention = spectral.judge_both(findings)
    assert bound.verdict == "reproduced"
    assert prevention.verdict == "inconclusive", "nothing exploded that could be prevented"
    assert "no arm exploded" in prevention.sentence
