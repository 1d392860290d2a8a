"""An optimizer of anybody's against tuned baselines, in one call: `compare_optimizer`."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from muonlab.config import RunConfig, changed
from muonlab.errors import UserError
from muonlab.lab import baselines
from muonlab.lab.arms import Pair, compare, mean, pairs_of, regret, values
from muonlab.lab.baselines import BASELINES, SPACE, with_updates
from muonlab.lab.cost import model_flops, train_tokens
from muonlab.lab.experiment import Arm, Comparison, Scale, Search, Study, Verdict
from muonlab.lab.grid import arm_name, grid
from muonlab.lab.targets import Budgets, CostRatio, cost_ratio, percent_of
from muonlab.runs import RunDirectory, RunError
from muonlab.spelling import did_you_mean

BUDGETS = (1 / 4, 1 / 2, 3 / 4, 1.0)  # of the baselines' updates
MUST_LOSE = "sgd"
CHANGEABLE = ("optimizer.options.", "learning_rate.")
NOTES = (
    "Your optimizer is trained at a quarter, a half, three quarters and all of the baselines' "
    "updates, each a run of its own whose schedule ends there, with the values that were tuned for "
    "all of them. Baselines are trained at all of them only. Every arm has the same number of "
    "trials.",
    "Initial weights, batches and their order are the same for one seed in every arm.",
    "Times are compared only where all runs were made on one machine. A baseline from committed "
    "results has no time, and the regret of its search counts as far as it was measured there.",
)


def compare_optimizer(
    factory: str,
    *,
    space: SPACE,
    against: Sequence[str] = ("adamw", "muon"),
    scale: Scale = "small",
    base: RunConfig | None = None,
    changes: Mapping[str, Any] | None = None,
    seeds: int = 5,
    trials: int = 9,
    results: Path | None = Path("results"),
) -> Study:
    """The study that compares your optimizer with tuned baselines; `run_study` makes its runs.

    ``factory``: ``package.module:make`` or ``path/to/file.py:make``, as in `CustomConfig`.
    ``space``: option → (low, high), what is tuned of it, as evenly over logarithms. ``against``:
    names of `BASELINES`. ``scale``: ``"nano"`` or ``"small"``, or any word with a ``base`` run of
    your own. ``changes``: of your arms alone, ``optimizer.options.…`` and ``learning_rate.…``.
    ``trials``: the first of a search, which every arm gets. ``results``: where finished baselines
    are looked for, so that only runs that nobody has committed are made.

    Executes the factory once. Raises UserError for a factory, an option, a range, a baseline or a
    scale that cannot be.
    """
    if base is None and scale not in baselines.SCALES:
        raise UserError(f"scale is {scale!r}; legal: {', '.join(baselines.SCALES)}")
    for name in against:
        if name not in BASELINES:
            raise UserError(
                f"baseline {name!r} is unknown; {did_you_mean(name, BASELINES)}"
                f"legal: {', '.join(BASELINES)}"
            )
    base = base or baselines.base(scale)
    own = _own(base, factory, space, changes or {})
    label = own.label.lower() if own.label.lower() not in BASELINES else f"my-{own.label.lower()}"
    whole = base.train.steps
    known: dict[str, Mapping[str, Any]] = {}
    arms: list[Arm] = []
    for name in against:
        arm, committed = _baseline(name, base, range(seeds), trials, results)
        arms.append(arm)
        known |= committed
    arms += grid(
        own,
        {
            "optimizer": {label: {}},
            "budget": {
                budget: lambda config, budget=budget: with_updates(config, round(budget * whole))
                for budget in BUDGETS
            },
        },
        name="{optimizer}-{budget:.2f}",
        search=_search({f"optimizer.options.{option}": space[option] for option in space}, trials),
        tuned_at={"budget": 1.0},
    )
    final = arm_name(arms, optimizer=label, budget=1.0)
    comparisons = tuple(Comparison(arm=final, baseline=name) for name in against)

    def judge(frame: pd.DataFrame) -> list[Verdict]:
        family = pairs_of(comparisons)
        return [_verdict(frame, arms, label, pair, family, scale) for pair in family]

    return Study(
        name=f"optimizer-{label}",
        scale=scale,
        question=f"What does it cost {label} to reach the loss of {' and of '.join(against)}?",
        arms=tuple(arms),
        seeds=tuple(range(seeds)),
        claims=tuple(f"{label} against {name}" for name in against),
        judge=judge,
        comparisons=comparisons,
        measures=("val/loss", "val/accuracy", "steady_seconds", "optimizer_state_bytes"),
        notes=(*NOTES, *_origin(known)),
        known=known,
    )


def _own(base: RunConfig, factory: str, space: SPACE, changes: Mapping[str, Any]) -> RunConfig:
    """The run of the user's optimizer, which is built once to see that it can be."""
    for path in changes:
        if not path.startswith(CHANGEABLE):
            raise UserError(
                f"{path} would change your arms alone, and the comparison would not be fair; "
                f"legal: {'…, '.join(CHANGEABLE)}…"
            )
    config = changed(base, {"optimizer.kind": "custom", "optimizer.factory": factory, **changes})
    options = {f"optimizer.options.{option}": low for option, (low, _) in space.items()}
    changed(config, options).optimizer.build(base.model.build(0, "meta"))
    return config


def _search(space: SPACE, trials: int) -> Search:
    try:
        return Search(space=space, trials=trials)
    except ValueError as error:
        raise UserError(str(error)) from None


def _baseline(
    name: str, base: RunConfig, seeds: Sequence[int], trials: int, results: Path | None
) -> tuple[Arm, dict[str, Mapping[str, Any]]]:
    """Its arm, and the figures of its runs by fingerprint if committed results have them all."""
    baseline = BASELINES[name]
    config = changed(base, {"optimizer": baseline.make()})
    labels = {"optimizer": name, "budget": 1.0}
    for values_found, rows in _committed(results, list(baseline.space)):
        tuned = changed(config, values_found)
        wanted = {seed: changed(tuned, {"seed": seed}).fingerprint() for seed in seeds}
        if all(print_[:8] in rows for print_ in wanted.values()):
            figures: dict[str, Mapping[str, Any]] = {
                print_: rows[print_[:8]] for print_ in wanted.values()
            }
            return Arm(name=name, config=tuned, labels=labels), figures
    search = _search(baseline.space, trials)
    return Arm(name=name, config=config, labels=labels, search=search), {}


def _committed(
    results: Path | None, fields: list[str]
) -> list[tuple[dict[str, float], dict[str, dict[str, Any]]]]:
    """Every set of tuned values in committed reports, and the figures of its finished runs by the
    eight digits of their fingerprints that end a run's name."""
    columns = [f"tuned/{field}" for field in fields]
    found: dict[tuple[float, ...], dict[str, dict[str, Any]]] = {}
    for path in sorted(results.glob("*/runs.csv")) if results else []:
        with contextlib.suppress(pd.errors.EmptyDataError):
            frame = pd.read_csv(path)
            if not {"run", "status", "val/loss", *columns} <= set(frame.columns):
                continue
            finished = frame.loc[frame["status"] == "finished", :]
            for row in finished.to_dict("records"):
                key = tuple(float(row[column]) for column in columns)
                if any(map(math.isnan, key)):
                    continue
                figures = {
                    str(key): value
                    for key, value in row.items()
                    if ("/" in str(key) or str(key) in ("steps", "tokens", "optimizer_state_bytes"))
                    and not pd.isna(value)
                }
                figures |= {"regret": row.get("regret", math.nan), "committed": path.parent.name}
                found.setdefault(key, {})[str(row["run"])[-8:]] = figures
    return [(dict(zip(fields, key, strict=True)), rows) for key, rows in found.items()]


def _origin(known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    places = sorted({str(figures["committed"]) for figures in known.values()})
    return [f"{len(known)} runs of baselines come from {', '.join(places)}."] if places else []


def _verdict(
    frame: pd.DataFrame,
    arms: Sequence[Arm],
    label: str,
    pair: Pair,
    family: Sequence[Pair],
    scale: Scale,
) -> Verdict:
    """What it costs to reach the baseline's final loss, and the difference of the final losses."""
    claim = f"{label} against {pair.baseline}"
    own = [arm_name(arms, optimizer=label, budget=budget) for budget in BUDGETS]
    names = [*own, pair.baseline]
    losses = pd.DataFrame({name: values(frame, name) for name in names}).dropna()
    if len(losses) < 2:
        return Verdict(
            claim=claim,
            verdict="inconclusive",
            sentence=f"At {scale} scale, {len(losses)} seeds have all runs of {claim}; it takes 2.",
        )

    def ratio(costs: Mapping[str, float]) -> CostRatio:
        rising = np.maximum.accumulate([costs[name] for name in own])
        return cost_ratio(
            _budgets(frame, own, rising * (1 + 1e-9 * np.arange(len(own))), losses),
            _budgets(frame, [pair.baseline], np.array([costs[pair.baseline]]), losses),
            reference=costs[pair.baseline],
            method="interpolation",
        )

    configs = {arm.name: arm.config for arm in arms if arm.name in names}
    tokens = ratio({name: float(train_tokens(config)) for name, config in configs.items()})
    flops = {name: _flops(config) for name, config in configs.items()}
    alone = "" if all(map(math.isfinite, flops.values())) else ", the model's alone,"
    if alone:
        flops = {name: model_flops(config) for name, config in configs.items()}
    seconds = {name: _median_seconds(frame, name) for name in names}
    timed = _on_one_machine(frame, names) and all(map(math.isfinite, seconds.values()))
    time = f"{percent_of(ratio(seconds))} of its time" if timed else ""
    difference = compare(frame, pair, family)
    target = f"the final loss of {pair.baseline} ({tokens.target:.3f} nats/token)"
    if math.isinf(tokens.ratio):
        cost = f"{label} does not reach {target} with as many tokens"
        ours = "not reached"
    else:
        ours = f"{percent_of(tokens)} of the tokens"
        cost = (
            f"To reach {target}, {label} needs {percent_of(ratio(flops))} of its FLOPs{alone} and "
            f"{percent_of(tokens)} of its tokens{f', and {time}' if time else ''}"
        )
    sentence = (
        f"{cost}. Final losses: {label} "
        f"{mean(frame, pair.arm):.3f}, {pair.baseline} {mean(frame, pair.baseline):.3f} "
        f"nats/token; difference {difference.mean:+.3f} [{difference.low:+.3f}, "
        f"{difference.high:+.3f}] (n = {len(losses)} seeds, {scale} scale)."
    )
    if not time:
        sentence += " Times are not compared: not all runs were made on one machine."
    if not tokens.regret_known:
        sentence += " What the search of one of the two may have lost was not measured."
    if pair.baseline == MUST_LOSE and not difference.high < 0:
        sentence += f" {MUST_LOSE} should have lost: doubt this comparison."
    return Verdict(
        claim=claim,
        verdict="measured, nothing claimed",
        sentence=sentence,
        ours=ours,
        rule="Costs are interpolated between separately annealed budgets; brackets are 95 % "
        "intervals.",
    )


def _budgets(
    frame: pd.DataFrame, names: Sequence[str], costs: np.ndarray, losses: pd.DataFrame
) -> Budgets:
    return Budgets(
        costs=costs,
        losses=losses[list(names)].to_numpy(dtype=float),
        regret=regret(frame, names[-1]),
    )


def _median_seconds(frame: pd.DataFrame, arm: str) -> float:
    return float(np.median(frame.loc[frame["arm"] == arm, "steady_seconds"].to_numpy(dtype=float)))


def _flops(config: RunConfig) -> float:
    """Of a whole run, the optimizer's included; NaN where its factory does not state them."""
    optimizer = config.optimizer.build(config.model.build(0, "meta"))
    return model_flops(config) + config.train.steps * optimizer.step_flops()


def _on_one_machine(frame: pd.DataFrame, names: Sequence[str]) -> bool:
    """Whether all runs of these arms were; of a committed run the machine is not known."""
    machines = set()
    for run in frame.loc[frame["arm"].isin(names), "run"]:
        try:
            facts = RunDirectory(Path(run)).manifest()["machine"]
        except (RunError, KeyError):
            return False
        machines.add(tuple(facts.get(key) for key in ("processor", "gpu", "threads")))
    return len(machines) == 1
