"""P1's stability as a study: 112 runs over three decades of learning rates for each optimizer."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd

from muonlab.config import OptimizerConfig
from muonlab.lab.experiment import Arm, Scale, Study, Verdict, VerdictName
from muonlab.lab.statistics import wilson
from muonlab.optim.config import AdamWConfig, MuonConfig
from muonlab.papers.p1 import base
from muonlab.papers.scales import attention, with_attention, with_optimizer

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
    config = base(scale)
    guess = math.log(config.model.vocab_size)
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
        return [_stability_verdict(frame, scale, guess, len(arms) * len(SEEDS))]

    return Study(
        name="p1-stability",
        scale=scale,
        question="How often does training diverge, and how much does the learning rate matter?",
        claims=("P1-stability",),
        arms=tuple(arms),
        seeds=SEEDS,
        judge=judge,
        notes=(
            "Factors multiply each optimizer's own tuned learning rate. A run is unstable where it "
            "diverged or ended above the loss of a uniform guess.",
        ),
    )


def _stability_verdict(frame: pd.DataFrame, scale: Scale, guess: float, wanted: int) -> Verdict:
    """Inconclusive while runs are missing or ended by an error, or where the Wilson intervals of
    both optimizers' shares of unstable runs overlap, as they do where nothing fails: a test that
    no run failed could not have failed itself. Else refuted where Muon's share is the larger,
    reproduced where none of its runs is unstable, and direction only where some are."""
    if unknown := wanted - len(frame["loss"].dropna()):
        return Verdict(
            claim="P1-stability",
            verdict="inconclusive",
            sentence=f"At {scale} scale, {unknown} of {wanted} runs have no loss.",
        )
    texts, counts, shares = {}, {}, {}
    for name in CENTRES:
        losses = np.array(
            [row["loss"] for row in frame.to_dict("records") if row["optimizer"] == name],
            dtype=float,
        )
        counts[name] = int((losses > guess).sum())
        shares[name] = wilson(counts[name], len(losses))
        sensitivity = float(np.minimum(losses, guess).mean() - losses.min())
        texts[name] = (
            f"{name} {counts[name]} of {len(losses)} unstable "
            f"[{shares[name].low:.0%}, {shares[name].high:.0%}], best {losses.min():.3f}, "
            f"mean {sensitivity:.3f} nats above it"
        )
    verdict: VerdictName = "inconclusive"
    if shares["muon"].high < shares["adamw"].low:
        verdict = "direction only" if counts["muon"] else "reproduced"
    elif shares["muon"].low > shares["adamw"].high:
        verdict = "refuted"
    return Verdict(
        claim="P1-stability",
        verdict=verdict,
        sentence=f"Over three decades of learning rates at {scale} scale: "
        f"{'; '.join(texts.values())}.",
        paper="stable over more than 100 runs",
        ours=texts["muon"],
    )
