"""P1's headline as a study (arXiv 2509.24406): what it costs Muon to reach AdamW's loss."""

import math

import numpy as np
import pandas as pd

from muonlab.config import RunConfig
from muonlab.lab.arms import complete_seeds, mean, regret
from muonlab.lab.baselines import with_updates
from muonlab.lab.cost import model_flops
from muonlab.lab.experiment import Arm, Comparison, Scale, Study, Verdict
from muonlab.lab.rules import IntervalRule
from muonlab.lab.targets import Budgets, CostRatio, cost_ratio, percent_of
from muonlab.papers.protocols import OPTIMIZERS, p1_base, search_of, with_optimizer

SEEDS = (0, 1, 2, 3, 4)
BUDGETS = (1 / 4, 1 / 2, 3 / 4, 1.0, 4 / 3)  # of AdamW's updates
BASELINE = "adamw"
RIVALS = {BASELINE: "muon", "adamw-groups": "muon-groups"}  # like against like
COMPUTE_RULE = IntervalRule(
    what="the ratio of FLOPs by interpolation, against the better AdamW",
    claimed=(0.48, 0.52),
    nothing=1,
)


def compute(scale: Scale) -> Study:
    """Every optimizer at five budgets, each a run annealed to zero within it."""
    whole = p1_base(scale)
    arms = []
    for name, optimizer in OPTIMIZERS.items():
        for budget in BUDGETS:
            config = with_updates(whole, round(budget * whole.train.steps))
            arms.append(
                Arm(
                    name=_arm(name, budget),
                    labels={"optimizer": name, "budget": budget},
                    config=with_optimizer(config, optimizer),
                    search=search_of(name) if budget == 1 else None,
                    tuned_as=_arm(name, 1.0) if budget != 1 else None,
                )
            )
    configs = {arm.name: arm.config for arm in arms}

    def judge(frame: pd.DataFrame) -> list[Verdict]:
        return [_compute_verdict(frame, configs, scale)]

    return Study(
        name="p1-compute",
        scale=scale,
        question="With how much of AdamW's compute does Muon reach AdamW's loss?",
        claims=("P1-compute",),
        arms=tuple(arms),
        seeds=SEEDS,
        judge=judge,
        comparisons=tuple(
            Comparison(arm=_arm(name, 1.0), baseline=_arm(baseline, 1.0))
            for name, baseline in (
                ("muon", BASELINE),
                ("muon-groups", "adamw-groups"),
                ("muon", "placebo"),
                ("adamw-groups", BASELINE),
                ("muon-groups", "muon"),
            )
        ),
        notes=(
            f"Budgets are shares of {whole.train.steps} updates, each a run of its own, annealed "
            "to zero. Learning rates are tuned at budget 1 with six trials for every optimizer "
            "over equal log ranges, half as many more where the best lies at an edge; weight "
            "decay, momentum and warm-up are the recipes' defaults. With groups, a second value is "
            "to find, the rate of embeddings and vectors relative to that of matrices, in nine "
            "trials.",
            "The placebo orthogonalises to the same norm with a scrambled spectrum: its gains are "
            "not due to equal singular values.",
        ),
    )


def _arm(optimizer: str, budget: float) -> str:
    return f"{optimizer}-{budget:.2f}"


def _compute_verdict(frame: pd.DataFrame, configs: dict[str, RunConfig], scale: Scale) -> Verdict:
    """From the cost in FLOPs, the optimizer's own included, by interpolation between budgets.

    The fitted power law is said beside it: its residuals exceed the noise between seeds.

    Like is compared with like: one rate for all parameters, or embeddings with their own. The claim
    is judged where AdamW's mean loss at budget 1 is lower, for one over a weak baseline is none:
    the 95 % interval of the ratio against the claimed one. A miss counts as infinite.
    """
    texts: list[str] = []
    ours: dict[str, CostRatio] = {}
    for baseline, rival in RIVALS.items():
        chosen = _complete(frame, baseline, rival)
        seeds = len(set(chosen["seed"]))
        if seeds < 2:
            texts.append(f"{rival} against {baseline}: {seeds} seeds have all their runs")
            continue
        ours[baseline], text = _costs(chosen, configs, rival, baseline)
        texts.append(f"{rival} {text} (n = {seeds} seeds)")
    placebo = _complete(frame, "muon", "placebo")
    if len(set(placebo["seed"])) > 1:
        texts.append(f"placebo {_costs(placebo, configs, 'placebo', 'muon')[1]}")
    deciding = min(RIVALS, key=lambda name: _final(frame, name))
    muon = ours.get(deciding)
    return Verdict(
        claim="P1-compute",
        verdict=COMPUTE_RULE.decide(muon.low, muon.high) if muon else "inconclusive",
        rule=COMPUTE_RULE.words,
        sentence=f"At {scale} scale, {'; '.join(texts)}. Judged by {deciding}, the better AdamW.",
        paper="48 to 52 % of the compute",
        ours=f"{percent_of(muon)} of the FLOPs" if muon else "",
    )


def _complete(frame: pd.DataFrame, *optimizers: str) -> pd.DataFrame:
    """The rows of these optimizers, of the seeds that have all of them."""
    rows = frame.loc[frame["optimizer"].isin(optimizers), :]
    return rows.loc[rows["seed"].isin(complete_seeds(rows)), :]


def _final(frame: pd.DataFrame, optimizer: str) -> float:
    found = mean(frame, _arm(optimizer, 1.0))
    return math.inf if math.isnan(found) else found


def _costs(
    rows: pd.DataFrame, configs: dict[str, RunConfig], arm: str, baseline: str
) -> tuple[CostRatio, str]:
    """The ratio of FLOPs, and what it takes of everything, in words."""

    def ratio(costs: dict[str, list[float]], method: str = "interpolation") -> CostRatio:
        found = {name: _budgets(rows, name, costs[name]) for name in (arm, baseline)}
        return _ratio(found[arm], found[baseline], method)

    flops = {name: _flops(configs, name) for name in (arm, baseline)}
    updates = {name: _updates(configs, name) for name in (arm, baseline)}
    seconds = {name: _seconds(rows, name) for name in (arm, baseline)}
    timed = all(np.isfinite(costs).all() for costs in seconds.values())
    whole = ratio(flops)
    return whole, (
        f"takes to {baseline}'s {whole.target:.3f} nats {percent_of(whole)} of its FLOPs, the "
        f"optimizer's included (by a fitted power law {percent_of(ratio(flops, 'fit'))}), "
        f"{percent_of(ratio(updates))} of its tokens and "
        f"{percent_of(ratio(seconds)) if timed else 'an unknown share'} of its time"
        f"{'' if whole.regret_known else ', regret of the searches not measured'}"
    )


def _budgets(frame: pd.DataFrame, optimizer: str, costs: list[float]) -> Budgets:
    rows = frame.loc[frame["optimizer"] == optimizer, :]
    losses = rows.pivot_table(index="seed", columns="budget", values="loss", dropna=False)
    return Budgets(
        costs=np.array(costs),
        losses=losses.to_numpy(dtype=float),
        regret=regret(frame, _arm(optimizer, 1.0)),
    )


def _updates(configs: dict[str, RunConfig], optimizer: str) -> list[float]:
    return [float(configs[_arm(optimizer, budget)].train.steps) for budget in BUDGETS]


def _flops(configs: dict[str, RunConfig], optimizer: str) -> list[float]:
    costs = []
    for budget in BUDGETS:
        config = configs[_arm(optimizer, budget)]
        step = config.optimizer.build(config.model.build(0, "meta")).step_flops()
        costs.append(model_flops(config) + config.train.steps * step)
    return costs


def _seconds(frame: pd.DataFrame, optimizer: str) -> list[float]:
    """Training time of each budget, the median over seeds; rising even where noise is larger.

    NaN where no run of a budget has finished.
    """
    rows = frame.loc[frame["optimizer"] == optimizer, :]
    medians = rows.groupby("budget")["steady_seconds"].median().to_numpy(dtype=float)
    return list(np.maximum.accumulate(medians) * (1 + 1e-9 * np.arange(len(medians))))


def _ratio(arm: Budgets, baseline: Budgets, method: str = "fit") -> CostRatio:
    reference = float(baseline.costs[BUDGETS.index(1.0)])
    return cost_ratio(arm, baseline, reference=reference, method=method)  # type: ignore[arg-type]
