"""What the studies of P1 say of invented runs with a known truth."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from muonlab.lab.experiment import Study
from muonlab.papers import EXPERIMENTS
from muonlab.papers.p1_stability import FACTORS


def study_of(name):
    experiment = EXPERIMENTS[name]("nano")
    assert isinstance(experiment, Study)
    return experiment


def frame_of(study, loss):
    """Finished runs with ``loss(labels, config, seed)``; an infinite one has diverged."""
    rows = []
    for arm in study.arms:
        for seed in study.seeds:
            value = loss(arm.labels, arm.config, seed)
            status = "finished" if math.isfinite(value) else "failed"
            row = {"arm": arm.name, "seed": seed, "status": status, "loss": value}
            rows.append(row | dict(arm.labels))
    return pd.DataFrame(rows)


def factorial_losses(interaction, gain):
    """Each of the three lowers the loss; the last pair by ``interaction`` more."""
    rng = np.random.default_rng(0)

    def loss(labels, config, seed):
        mla = labels["attention"] == "mla"
        moe = labels["feed-forward"] == "moe"
        muon = labels["optimizer"] == "muon"
        noise = rng.normal(0, 1e-4) + 0.01 * seed
        return 4 - gain * (0.01 * mla + 0.03 * moe + 0.06 * muon) + interaction * moe * muon + noise

    return loss


def test_a_factorial_without_interaction_multiplies():
    study = study_of("p1-factorial")
    perplexity, product = study.judge(frame_of(study, factorial_losses(0.0, 1)))
    assert perplexity.verdict == "reproduced"  # exp(-0.1) - 1 is -9.5 %
    assert perplexity.ours.startswith("-9.5%")
    assert product.verdict == "reproduced"
    perplexity, product = study.judge(frame_of(study, factorial_losses(0.05, 1)))
    assert perplexity.verdict == "direction only"
    assert product.verdict == "refuted"
    assert "MoE × Muon +0.05" in product.ours
    perplexity, _ = study.judge(frame_of(study, factorial_losses(0.0, -1)))
    assert perplexity.verdict == "refuted"


def test_experts_have_dense_counterparts_of_both_sizes():
    models = {arm.name: arm.config.model for arm in study_of("p1-factorial").arms}
    moe, active, total = (
        models[f"mhsa-{ffn}-adamw"] for ffn in ("moe", "dense.active", "dense.total")
    )
    router = moe.dim * 8
    assert active.ffn.num_parameters(64, 0) == moe.ffn.num_active_parameters(64, 0) - router
    assert total.ffn.num_parameters(64, 0) == moe.ffn.num_parameters(64, 0) - router


@pytest.mark.parametrize(
    ("unstable", "expected"),
    [
        ({"muon": 0, "adamw": 2}, "reproduced"),
        ({"muon": 1, "adamw": 5}, "direction only"),
        ({"muon": 5, "adamw": 1}, "refuted"),
        ({"muon": 3, "adamw": 3}, "inconclusive"),
        ({"muon": 0, "adamw": 0}, "inconclusive"),  # nothing failed: the test could not fail
    ],
)
def test_stability_counts_what_diverges_over_the_largest_rates(unstable, expected):
    study = study_of("p1-stability")
    assert len(study.arms) * len(study.seeds) == 112

    def loss(labels, config, seed):
        too_large = FACTORS[len(FACTORS) - unstable[labels["optimizer"]] :]
        return math.inf if labels["factor"] in too_large else 3.0

    (verdict,) = study.judge(frame_of(study, loss))
    assert verdict.verdict == expected
    assert f"muon {8 * unstable['muon']} of 56 failed" in verdict.ours


def test_a_run_that_ended_by_an_error_is_not_stable():
    study = study_of("p1-stability")
    frame = frame_of(study, lambda labels, config, seed: 3.0)
    frame.loc[0, "loss"] = math.nan
    (verdict,) = study.judge(frame)
    assert verdict.verdict == "inconclusive"
    assert "1 of 112 runs" in verdict.sentence


def test_a_run_that_learnt_nothing_or_ends_far_from_the_best_has_failed():
    """The old criterion, a loss above a uniform guess, could not fail: 6.238 nats at nano."""
    study = study_of("p1-stability")
    losses = dict(zip(FACTORS, (3.0, 3.1, 3.2, 3.9, 4.1, 5.3, 5.5), strict=True))
    frame = frame_of(study, lambda labels, config, seed: losses[labels["factor"]])
    (verdict,) = study.judge(frame)
    assert verdict.ours.startswith("muon 24 of 56 failed"), "4.1 and more are 1 nat above the best"
    assert "not known for these runs" in verdict.sentence
    (verdict,) = study.judge(frame.assign(unigram=3.35))
    assert verdict.ours.startswith("muon 32 of 56 failed"), "so is what ends at the unigram"


def batch_losses(ratio):
    """A power law in tokens, of which Muon at ``size`` needs ``ratio(size)`` of AdamW's."""

    rng = np.random.default_rng(1)

    def loss(labels, config, seed):
        train = config.train
        tokens = train.steps * train.batch_size * train.sequence_length
        if labels["optimizer"] == "muon":
            tokens /= ratio(labels["batch"])
        return 2 + 50 * tokens**-0.3 + rng.normal(0, 0.003)

    return loss


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (lambda size: 0.7, "reproduced"),
        (lambda size: 0.6 + 0.1 * math.log2(size / 3) / 5, "direction only"),
    ],
)
def test_the_saving_of_tokens_is_judged_at_the_largest_batch(ratio, expected):
    study = study_of("p1-batch")
    (verdict,) = study.judge(frame_of(study, batch_losses(ratio)))
    assert verdict.verdict == expected
    assert 0.65 < float(re.findall(r"(\d+)% \[", verdict.ours)[-1]) / 100 < 0.75


def test_a_saving_beyond_the_smallest_budget_has_no_trend():
    study = study_of("p1-batch")
    (verdict,) = study.judge(frame_of(study, batch_losses(lambda size: 0.1)))
    assert verdict.verdict == "inconclusive"
    assert "at most 25% [0%," in verdict.ours


def test_batches_range_over_a_factor_of_32_at_equal_tokens():
    whole = [arm.config.train for arm in study_of("p1-batch").arms if arm.labels["budget"] == 1]
    sizes = {train.batch_size for train in whole}
    assert max(sizes) / min(sizes) == 32
    tokens = [train.steps * train.batch_size for train in whole]
    assert max(tokens) / min(tokens) < 1.02  # updates are whole
    assert max(train.micro_batch_size or train.batch_size for train in whole) == 12


@pytest.mark.slow
def test_fifteen_components_change_one_thing_each():
    study = study_of("p1-components")
    default = study.arm("default")
    assert len({arm.labels["component"] for arm in study.arms}) == 16  # and the defaults
    for arm in study.arms:
        assert (arm.search is None) == (arm.tuned_as == "default")
        assert arm.config.data == default.config.data
    surely_lower = ["momentum.0.9", "gelu"]

    def loss(labels, config, seed):
        return 3.0

    frame = frame_of(study, loss)
    noise = np.random.default_rng(0).normal(0, 0.01, len(frame))
    frame["loss"] += noise - 0.5 * frame["arm"].isin(surely_lower)
    (verdict,) = study.judge(frame)
    assert verdict.verdict == "measured, nothing claimed"
    for name in surely_lower:
        assert re.search(rf"{name} -0\.[45]", verdict.ours)
