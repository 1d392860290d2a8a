"""P1's batch sizes as a study: the tokens that Muon saves, over a range of 32 in batch size."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd

from muonlab.config import RunConfig
from muonlab.lab.arms import complete_seeds, regret
from muonlab.lab.baselines import with_updates
from muonlab.lab.cost import train_tokens
from muonlab.lab.experiment import Arm, Scale, Study, Verdict, VerdictName
from muonlab.lab.rules import StatedRule
from muonlab.lab.statistics import trend
from muonlab.lab.targets import Budgets, CostRatio, cost_ratio, percent_of
from muonlab.papers.protocols import (
    FAIR,
    FAIR_NOTE,
    OPTIMIZERS,
    SEEDS,
    p1_base,
    search_of,
    with_batch,
    with_optimizer,
)

FACTORS = (1 / 4, 1, 4, 8)  # of the base's batch
BUDGETS = (1 / 4, 1 / 2, 3 / 4, 1.0)  # of the base's tokens
# Set before any run: over the 32-fold range of batches Muon's share of the tokens grows by a tenth
# at most, so that of a saving of one half a tenth is lost.
LARGEST_SLOPE = math.log(1.1) / math.log(32)
BATCH_RULE = StatedRule(
    words="Judged at the largest batch, and by the slope of the ratio's logarithm over that of the "
    f"batch size. Reproduced where that ratio's 95 % interval lies below 1 and the slope's below "
    f"{LARGEST_SLOPE:.3f}, at which a batch 32 times as large costs a tenth more tokens (a bound "
    "chosen before the runs, because the paper gives none); direction only where the slope is not "
    "sure; refuted where the interval lies above 1.",
    can_be=("reproduced", "direction only", "refuted", "inconclusive"),
)


def batch(scale: Scale) -> Study:
    """Both optimizers at four batch sizes and four budgets of tokens, tuned at each batch size."""
    config = p1_base(scale)
    sizes = [round(config.train.batch_size * factor) for factor in FACTORS]
    arms = []
    for size, name, budget in itertools.product(sizes, FAIR, BUDGETS):
        arms.append(
            Arm(
                name=_arm(name, size, budget),
                labels={"optimizer": name, "batch": size, "budget": budget},
                config=with_optimizer(_sized(config, size, budget), OPTIMIZERS[name]),
                search=search_of(FAIR[name]) if budget == 1 else None,
                tuned_as=_arm(name, size, 1.0) if budget != 1 else None,
            )
        )
    tokens = {
        size: [train_tokens(_sized(config, size, budget)) for budget in BUDGETS] for size in sizes
    }

    def judge(frame: pd.DataFrame) -> list[Verdict]:
        return [_batch_verdict(frame, scale, tokens)]

    return Study(
        name="p1-batch",
        scale=scale,
        question="Does Muon's saving of tokens last at large batch sizes?",
        claims=("P1-batch",),
        arms=tuple(arms),
        seeds=SEEDS,
        judge=judge,
        notes=(
            FAIR_NOTE,
            "Every budget is a run of its own, annealed to zero. Learning rates are tuned at each "
            "batch size for the full budget. How compute trades against time, the other half of "
            "the claim, needs machines that gain from large batches and is not judged.",
        ),
    )


def _arm(optimizer: str, size: int, budget: float) -> str:
    return f"{optimizer}-batch.{size}-{budget:.2f}"


def _sized(config: RunConfig, size: int, budget: float) -> RunConfig:
    """The same tokens in other batches, in passes no larger than before."""
    rows = config.train.micro_batch_size or config.train.batch_size
    updates = round(config.train.steps * config.train.batch_size / size * budget)
    sized = with_updates(with_batch(config, size), updates)
    train = dataclasses.replace(
        sized.train, micro_batch_size=rows if size > rows and size % rows == 0 else None
    )
    return dataclasses.replace(sized, train=train)


def _batch_verdict(frame: pd.DataFrame, scale: Scale, tokens: dict[int, list[int]]) -> Verdict:
    """Of Muon's tokens over AdamW's at AdamW's final loss, by `BATCH_RULE`.

    Ratios that are only known to be at most something have no trend, and are inconclusive.
    """
    seeds = complete_seeds(frame)
    if len(seeds) < 2:
        return Verdict(
            claim="P1-batch",
            verdict="inconclusive",
            sentence=f"At {scale} scale, {len(seeds)} seeds have all their runs; 2 are needed.",
            rule=BATCH_RULE.words,
        )
    ratios: dict[int, CostRatio] = {}
    per_seed: list[tuple[float, float]] = []
    for size, costs in tokens.items():
        budgets = {name: _budgets(frame, seeds, name, size, costs) for name in FAIR}
        ratios[size] = _ratio(budgets["muon"], budgets["adamw"])
        for row in range(len(seeds)):
            single = {
                name: Budgets(costs=found.costs, losses=found.losses[row : row + 1])
                for name, found in budgets.items()
            }
            ratio = _ratio(single["muon"], single["adamw"]).ratio
            per_seed.append((math.log(size), math.log(ratio)))
    rising = trend(*np.array(per_seed).T)
    last = ratios[max(ratios)]
    verdict: VerdictName = "inconclusive"
    bounded = any(ratio.at_most for ratio in ratios.values())
    if last.high < 1 and not bounded and not math.isnan(rising.tau):
        verdict = "reproduced" if rising.high < LARGEST_SLOPE else "direction only"
    elif last.low > 1:
        verdict = "refuted"
    text = ", ".join(f"{percent_of(found)} at {size} sequences" for size, found in ratios.items())
    known = all(found.regret_known for found in ratios.values())
    lost = "" if known else "; regret of the searches not measured"
    return Verdict(
        claim="P1-batch",
        verdict=verdict,
        sentence=f"Tokens that Muon takes to AdamW's final loss, of AdamW's, at {scale} scale: "
        f"{text} an update; slope over the batch size {rising.slope:+.2f} "
        f"[{rising.low:+.2f}, {rising.high:+.2f}] (n = {len(seeds)} seeds{lost}).",
        paper="data efficiency is kept at large batch sizes",
        ours=text,
        rule=BATCH_RULE.words,
    )


def _budgets(
    frame: pd.DataFrame, seeds: list[int], optimizer: str, size: int, costs: list[int]
) -> Budgets:
    losses = [
        [_loss(frame, _arm(optimizer, size, budget), seed) for budget in BUDGETS] for seed in seeds
    ]
    return Budgets(
        costs=np.array(costs, dtype=float),
        losses=np.array(losses, dtype=float),
        regret=regret(frame, _arm(optimizer, size, 1.0)),
    )


def _loss(frame: pd.DataFrame, arm: str, seed: int) -> float:
    return float(frame.loc[(frame["arm"] == arm) & (frame["seed"] == seed), "loss"].iloc[0])


def _ratio(muon: Budgets, adamw: Budgets) -> CostRatio:
    return cost_ratio(muon, adamw, reference=adamw.costs[-1], method="interpolation")
