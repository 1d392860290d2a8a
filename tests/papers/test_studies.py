import dataclasses
import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest

from muonlab.config import from_json, to_json
from muonlab.data import LeakyWindowSplit
from muonlab.lab.arms import Pair, contrasts
from muonlab.lab.experiment import SCALES, Measurement, Scale, Study
from muonlab.lab.rules import DifferenceRule, IntervalRule, judge_difference
from muonlab.papers import EXPERIMENTS

STUDIES = [name for name, make in EXPERIMENTS.items() if isinstance(make("nano"), Study)]


def study_of(name, scale: Scale = "nano"):
    experiment = EXPERIMENTS[name](scale)
    assert isinstance(experiment, Study)
    return experiment


def frame_of(study, loss, *, seeds=None):
    """Finished runs with ``loss(arm, seed)``."""
    rows = [
        {
            "arm": arm.name,
            "seed": seed,
            "protocol": arm.protocol,
            "status": "finished",
            "loss": loss(arm, seed),
            "steady_seconds": math.nan,
            "peak_memory_bytes": 1e8 * arm.labels.get("length", 0),
            **arm.labels,
        }
        for arm in study.arms
        for seed in (study.seeds if seeds is None else seeds)
    ]
    figures = ["loss", "steady_seconds", "peak_memory_bytes"]
    columns = ["arm", "seed", "protocol", "status", *figures]
    labels = dict.fromkeys(label for arm in study.arms for label in arm.labels)
    return pd.DataFrame(rows, columns=[*columns, *labels])


@pytest.mark.parametrize(("name", "scale"), list(itertools.product(EXPERIMENTS, SCALES)))
def test_every_experiment_can_be_made_at_every_scale(name, scale):
    experiment = EXPERIMENTS[name](scale)
    assert (experiment.name, experiment.scale) == (name, scale)
    assert experiment.claims
    if isinstance(experiment, Measurement):
        return
    assert len(experiment.seeds) >= (2 if name == "p1-stability" else 3)  # counts runs
    fingerprints = set()
    for arm in experiment.arms:
        run = arm.run(experiment.name, experiment.seeds[0])
        assert from_json(to_json(run)) == run
        fingerprints.add(run.fingerprint())
    assert len(fingerprints) == len(experiment.arms) - tuned_alike(experiment)
    again = EXPERIMENTS[name](scale)
    assert isinstance(again, Study)
    assert experiment.fingerprint() == again.fingerprint()


def tuned_alike(study):
    """Arms that differ in nothing but the values that they will be tuned to."""
    configs = [arm.config.fingerprint() for arm in study.arms]
    return len(configs) - len(set(configs))


@pytest.mark.parametrize("name", STUDIES)
def test_only_the_published_protocol_leaks(name):
    for arm in study_of(name).arms:
        leaky = isinstance(arm.config.data.split, LeakyWindowSplit)
        assert leaky == (arm.protocol == "as_published")


@pytest.mark.parametrize(
    "name", [name for name in STUDIES if name.startswith("p2") and name != "p2-leak"]
)
def test_the_two_protocols_train_the_same_arms(name):
    arms = study_of(name).arms
    by_protocol = {
        protocol: {
            arm.name.rsplit("-", 1)[0]: arm.config.model for arm in arms if arm.protocol == protocol
        }
        for protocol in ("as_published", "honest")
    }
    published, honest = by_protocol.values()
    shared = published.keys() & honest.keys()
    assert shared
    assert all(published[arm] == honest[arm] for arm in shared)


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("seeds", [(), (0,)])
def test_too_few_runs_are_inconclusive(name, seeds):
    study = study_of(name)
    verdicts = study.judge(frame_of(study, lambda arm, seed: 3.0 + seed, seeds=seeds))
    assert {verdict.claim for verdict in verdicts} == set(study.claims)
    assert {verdict.verdict for verdict in verdicts} == {"inconclusive"}


PUBLISHED, HONEST = Pair(arm="a", baseline="b"), Pair(arm="c", baseline="d")


def judged(losses, paper=-0.1, changed=None, family=(PUBLISHED, HONEST), regrets=None):
    """Three seeds of every arm at (loss, slope over seeds); ``changed``: (arm, seed) → its loss;
    ``regrets``: of the arms that a search tuned."""
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "status": "finished",
            "loss": (changed or {}).get((arm, seed), loss + 0.001 * seed * slope),
            "tuned/optimizer.lr": 0.01 if arm in (regrets or {}) else math.nan,
            "regret": (regrets or {}).get(arm, 0.0),
        }
        for arm, (loss, slope) in losses.items()
        for seed in range(3)
    ]
    return judge_difference(
        "P2-T1",
        pd.DataFrame(rows),
        "nano",
        what="loss",
        published=PUBLISHED,
        honest=HONEST,
        rule=DifferenceRule(paper=paper),
        family=family,
    )


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({"a": 2.7, "b": 3.0, "c": 3.0, "d": 3.2}, "reproduced"),
        ({"a": 2.99, "b": 3.0, "c": 3.0, "d": 3.2}, "direction only"),
        ({"a": 2.7, "b": 3.0, "c": 3.2, "d": 3.2}, "artefact of the protocol"),
        ({"a": 2.7, "b": 3.0, "c": 3.3, "d": 3.2}, "artefact of the protocol"),
        ({"a": 3.1, "b": 3.0, "c": 3.0, "d": 3.2}, "refuted"),
        ({"a": 3.0, "b": 3.0, "c": 3.0, "d": 3.2}, "inconclusive"),
    ],
)
def test_the_verdict_follows_from_the_intervals(losses, expected):
    signs = {"a": 1, "b": -1, "c": -1, "d": 1}
    verdict = judged({arm: (loss, signs[arm]) for arm, loss in losses.items()})
    assert verdict.verdict == expected
    assert "n = 3 pairs" in verdict.sentence


def test_a_diverged_arm_is_worse_than_any_other():
    losses = {"a": (2.7, 1), "b": (float("inf"), 0), "c": (2.7, 1), "d": (float("inf"), 0)}
    assert judged(losses).verdict == "direction only"
    losses = {"a": (float("inf"), 0), "b": (2.7, 1), "c": (2.7, 1), "d": (3, 0)}
    assert judged(losses).verdict == "refuted"


def test_one_diverged_seed_decides_nothing():
    losses = {"a": (2.7, 1), "b": (3.0, -1), "c": (2.7, 1), "d": (3.0, -1)}
    assert judged(losses).verdict == "reproduced"
    assert judged(losses, changed={("c", 1): math.inf}).verdict == "inconclusive"
    assert judged(losses, changed={("a", 1): math.inf}).verdict == "inconclusive"


def test_a_run_that_ended_by_an_error_is_left_out_with_its_pair():
    losses = {"a": (2.7, 1), "b": (3.0, -1), "c": (2.7, 1), "d": (3.0, -1)}
    found = judged(losses, changed={("a", 1): math.nan, ("b", 0): 30.0, ("a", 0): math.nan})
    assert "n = 1, no interval" in found.sentence
    assert found.verdict == "inconclusive"
    assert "2.7020 against 2.9980" in found.sentence, "means of the pairs alone"


def test_an_honest_interval_that_may_hold_the_effect_is_no_artefact():
    losses = {"a": (2.7, 1), "b": (3.0, -1), "c": (2.95, -100), "d": (3.0, 0)}
    assert judged(losses).verdict == "inconclusive"  # honest: -0.15 ± 0.25


def test_the_verdict_follows_the_p_of_the_table_and_not_the_raw_interval():
    """With 3 seeds the raw intervals leave out 0; corrected over 22 comparisons none does."""
    losses = {"a": (2.7, 50), "b": (3.0, -1), "c": (2.7, 50), "d": (3.0, -1)}
    many = [Pair(arm=f"x{index}", baseline="b") for index in range(20)]
    losses |= {pair.arm: (3.0, 50 + index) for index, pair in enumerate(many)}
    assert judged(losses).verdict == "direction only"
    assert judged(losses, family=(PUBLISHED, HONEST, *many)).verdict == "inconclusive"


def test_a_size_is_judged_by_its_interval():
    """-0.12 ± 0.1: the middle is the paper's, the interval also holds a fifth of it."""
    sure = {"a": (2.7, 1), "b": (3.0, -1), "c": (2.7, 1), "d": (3.0, -1)}
    assert judged(sure).verdict == "reproduced"
    unsure = sure | {"a": (2.63, 60), "b": (3.0, -10)}
    found = judged(unsure)
    assert found.verdict == "direction only"


def test_arms_that_are_compared_share_their_scatter():
    """Three pairs alone do not tell 0.02 nats; with the scatter of all arms they do."""
    noise = np.array(list(itertools.permutations((-0.004, 0.0, 0.005))))
    arms = [f"arm{index}" for index in range(6)]
    rows = [
        {"arm": arm, "seed": seed, "loss": 3 - 0.03 * (arm == "arm0") + noise[index, seed]}
        for index, arm in enumerate(arms)
        for seed in range(3)
    ]
    pairs = [Pair(arm="arm0", baseline=arm) for arm in arms[1:]]
    alone = [contrasts(pd.DataFrame(rows), [pair])[0] for pair in pairs]
    together = contrasts(pd.DataFrame(rows), pairs)
    assert all(found.pooled for found in together)
    assert not any(found.pooled for found in alone)
    widths = [[found.high - found.low for found in each] for each in (alone, together)]
    assert np.median(widths[1]) < 0.8 * np.median(widths[0])
    rows[0]["loss"] += 1
    assert not any(found.pooled for found in contrasts(pd.DataFrame(rows), pairs)), "not alike"


def test_what_a_search_may_have_lost_is_part_of_the_verdict():
    """-0.3 nats are sure among seeds; the baseline's search may have lost more than that."""
    losses = {"a": (2.7, 1), "b": (3.0, -1), "c": (2.7, 1), "d": (3.0, -1)}
    assert judged(losses).verdict == "reproduced"
    assert judged(losses, regrets={"c": 0.001, "d": 0.002}).verdict == "reproduced"
    lost = judged(losses, regrets={"c": 0.001, "d": 0.31})
    assert lost.verdict == "inconclusive"
    assert "the searches' regret of 0.0010 and 0.3100 included" in lost.sentence
    unknown = judged(losses, regrets={"c": math.nan, "d": math.nan})
    assert unknown.verdict == "reproduced"
    assert unknown.sentence.count("regret of the searches not measured") == 1, "honest arms only"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.45, 0.6, "reproduced"),
        (0.45, 0.95, "direction only"),  # it may also be a twentieth
        (0.2, 0.4, "direction only"),
        (0.7, 1.1, "inconclusive"),
        (1.1, 1.3, "refuted"),
        (math.nan, math.nan, "inconclusive"),
        (math.inf, math.inf, "refuted"),
    ],
)
def test_an_interval_is_judged_by_where_it_lies_and_how_wide_it_is(low, high, expected):
    rule = IntervalRule(what="a ratio", claimed=(0.48, 0.52), nothing=1)
    assert rule.decide(low, high) == expected
    assert rule.decide(low, high, p=0.2) == "inconclusive"


def test_removing_newton_schulz_costs_more_refutes_the_ablation():
    study = study_of("p2-table2")
    losses = {"full": 2.5, "momentum-only": 5.4, "ns-only": 3.8, "neither": 5.3}

    def loss(arm, seed):
        return losses[arm.name.rsplit("-", 1)[0]] + 0.01 * seed

    assert [verdict.verdict for verdict in study.judge(frame_of(study, loss))] == ["refuted"]
    losses["momentum-only"], losses["ns-only"] = losses["ns-only"], losses["momentum-only"]
    assert [verdict.verdict for verdict in study.judge(frame_of(study, loss))] == ["reproduced"]


def test_a_best_rate_at_the_edge_of_the_grid_is_inconclusive():
    study = study_of("p2-table3")
    rates = [arm.labels["lr"] for arm in study.arms if "lr" in arm.labels]

    def best_at(rate):
        def loss(arm, seed):
            return abs(arm.labels.get("lr", 1) - rate) + 0.001 * seed * (
                1 + arm.labels.get("lr", 1)
            )

        (verdict,) = study.judge(frame_of(study, loss))
        return verdict

    assert best_at(max(rates)).verdict == "inconclusive"
    assert "edge" in best_at(max(rates)).sentence
    assert best_at(0.02).verdict == "refuted"


def test_the_papers_best_values_must_be_surely_the_best():
    study = study_of("p2-table3")
    lower = {"lr-0.05": 2.0, "steps-7": 2.9, "lr-0.01": 2.95}
    noise = {"lr-0.05": 1, "steps-3": -1}  # by seed: neighbours are tied

    def verdict(honest_steps_3):
        def loss(arm, seed):
            name, short = arm.name.rsplit("-", 1)
            if (name, short) == ("steps-3", "honest"):
                return honest_steps_3 - 0.01 * seed
            return lower.get(name, 3.0) + 0.01 * seed * noise.get(name, 0)

        (found,) = study.judge(frame_of(study, loss))
        return found.verdict

    assert verdict(2.97) == "reproduced"
    assert verdict(2.91) == "direction only", "7 steps are not surely the best"
    assert verdict(2.5) == "artefact of the protocol"


def test_the_leak_is_what_held_out_documents_lose():
    study = study_of("p2-leak")

    def loss(arm, seed):
        return {"leaky": 1.0, "documents": 4.0, "documents-fresh": 3.5}[arm.name] + 0.01 * seed

    (verdict,) = study.judge(frame_of(study, loss))
    assert verdict.verdict == "artefact of the protocol"
    assert "3.000 nats" in verdict.sentence


def test_latents_are_described_by_loss_time_and_memory():
    study = study_of("p2-latents")
    frame = frame_of(study, lambda arm, seed: 4.0 + 0.001 * arm.labels["latents"])
    (verdict,) = study.judge(frame)
    assert verdict.verdict == "measured, nothing claimed"
    assert "at 2048 tokens 4.032 with 32, 4.064 with 64, 4.128 with 128, 4.000 nats with MHSA" in (
        verdict.sentence
    )
    assert "peak memory by 1.00 to 1.00" in verdict.sentence
    assert "missing" not in verdict.sentence
    (verdict,) = study.judge(frame.loc[frame["arm"] != "mhsa-4096-honest"])
    assert "at 2048 tokens" in verdict.sentence
    assert "at 4096 tokens" not in verdict.sentence
    assert verdict.sentence.endswith("Runs are missing.")
    assert verdict.verdict == "inconclusive"


def test_published_text_is_read_as_often_as_in_the_paper():
    for scale in ("nano", "small"):
        study = study_of("p2-table1", scale)
        config = study.arm("muon-250-published").config
        seen = config.train.steps * config.train.batch_size * config.train.sequence_length
        assert config.data.max_tokens is not None
        assert seen / config.data.max_tokens == pytest.approx(24.6, rel=0.01)
    paper = study_of("p2-table1", "paper").arm("muon-250-published").config
    assert paper.data.max_tokens is not None
    assert 250 * 96 * 512 / paper.data.max_tokens == pytest.approx(24.6, rel=0.01)
    assert dataclasses.replace(paper, seed=42, name="p2", variant="muon").model.dim == 384


def compute_frame(ratio, seeds=range(5)):
    """Runs in which Muon needs ``ratio`` of the updates that any AdamW does."""
    study = study_of("p1-compute")
    rng = np.random.default_rng(0)
    rows = []
    for arm in study.arms:
        steps = arm.config.train.steps / (
            ratio if str(arm.labels["optimizer"]).startswith("muon") else 1
        )
        for seed in seeds:
            row = {"arm": arm.name, "seed": seed, "status": "finished", **arm.labels}
            loss = 2.5 + 30 / steps**0.6 + 0.01 * seed + 0.002 * rng.standard_normal()
            rows.append(row | {"loss": loss, "steady_seconds": 0.1 * arm.config.train.steps})
    return study, pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.38, "reproduced"), (0.75, "direction only"), (1.25, "refuted")]
)
def test_the_cost_of_reaching_the_baselines_loss_is_found(ratio, expected):
    study, frame = compute_frame(ratio)
    (verdict,) = study.judge(frame)
    assert verdict.verdict == expected
    found = re.search(r"(\d+)% \[[^]]*\] of its tokens", verdict.sentence)
    assert found is not None
    assert float(found[1]) / 100 == pytest.approx(ratio, abs=0.05)


def test_the_headline_is_against_the_better_adamw():
    study, frame = compute_frame(0.38)
    better = frame["optimizer"].isin(["adamw-groups", "muon-groups"])
    frame.loc[better, "loss"] -= 0.3
    (verdict,) = study.judge(frame)
    assert verdict.sentence.endswith("Judged by adamw-groups, the better AdamW.")
    assert verdict.verdict == "reproduced"
    frame.loc[frame["optimizer"] == "muon-groups", "loss"] = math.nan
    (verdict,) = study.judge(frame)
    assert verdict.verdict == "inconclusive", "a Muon of one rate is no match for two"
    assert "muon-groups against adamw-groups: 0 seeds" in verdict.sentence


def test_the_headline_survives_divergence():
    study, frame = compute_frame(0.5)
    for optimizer in ("adamw", "muon"):
        lost = frame.copy()
        budget = (lost["optimizer"] == optimizer) & (lost["budget"] == 0.25)
        lost.loc[budget, ["loss", "steady_seconds"]] = math.inf, math.nan
        (verdict,) = study.judge(lost)
        assert verdict.verdict == study.judge(frame)[0].verdict == "direction only"
        assert "by a fitted power law an unknown share (runs diverged)" in verdict.sentence
        assert "an unknown share of its time" in verdict.sentence
    frame["loss"], frame["steady_seconds"] = math.inf, math.nan
    assert study.judge(frame)[0].verdict == "inconclusive"


def test_compute_needs_two_seeds_with_all_their_runs():
    study, frame = compute_frame(0.5, seeds=range(2))
    assert study.judge(frame)[0].verdict == "direction only", "two seeds leave a wide interval"
    cut = (frame["seed"] == 1) & (frame["budget"] == 0.25)
    frame.loc[cut, "loss"] = math.nan  # missing, or ended by an error
    assert study.judge(frame)[0].verdict == "inconclusive"
