"""P1's combination as a study: {MHSA, MLA} × {dense, MoE} × {AdamW, Muon}, each arm tuned.

A mixture of experts has two dense counterparts: one as wide as what a token uses, one as large as
the whole. The claims are judged against the second, whose total size P1's figures of memory need.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from muonlab.config import RunConfig
from muonlab.lab.arms import Pair, compare, pairs_of, regret, values
from muonlab.lab.experiment import Arm, Comparison, Label, Scale, Study, Verdict, VerdictName
from muonlab.lab.grid import Changes, arm_name, grid
from muonlab.lab.rules import IntervalRule, StatedRule, regret_text
from muonlab.lab.statistics import Difference, factorial_effects, holm, scaled
from muonlab.model.ffn import DenseConfig
from muonlab.model.moe import MoEConfig
from muonlab.papers.protocols import (
    FAIR,
    FAIR_NOTE,
    OPTIMIZERS,
    SEEDS,
    attentions,
    p1_base,
    search_of,
)

PERPLEXITY_RULE = IntervalRule(
    what="the relative change of the perplexity against the dense model of equal size",
    claimed=(-0.12, -0.08),
    nothing=0,
)
MARGIN = 0.05  # of the log of the perplexity: half of the gain that the paper claims
PRODUCT_RULE = StatedRule(
    words="Gains multiply where the interactions of the 2³ factorial, on the log of the "
    "perplexity, are 0. Reproduced where the 95 % intervals of all four lie within "
    f"±{MARGIN:g} nats; refuted where p of one, corrected after Holm over the four, is below .05; "
    "else inconclusive.",
    can_be=("reproduced", "refuted", "inconclusive"),
)
FACTORS = ("MLA", "MoE", "Muon")
ATTENTIONS = ("mhsa", "mla")
LEVELS = {  # of each factor
    "attention": ATTENTIONS,
    "feed-forward": ("dense.total", "moe"),
    "optimizer": tuple(FAIR),
}
FEED_FORWARDS = ("dense.active", "dense.total", "moe")
WHOLE = Pair(arm="mla-moe-muon", baseline="mhsa-dense.total-adamw")


def factorial(scale: Scale) -> Study:
    """Twelve arms; the two kinds of dense layers share the rest of the design."""
    config = p1_base(scale)
    factors: dict[str, Mapping[Label, Changes]] = {
        "attention": attentions(*ATTENTIONS),
        "feed-forward": {name: _feed_forward(name) for name in FEED_FORWARDS},
        "optimizer": {name: {"optimizer": OPTIMIZERS[name]} for name in FAIR},
    }
    arms = grid(config, factors, search=lambda labels: search_of(FAIR[str(labels["optimizer"])]))

    comparisons = tuple(
        Comparison(arm=arm, baseline=baseline)
        for arm, baseline in (
            (WHOLE.arm, WHOLE.baseline),
            (WHOLE.arm, "mhsa-dense.active-adamw"),
            ("mla-dense.total-adamw", WHOLE.baseline),
            ("mhsa-moe-adamw", WHOLE.baseline),
            ("mhsa-dense.total-muon", WHOLE.baseline),
        )
    )

    def judge(frame: pd.DataFrame) -> list[Verdict]:
        return [
            _perplexity_verdict(frame, scale, pairs_of(comparisons)),
            _interaction_verdict(frame, scale, arms),
        ]

    return Study(
        name="p1-factorial",
        scale=scale,
        question="Do MLA, MoE and Muon lower the perplexity, and do their gains multiply?",
        claims=("P1-mla-moe-ppl", "P1-multiplicative"),
        arms=arms,
        seeds=SEEDS,
        judge=judge,
        comparisons=comparisons,
        notes=(
            FAIR_NOTE,
            "Experts have a hidden width of their own; dense.active is as wide as the experts that "
            "a token uses, dense.total as all of them. MLA has fewer parameters than MHSA at the "
            "same width.",
        ),
    )


def _feed_forward(name: str) -> Callable[[RunConfig], RunConfig]:
    return lambda config: _with_feed_forward(config, name)


def _with_feed_forward(config: RunConfig, name: str) -> RunConfig:
    ffn = config.model.ffn
    if not isinstance(ffn, MoEConfig):
        raise TypeError(f"the base of p1-factorial has {ffn.kind} layers, not experts")
    if name == "moe":
        return config
    experts = ffn.top_k if name == "dense.active" else ffn.num_experts
    dense = DenseConfig(
        hidden_dim=ffn.hidden_dim * (experts + ffn.num_shared_experts),
        activation=ffn.activation,
        gated=ffn.gated,
    )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, ffn=dense))


def _perplexity_verdict(frame: pd.DataFrame, scale: Scale, family: list[Pair]) -> Verdict:
    """From the 95 % interval of the perplexity's change against the dense model of equal size."""
    found = {
        baseline: compare(frame, Pair(arm=WHOLE.arm, baseline=f"mhsa-{baseline}-adamw"), family)
        for baseline in ("dense.total", "dense.active")
    }
    change = found["dense.total"]
    texts = [f"{_change(difference)} against {name}" for name, difference in found.items()]
    lost = "".join(f"; {said}" for said in (regret_text(change),) if said)
    sure = f", p = {change.corrected_p:.2g} after Holm" if change.corrected_p < 1 else ""
    return Verdict(
        claim="P1-mla-moe-ppl",
        verdict=PERPLEXITY_RULE.decide(
            math.expm1(change.low), math.expm1(change.high), change.corrected_p
        ),
        rule=PERPLEXITY_RULE.words,
        sentence=f"Perplexity of MLA + MoE + Muon at {scale} scale, every arm tuned: "
        f"{'; '.join(texts)} with MHSA and AdamW (n = {change.num_pairs} seeds{sure}{lost}).",
        paper="8 to 12 % better",
        ours=texts[0],
    )


def _change(difference: Difference) -> str:
    if not difference.num_pairs:
        return "not run"
    mean, low, high = (math.expm1(v) for v in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]"


def _interaction_verdict(frame: pd.DataFrame, scale: Scale, all_arms: Sequence[Arm]) -> Verdict:
    """Of the 2³ factorial with dense.total, by `PRODUCT_RULE`.

    An interaction is shown as the departure from multiplying: log of what the factors bring
    together, less the logs of what each brings. A contrast of signs is 1/2 of it for two factors,
    1/4 for three.
    """
    arms = {
        cell: arm_name(all_arms, **_labels(cell))
        for cell in itertools.product((0, 1), repeat=len(LEVELS))
    }
    losses = {cell: values(frame, arm) for cell, arm in arms.items()}
    regrets: dict[tuple[int, ...], float] = {cell: regret(frame, arm) for cell, arm in arms.items()}
    seeds = sorted(set.intersection(*(set(found.index) for found in losses.values())))
    if len(seeds) < 2:
        return Verdict(
            claim="P1-multiplicative",
            verdict="inconclusive",
            sentence=f"At {scale} scale, less than two seeds have all their runs.",
            rule=PRODUCT_RULE.words,
        )
    perplexities: dict[tuple[int, ...], list[float]] = {
        cell: [math.exp(loss) for loss in found.loc[seeds]] for cell, found in losses.items()
    }
    effects = {
        name: scaled(effect, 2 ** name.count("×"))
        for name, effect in factorial_effects(perplexities, FACTORS, regrets).items()
    }
    interactions = {name: effect for name, effect in effects.items() if "×" in name}
    corrected = holm([effect.p for effect in interactions.values()])
    verdict: VerdictName = "inconclusive"
    if any(p < 0.05 for p in corrected):
        verdict = "refuted"
    elif all(max(-e.low, e.high) < MARGIN for e in interactions.values()):
        verdict = "reproduced"
    lost = "".join(f"; {said}" for said in (regret_text(effects[FACTORS[0]]),) if said)
    texts = [
        f"{name} {effect.mean:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]"
        for name, effect in effects.items()
    ]
    return Verdict(
        claim="P1-multiplicative",
        verdict=verdict,
        sentence=f"Effects on the log of the perplexity at {scale} scale: {'; '.join(texts)} nats "
        f"(n = {len(seeds)} seeds{lost}). Gains multiply where the products' effects are 0.",
        paper="the gains multiply",
        ours="; ".join(text for text in texts if "×" in text),
        rule=PRODUCT_RULE.words,
    )


def _labels(cell: Sequence[int]) -> dict[str, Any]:
    """Of the cell of the 2³ factorial: a factor's second level where the cell has a 1."""
    return {
        factor: levels[side] for (factor, levels), side in zip(LEVELS.items(), cell, strict=True)
    }
