"""How often the laboratory's interval holds the true difference between two tuned optimizers.

    python benchmarks/coverage.py docs        writes coverage.csv and coverage.png there

Invented optimizers whose best loss is known are searched, chosen and compared by the laboratory's
own code: `lab.tuning` (ranges, extensions, equal trials, repeats) and `lab.statistics` (paired
interval, regret). Only the Gaussian process that places later trials is a plain one in numpy: the
real one takes 0.3 s a trial. One thread, a few minutes.
"""

import argparse
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.progress import track
from scipy import stats

from muonlab.lab import tuning
from muonlab.lab.experiment import Search
from muonlab.lab.statistics import paired_difference, wilson, with_regret

SPACES: dict[str, Mapping[str, tuple[float, float]]] = {
    "one rate": {"lr": (1e-3, 4e-2)},
    "two rates": {"lr": (1e-3, 4e-2), "ratio": (0.3, 30.0)},
}
TRIALS = {"one rate": 6, "two rates": 9}  # of the first round, as in the papers' studies
NOISE = (0.005, 0.02)  # nats between seeds, the least and the most of the committed studies
SEEDS = (3, 5, 8)
TRUE = -0.03  # nats: how much lower the best loss of the first optimizer is; coverage ignores it
RULES = ("old: best trial, seeds alone", "new: repeats choose, regret included")
Loss = Callable[[Mapping[str, float]], float]


def invent(generator: np.random.Generator, space: Mapping[str, tuple[float, float]]) -> Loss:
    """A loss above its minimum, 0: a bowl over log values, steeper above its optimum.

    The optimum may lie a fifth of the range outside; 0.1 to 2 nats a squared decade, as seen.
    """
    optimum, bend = {}, {}
    for field, (low, high) in space.items():
        width = math.log10(high / low)
        optimum[field] = generator.uniform(-0.2, 1.2) * width + math.log10(low)
        bend[field] = 10 ** generator.uniform(-1, 0.3)

    def loss(values: Mapping[str, float]) -> float:
        away = {field: math.log10(values[field]) - optimum[field] for field in space}
        return sum(bend[f] * step**2 * (1.5 if step > 0 else 1.0) for f, step in away.items())

    return loss


@functools.lru_cache(maxsize=4096)  # a search is replayed for every trial
def refine(
    space: tuple[tuple[str, tuple[float, float]], ...],
    known: tuple[tuple[tuple[tuple[str, float], ...], float], ...],
    seed: int,
) -> tuple[tuple[str, float], ...]:
    """The setting of the largest expected improvement under a Gaussian process over log values."""
    fields = [field for field, _ in space]
    low, high = (np.array([math.log(limits[side]) for _, limits in space]) for side in (0, 1))
    tried = np.array([[math.log(dict(values)[field]) for field in fields] for values, _ in known])
    points = (tried - low) / (high - low)
    losses = np.array([loss for _, loss in known])
    scores = (losses - losses.mean()) / (losses.std() or 1.0)
    generator = np.random.default_rng(seed + len(known))
    candidates = generator.random((300, len(fields)))
    near = points[losses.argmin()] + 0.08 * generator.standard_normal((100, len(fields)))
    candidates[:100] = near.clip(0, 1)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=-1) / (2 * 0.3**2))

    across = kernel(candidates, points)
    weights = np.linalg.solve(kernel(points, points) + 1e-3 * np.eye(len(points)), across.T)
    mean = weights.T @ scores
    spread = np.sqrt(np.maximum(1 - (across * weights.T).sum(axis=1), 1e-9))
    gain = (scores.min() - mean) / spread
    improvement = spread * (gain * stats.norm.cdf(gain) + stats.norm.pdf(gain))
    places = np.exp(low + candidates * (high - low))
    tried_values = {values for values, _ in known}
    for row in places[np.argsort(-improvement)]:
        values = tuple(sorted((f, float(f"{v:.3g}")) for f, v in zip(fields, row, strict=True)))
        if values not in tried_values:
            return values
    raise ValueError("every candidate was tried")


def tune(
    generator: np.random.Generator, search: Search, loss: Loss, noise: float, arm: str
) -> tuple[tuning.Choice, tuning.Choice]:
    """What the old rule and the new one choose; the old one knows no regret."""

    def train(values: Mapping[str, float]) -> tuning.Trial:
        return tuning.Trial(values=values, loss=loss(values) + noise * generator.standard_normal())

    finished: list[tuning.Trial] = []
    while wanted := tuning.next_trials(search, finished, arm):
        finished += [train(values) for values in wanted]
    best = tuning.best(search, finished)
    finalists = tuning.finalists(search, finished)
    repeated = [train(values) for values in finalists for _ in range(search.repeats)]
    old = tuning.Choice(values=best.values, regret=0.0)
    return old, tuning.choose(search, finished, repeated)


def simulate(rounds: int) -> pd.DataFrame:
    """A row for each round, number of seeds and rule: whether it covers, its width, its regret."""
    rows = []
    settings = list(itertools.product(SPACES, NOISE, range(rounds)))
    for name, noise, number in track(settings, "searching"):
        generator = np.random.default_rng((number, len(SPACES[name]), round(noise * 1e4)))
        search = Search(space=SPACES[name], trials=TRIALS[name])
        losses = [invent(generator, search.space) for _ in range(2)]
        choices = [
            tune(generator, search, loss, noise, f"{side} {number}")
            for side, loss in zip(("first", "second"), losses, strict=True)
        ]
        for rule, chosen in zip(RULES, zip(*choices, strict=True), strict=True):
            lost = [loss(choice.values) for loss, choice in zip(losses, chosen, strict=True)]
            for seeds in SEEDS:
                first, second = (
                    at + above + noise * generator.standard_normal(seeds)
                    for at, above in zip((TRUE, 0.0), lost, strict=True)
                )
                found = with_regret(
                    paired_difference(first, second), chosen[0].regret, chosen[1].regret
                )
                rows.append(
                    {
                        "search": name,
                        "noise": noise,
                        "seeds": seeds,
                        "rule": rule,
                        "covers": found.low <= TRUE <= found.high,
                        "width": found.high - found.low,
                        "lost": float(np.mean(lost)),
                    }
                )
    return pd.DataFrame(rows)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Coverage with its 95 % interval (Wilson), median width and mean true loss, by setting."""
    found = []
    keys = ["search", "noise", "seeds", "rule"]
    for values, group in rows.groupby(keys, sort=False):
        covered = int(group["covers"].to_numpy().sum())
        interval = wilson(covered, len(group))
        found.append(
            dict(zip(keys, values, strict=True))  # type: ignore[arg-type]
            | {
                "rounds": len(group),
                "coverage": covered / len(group),
                "coverage low": interval.low,
                "coverage high": interval.high,
                "median width": group["width"].median(),
                "mean lost": group["lost"].mean(),
            }
        )
    return pd.DataFrame(found)


def draw(table: pd.DataFrame) -> Figure:
    """Coverage over the number of seeds, a panel for each search and noise."""
    figure = Figure(figsize=(9, 6.4), dpi=130, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flat
    settings = itertools.product(SPACES, NOISE)
    for panel, (name, noise) in zip(panels, settings, strict=True):
        panel.axhline(95, color="#555555", linewidth=1, label="nominal")
        panel.axhline(92, color="#555555", linewidth=1, linestyle=":", label="at least wanted")
        chosen = table.loc[(table["search"] == name) & (table["noise"] == noise)]
        for rule, colour, marker in zip(RULES, ("#c93a55", "#2f6db3"), ("s", "o"), strict=True):
            rows = chosen.loc[chosen["rule"] == rule]
            middle = 100 * rows["coverage"]
            low, high = middle - 100 * rows["coverage low"], 100 * rows["coverage high"] - middle
            panel.errorbar(
                rows["seeds"],
                middle,
                [low, high],
                color=colour,
                marker=marker,
                capsize=3,
                label=rule,
            )
        rounds = int(table["rounds"].iloc[0])
        panel.set_title(
            f"{name} searched, seeds scatter by {noise:g} nats (n = {rounds})", fontsize=9
        )
        panel.set_xticks(SEEDS)
        panel.set_ylim(60, 100)
        panel.grid(color="#dddddd", linewidth=0.6)
    figure.supxlabel("seeds of each optimizer", fontsize=9)
    figure.supylabel("intervals that hold the true difference (%)", fontsize=9)
    figure.axes[0].legend(fontsize=8, loc="lower left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=150, help="of each setting")
    chosen = parser.parse_args()
    tuning._refine = refine  # pyright: ignore[reportAttributeAccessIssue]
    table = summarise(simulate(chosen.rounds))
    table.to_csv(chosen.directory / "coverage.csv", index=False, float_format="%.4f")
    draw(table).savefig(chosen.directory / "coverage.png", metadata={"Software": None})
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
