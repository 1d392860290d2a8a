"""P1's stability as a study: 112 runs over three decades of learning rates for each optimizer."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd

from muonlab.config import OptimizerConfig
from muonlab.lab.experiment import Arm, Scale, Study, Verdict, VerdictName
from muonlab.lab.rules import StatedRule
from muonlab.lab.statistics import wilson
from muonlab.optim.config import AdamWConfig, MuonConfig
from muonlab.papers.protocols import attention, p1_base, with_attention, with_optimizer

CENTRES: dict[str, OptimizerConfig] = {  # at the learning rates of results/small-learning-rate
    "adamw": AdamWConfig(lr=0.004),
    "muon": MuonConfig(lr=0.012),
}
FACTORS = tuple(10 ** (half_decades / 2) for half_decades in range(-3, 4))
SEEDS = (0, 1)
WEIGHT_DECAYS = (0.0, 0.1)
ATTENTIONS = ("mhsa", "mla")


def stability(scale: Scale) -> Study:
    """2 optimizers × 7 learning rates × 2 weight decays × 2 attentions × 2 seeds."""
    config = p1_base(scale)
    arms = []
    for (name, centre), factor, decay, kind in itertools.product(
        CENTRES.items(), FACTORS, WEIGHT_DECAYS, ATTENTIONS
    ):
        optimizer = dataclasses.replace(centre, lr=centre.lr * factor, weight_decay=decay)
        shaped = with_attention(config, attention(kind, config))
        arms.append(
            Arm(
                name=f"{name}-{factor:.3g}-decay.{decay:g}-{kind}",
                labels={
                    "optimizer": name,
                    "factor": factor,
                    "weight decay": decay,
                    "attention": kind,
                },
                config=with_optimizer(shaped, optimizer),
            )
        )

    def judge(frame: pd.DataFrame) -> list[Verdict]:
        return [_stability_verdict(frame, scale, len(arms) * len(SEEDS))]

    return Study(
        name="p1-stability",
        scale=scale,
        question="How often does training diverge, and how much does the learning rate matter?",
        claims=("P1-stability",),
        arms=tuple(arms),
        seeds=SEEDS,
        judge=judge,
        notes=("Factors multiply learning rates near each optimizer's optimum at scale small.",),
    )


NOTHING_LEARNT = 0.1  # nats below the unigram loss: less than that is no learning
FAR = 1.0  # nats above the best run of its optimizer
STABILITY_RULE = StatedRule(
    words=f"A run fails where it diverged, ended within {NOTHING_LEARNT:g} nats of what counting "
    f"single tokens comes to, or {FAR:g} nat above the best run of its optimizer. Shares of failed "
    "runs have Wilson's 95 % interval. Reproduced: Muon's interval lies below AdamW's, and none of "
    "its runs failed; direction only: below, and some did; refuted: above. Where the two overlap "
    "it is inconclusive, as where no run of either fails: such a test could not have failed.",
    can_be=("reproduced", "direction only", "refuted", "inconclusive"),
)


def _stability_verdict(frame: pd.DataFrame, scale: Scale, wanted: int) -> Verdict:
    """By `STABILITY_RULE`; inconclusive while runs are missing or ended by an error."""
    if unknown := wanted - len(frame["loss"].dropna()):
        return Verdict(
            claim="P1-stability",
            verdict="inconclusive",
            sentence=f"At {scale} scale, {unknown} of {wanted} runs have no loss.",
            rule=STABILITY_RULE.words,
        )
    counted = frame["unigram"].dropna() if "unigram" in frame else pd.Series(dtype=float)
    unigram = min(counted.tolist()) if len(counted) else math.inf
    texts, counts, shares = {}, {}, {}
    for name in CENTRES:
        losses = np.array(
            [row["loss"] for row in frame.to_dict("records") if row["optimizer"] == name],
            dtype=float,
        )
        ceiling = min(losses.min() + FAR, unigram - NOTHING_LEARNT)
        counts[name] = int((losses > ceiling).sum())
        shares[name] = wilson(counts[name], len(losses))
        sensitivity = float(np.minimum(losses, ceiling).mean() - losses.min())
        texts[name] = (
            f"{name} {counts[name]} of {len(losses)} failed "
            f"[{shares[name].low:.0%}, {shares[name].high:.0%}], best {losses.min():.3f}, mean "
            f"{sensitivity:.3f} nats above it where a failed run counts as {ceiling:.3f}"
        )
    unknown_unigram = " What counting single tokens comes to is not known for these runs."
    verdict: VerdictName = "inconclusive"
    if shares["muon"].high < shares["adamw"].low:
        verdict = "direction only" if counts["muon"] else "reproduced"
    elif shares["muon"].low > shares["adamw"].high:
        verdict = "refuted"
    return Verdict(
        claim="P1-stability",
        verdict=verdict,
        sentence=f"Over three decades of learning rates at {scale} scale: "
        f"{'; '.join(texts.values())}.{'' if len(counted) else unknown_unigram}",
        paper="stable over more than 100 runs",
        ours=texts["muon"],
        rule=STABILITY_RULE.words,
    )
