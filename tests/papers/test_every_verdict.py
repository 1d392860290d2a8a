"""Every claim's verdict function comes to every verdict that its rule allows, on invented runs."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pytest

from muonlab.lab.experiment import Arm, Experiment, Measurement, Study, VerdictName
from muonlab.lab.rules import Rule
from muonlab.papers import (
    EXPERIMENTS,
    p1_batch,
    p1_components,
    p1_compute,
    p1_factorial,
    p1_measured,
    p1_stability,
    p2_attention,
    p2_measured,
    p2_optimizer,
)
from muonlab.papers.claims import CLAIMS
from muonlab.papers.p1_measured import CELLS, FIVE, PARTS, SPECTRUM, TEN
from muonlab.papers.theory import CHECKS

RULES: dict[str, tuple[str, Rule]] = {  # claim → its experiment and its rule
    "P1-compute": ("p1-compute", p1_compute.COMPUTE_RULE),
    "P1-batch": ("p1-batch", p1_batch.BATCH_RULE),
    "P1-mla-moe-mem": ("p1-memory", p1_measured.MEMORY_RULE),
    "P1-mla-moe-speed": ("p1-inference", p1_measured.SPEED_RULE),
    "P1-mla-moe-ppl": ("p1-factorial", p1_factorial.PERPLEXITY_RULE),
    "P1-multiplicative": ("p1-factorial", p1_factorial.PRODUCT_RULE),
    "P1-15": ("p1-components", p1_components.COMPONENTS_RULE),
    "P1-stability": ("p1-stability", p1_stability.STABILITY_RULE),
    "P1-ns": ("p1-polynomials", p1_measured.POLYNOMIALS_RULE),
    "P1-scale": ("p1-sizes", p1_measured.SIZES_RULE),
    "P2-T1": ("p2-table1", p2_optimizer.TABLE1_RULE),
    "P2-T2": ("p2-table2", p2_optimizer.ABLATION_RULE),
    "P2-T3": ("p2-table3", p2_optimizer.SENSITIVITY_RULE),
    "P2-T4": ("p2-table4", p2_attention.TABLE4_RULE),
    "P2-crossover": ("p2-crossover", p2_attention.CROSSOVER_RULE),
    "P2-leak": ("p2-leak", p2_attention.LEAK_RULE),
    "P2-latents": ("p2-latents", p2_attention.LATENTS_RULE),
    "P2-flops": ("p2-attention-cost", p2_measured.COST_RULE),
    "P2-mem": ("p2-attention-cost", p2_measured.COST_RULE),
    "P2-state": ("p2-state", p2_measured.STATE_RULE),
    "P2-profile": ("p2-overhead", p2_measured.PROFILE_RULE),
    "P2-params": ("p2-params", p2_measured.PARAMETERS_RULE),
}
Loss = Callable[[Arm, int], float]
NO_RUNS: Loss = lambda arm, seed: math.nan  # noqa: E731


def noisy(loss: Callable[[Arm], float], noise: float = 0.001) -> Loss:
    generator = np.random.default_rng(0)
    return lambda arm, seed: loss(arm) + noise * generator.standard_normal()


def by_name(losses: Mapping[str, float], otherwise: float = 3.0) -> Loss:
    """The loss of the first name that the arm's begins with."""
    return noisy(
        lambda arm: next(
            (loss for name, loss in losses.items() if arm.name.startswith(name)), otherwise
        )
    )


def needs(share: Callable[[float], float], noise: float = 0.002) -> Loss:
    """A power law in tokens of which Muon needs that share of AdamW's, by the batch size."""

    def loss(arm: Arm) -> float:
        train = arm.config.train
        tokens = train.steps * train.batch_size * train.sequence_length
        if str(arm.labels["optimizer"]).startswith("muon"):
            tokens /= share(float(arm.labels.get("batch", 12)))
        return 2 + 50 * tokens**-0.3

    return noisy(loss, noise)


def factorial(interaction: float, gain: float = 1.0, noise: float = 1e-4) -> Loss:
    def loss(arm: Arm) -> float:
        kind, ffn, optimizer = arm.name.split("-")
        mla, moe, muon = kind == "mla", ffn == "moe", optimizer == "muon"
        return 4 - gain * (0.01 * mla + 0.03 * moe + 0.06 * muon) + interaction * moe * muon

    return noisy(loss, noise)


def failing(muon: int, adamw: int) -> Loss:
    """So many of the seven learning rates fail, the largest first."""
    count = {"muon": muon, "adamw": adamw}
    rates = p1_stability.FACTORS
    return noisy(
        lambda arm: (
            5.0 if arm.labels["factor"] in rates[7 - count[str(arm.labels["optimizer"])] :] else 3.0
        )
    )


def sensitivity(honest_steps_3: float, published_lr: float = 2.0) -> Loss:
    lower = {"lr-0.05": published_lr, "steps-7": 2.8, "lr-0.01-": 2.9}
    return by_name({"steps-3-honest": honest_steps_3} | lower)


def two(muon: float, muon_honest: float, prefixes: tuple[str, ...] = ("muon-1250",)) -> Loss:
    """An arm and its baseline, which is at 3, under both protocols."""
    losses = {f"{name}-honest": muon_honest for name in prefixes}
    return by_name(losses | {f"{name}-published": muon for name in prefixes})


def memory(total: float, cache: float) -> pd.DataFrame:
    rows = []
    names = ("mla + moe + muon", "mhsa + dense + adamw")
    for name, share, held in zip(names, (total, 1.0), (cache, 1.0), strict=True):
        row = dict.fromkeys(PARTS, 100 * share) | {"cache_bytes": 100 * held}
        rows.append(row | {"model": name, "parameters": 1e6, "decoding_weight_bytes": 50 * share})
    return pd.DataFrame(rows)


def speed(factor: float) -> pd.DataFrame:
    return pd.DataFrame(
        [{"batch": batch, "context": context, "speedup": factor} for batch, context in CELLS]
    )


def polynomials(lowest: float) -> pd.DataFrame:
    names = (FIVE, TEN, "you5", "polar_express", "svd")
    values = {"lowest": lowest, "highest": 1.0, "rms_distance": 0.1}
    return pd.DataFrame(
        [
            {"schedule": name, "smallest": smallest} | values
            for name, smallest in itertools.product(names, SPECTRUM)
        ]
    )


def sizes() -> pd.DataFrame:
    return pd.DataFrame({"parameters": [30e6, 200e6], "finite": [True, True]})


def costs(full: float) -> pd.DataFrame:
    """MHSA costs ``full`` times what MHLA does, n / 128 times in the paper's way of counting."""
    rows = []
    for length, kind in itertools.product((512, 1024, 2048, 4096), ("mhsa", "mhla")):
        counted, held = (length / 128, full) if kind == "mhsa" else (1.0, 1.0)
        row = {"kind": kind, "length": length, "step_seconds": 1.0}
        row |= {"quoted_flops": counted, "quoted_bytes": counted}
        rows.append(row | {"forward_flops": held, "peak_bytes": held})
    return pd.DataFrame(rows)


def state(muon: float) -> pd.DataFrame:
    return pd.DataFrame({"optimizer": ["muon", "adamw"], "state_bytes": [muon, 100.0]})


def overhead() -> pd.DataFrame:
    rows = {"optimizer": ["muon", "adamw"], "update_seconds": [0.5, 0.1]}
    return pd.DataFrame(rows | {"gradient_seconds": [30.0, 30.0]})


def parameters(first: int) -> pd.DataFrame:
    return pd.DataFrame({"parameters": [first, 81_861_504]})


MHSA, CAUSAL = ("mhsa-relu",), ("mhla-published", "causal.mhla-honest")
COSTS: dict[VerdictName, Loss | pd.DataFrame] = {
    "reproduced": costs(40.0),
    "refuted": costs(0.9),
    "artefact of the protocol": costs(1.5),
}
CASES: dict[str, dict[VerdictName, Loss | pd.DataFrame]] = {
    "P1-compute": {
        "reproduced": needs(lambda size: 0.38),
        "direction only": needs(lambda size: 0.6),
        "refuted": needs(lambda size: 1.25),
        "inconclusive": NO_RUNS,
    },
    "P1-batch": {
        "reproduced": needs(lambda size: 0.7),
        "direction only": needs(lambda size: 0.6 + 0.1 * math.log2(size / 3) / 5),
        "refuted": needs(lambda size: 1.1),
        "inconclusive": NO_RUNS,
    },
    "P1-mla-moe-mem": {
        "reproduced": memory(0.3, 0.1),
        "direction only": memory(0.7, 0.3),
        "refuted": memory(1.2, 1.1),
    },
    "P1-mla-moe-speed": {
        "reproduced": speed(3.3),
        "direction only": speed(1.5),
        "refuted": speed(0.9),
    },
    "P1-mla-moe-ppl": {
        "reproduced": factorial(0.0),
        "direction only": factorial(0.05),
        "refuted": factorial(0.0, gain=-1),
        "inconclusive": factorial(0.0, gain=0, noise=0.01),
    },
    "P1-multiplicative": {
        "reproduced": factorial(0.0),
        "refuted": factorial(0.3),
        "inconclusive": factorial(0.05, noise=0.1),
    },
    "P1-15": {"measured, nothing claimed": by_name({}), "inconclusive": NO_RUNS},
    "P1-stability": {
        "reproduced": failing(0, 2),
        "direction only": failing(1, 5),
        "refuted": failing(5, 1),
        "inconclusive": failing(0, 0),
    },
    "P1-ns": {
        "reproduced": polynomials(0.97),
        "direction only": polynomials(0.7),
        "refuted": polynomials(0.1),
    },
    "P1-scale": {"not testable at this scale": sizes()},
    "P2-T1": {
        "reproduced": two(2.6, 2.6),
        "direction only": two(2.98, 2.9),
        "refuted": two(3.1, 2.9),
        "artefact of the protocol": two(2.6, 3.0),
        "inconclusive": NO_RUNS,
    },
    "P2-T2": {
        "reproduced": by_name({"full": 2.5, "ns-only": 5.4, "momentum-only": 3.8}),
        "refuted": by_name({"full": 2.5, "ns-only": 3.8, "momentum-only": 5.4}),
        "artefact of the protocol": by_name(
            {"full": 2.5, "ns-only-published": 5.4, "ns-only-honest": 2.6, "momentum-only": 3.8}
        ),
        "inconclusive": by_name({"full": 2.5}),
    },
    "P2-T3": {
        "reproduced": sensitivity(2.95),
        "direction only": sensitivity(2.8),
        "refuted": by_name({"lr-0.02": 1.9, "lr-0.05": 2.0, "steps-7": 2.8, "lr-0.01-": 2.9}),
        "artefact of the protocol": sensitivity(2.5),
        "inconclusive": by_name({"lr-0.4": 1.9, "lr-0.05": 2.0}),
    },
    "P2-T4": {
        "reproduced": two(2.9876, 2.9876, MHSA),
        "direction only": two(2.9, 2.9, MHSA),
        "refuted": two(3.1, 2.9, MHSA),
        "artefact of the protocol": two(2.98, 3.1, MHSA),
        "inconclusive": NO_RUNS,
    },
    "P2-crossover": {
        "reproduced": by_name(dict.fromkeys(CAUSAL, 2.78)),
        "direction only": by_name(dict.fromkeys(CAUSAL, 2.95)),
        "refuted": by_name(dict.fromkeys(CAUSAL, 3.1)),
        "artefact of the protocol": by_name({"mhla-published": 2.78}),
        "inconclusive": NO_RUNS,
    },
    "P2-leak": {
        "reproduced": by_name({}),
        "refuted": by_name({"leaky": 4.0}),
        "artefact of the protocol": by_name({"leaky": 1.0}),
        "inconclusive": NO_RUNS,
    },
    "P2-latents": {"measured, nothing claimed": by_name({}), "inconclusive": NO_RUNS},
    "P2-flops": COSTS,
    "P2-mem": COSTS,
    "P2-state": {
        "reproduced": state(62.0),
        "direction only": state(40.0),
        "refuted": state(101.0),
    },
    "P2-profile": {"measured, nothing claimed": overhead()},
    "P2-params": {"reproduced": parameters(79_059_840), "refuted": parameters(1)},
}


def test_every_claim_has_a_rule_and_a_case_for_each_of_its_verdicts() -> None:
    without = {claim.id for claim in CLAIMS if not claim.experiments}
    by_findings = {  # `judge_findings`: tests/lab/test_bounds.py walks its verdicts
        claim.id for claim in CLAIMS if set(claim.experiments) & set(CHECKS)
    }
    assert set(RULES) == {claim.id for claim in CLAIMS} - without - by_findings
    assert set(CASES) == set(RULES)
    for claim, (_, rule) in RULES.items():
        possible = set(rule.can_be)
        if claim == "P2-profile":  # a measurement lacks no runs
            possible.discard("inconclusive")
        assert set(CASES[claim]) == possible, claim
        assert rule.words.endswith(".")


@pytest.mark.parametrize(
    ("claim", "expected"), [(claim, verdict) for claim, cases in CASES.items() for verdict in cases]
)
def test_invented_runs_come_to_that_verdict(claim: str, expected: VerdictName) -> None:
    name, rule = RULES[claim]
    experiment, case = experiment_of(name), CASES[claim][expected]
    if isinstance(case, pd.DataFrame):
        assert isinstance(experiment, Measurement)
        verdicts = experiment.judge(case)
    else:
        assert isinstance(experiment, Study)
        verdicts = experiment.judge(runs(experiment, case))
    (found,) = (verdict for verdict in verdicts if verdict.claim == claim)
    assert found.verdict == expected, found.sentence
    assert found.rule == rule.words


@functools.cache
def experiment_of(name: str) -> Experiment:
    return EXPERIMENTS[name]("nano")


def runs(study: Study, loss: Loss) -> pd.DataFrame:
    """A row for every arm and seed, as results read it from disk."""
    rows = [
        {
            "arm": arm.name,
            "seed": seed,
            "protocol": arm.protocol,
            "status": "finished",
            "loss": loss(arm, seed),
            "steady_seconds": 1.0 * arm.config.train.steps,
            "peak_memory_bytes": 1e8,
            **arm.labels,
        }
        for arm in study.arms
        for seed in study.seeds
    ]
    return pd.DataFrame(rows)
