"""The tables of one study: arms beside the paper, comparisons, searches, runs."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from muonlab.lab.arms import Pair, contrasts, is_loss
from muonlab.lab.experiment import Arm, Comparison, Protocol, Study
from muonlab.lab.statistics import (
    ALIKE,
    EQUIVALENCE_MARGIN,
    Difference,
    Interval,
    bootstrap_interval,
    corrected,
    equivalence_p,
    mean_difference,
    pair_differences,
)
from muonlab.report.comparison import ARM, MEASURES
from muonlab.report.content import (
    WARNING_MARK,
    Column,
    Table,
)

STUDY_MEASURES = (
    Column(key="loss", heading="Loss (nats/token)", digits=4, better="lower"),
    Column(key="steady_seconds", heading="Training time (s)", digits=1),
    Column(
        key="peak_memory_bytes", heading="Peak memory (MB)", digits=0, scale=1e-6, better="lower"
    ),
)
PROTOCOLS = {"as_published": "as published", "honest": "honest"}


def measure_column(key: str) -> Column:
    """Heading, unit and digits of a measure; four digits for one that is not known here."""
    known = {column.key: column for column in (*MEASURES, *STUDY_MEASURES)}
    return known.get(key, Column(key=key, heading=key, digits=4))


def arm_label(arm: Arm) -> str:
    """The arm's name, marked where its attention or its split warns of its numbers."""
    return f"{WARNING_MARK} {arm.name}" if arm_warnings(arm) else arm.name


def arm_warnings(arm: Arm) -> tuple[str, ...]:
    return (*arm.config.model.attention.warnings, *arm.config.data.split.warnings)


def arms_table(study: Study, frame: pd.DataFrame) -> Table:
    """Mean ± half of its 95 % t interval for every measure, the paper's value beside it."""
    paper = {row.arm: row.values for row in study.paper}
    shown = [key for key in study.measures if key in frame]
    published = {key for values in paper.values() for key in values}
    labels = list(dict.fromkeys(label for arm in study.arms for label in arm.labels))
    rows, halves, contenders = [], [], []
    for arm in study.arms:
        runs = frame.loc[frame["arm"] == arm.name]
        finished = list(runs["status"]).count("finished")
        row: dict[str, object] = {
            "arm": arm_label(arm),
            "protocol": PROTOCOLS[arm.protocol],
            "n": f"{finished} of {len(study.seeds)}",
        }
        row |= {label: _label(arm.labels[label]) for label in labels if label in arm.labels}
        half: dict[str, float] = {}
        for key in shown:
            lost = key != study.measures[0] and np.isinf(runs[study.measures[0]]).any()
            mean = mean_difference([] if lost else runs[key])
            row[key], half[key] = mean.mean, mean.high - mean.mean
            row[f"paper {key}"] = paper.get(arm.name, {}).get(key, math.nan)
        rows.append(row)
        halves.append(half)
        contenders.append(finished == len(study.seeds) and not arm_warnings(arm))
    for label, protocol, loss in counted_losses(frame) if "loss" in shown else ():
        counted = {"protocol": PROTOCOLS[protocol], "n": "counted", "loss": loss}
        rows.append({"arm": label, **dict.fromkeys(labels, ""), **counted})
        halves.append({})
        contenders.append(False)
    comparable = {
        (arm.config.data.cache_key(), arm.config.train.sequence_length, arm.config.train.steps)
        for arm, contends in zip(study.arms, contenders, strict=False)
        if contends
    }
    if len(comparable) > 1:
        contenders = [False] * len(contenders)
    measures: list[Column] = []
    for key in dict.fromkeys([*shown, *published]):
        column = measure_column(key)
        measures += [column] if key in shown else []
        if key in published and key in shown:
            heading = f"Paper's {column.heading[0].lower()}{column.heading[1:]}"
            measures.append(
                Column(
                    key=f"paper {key}", heading=heading, digits=column.digits, scale=column.scale
                )
            )
    columns = (
        ARM,
        *(Column(key=label, heading=label) for label in labels),
        Column(key="protocol", heading="Protocol"),
        Column(key="n", heading="Runs"),
        *measures,
    )
    return Table(
        name="arms",
        caption=f"Loss: of {split_words(frame)}. Mean over seeds ± half of its 95 % t interval; "
        "one run has none. Unigram and bigram: what counting single tokens and pairs of tokens of "
        "the training text comes to. inf: a run diverged, and its other figures are left out. "
        f"–: not measured. Training time: updates × the median update. {_papers_text(published)}",
        frame=pd.DataFrame(rows),
        columns=columns,
        half_widths=pd.DataFrame(halves),
        contenders=contenders,
    )


def split_words(frame: pd.DataFrame) -> str:
    """Which split the losses are of."""
    splits = frame.groupby("protocol", sort=False)["split"].first()
    if len(set(splits)) == 1:
        return f"the {splits.iloc[0]} split"
    return ", ".join(
        f"the {split} split ({PROTOCOLS[str(name)]})" for name, split in splits.items()
    )


def counted_losses(frame: pd.DataFrame) -> list[tuple[str, Protocol, float]]:
    """What counting tokens comes to: a name, the protocol and the loss, for each kind of data."""
    if "unigram" not in frame:
        return []
    known = frame.dropna(subset=["unigram"])
    kinds = known.drop_duplicates(["protocol", "unigram", "bigram"]).to_dict("records")
    several = Counter(row["protocol"] for row in kinds)
    found = []
    for row in kinds:
        of = f" of {row['arm']}'s text" if several[row["protocol"]] > 1 else ""
        found += [(f"{kind}{of}", row["protocol"], row[kind]) for kind in ("unigram", "bigram")]
    return found


def _papers_text(published: set[str]) -> str:
    """Why a paper's column is only there to be looked at."""
    if not published:
        return ""
    return "The paper's values are of its own model, text and tokenizer: only orders compare. "


def _label(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def protocols_table(study: Study, frame: pd.DataFrame) -> Table | None:
    """Arms that differ in their protocol only, side by side; None where there are none."""
    measure = measure_column(study.measures[0])
    by_labels: dict[tuple[tuple[str, str | float], ...], dict[str, float]] = {}
    for arm in study.arms:
        values = frame.loc[frame["arm"] == arm.name, measure.key]
        row = by_labels.setdefault(tuple(arm.labels.items()), {})
        row[arm.protocol] = mean_difference(values).mean
    rows = [
        {
            "labels": ", ".join(
                v if isinstance(v, str) else f"{label} {_label(v)}" for label, v in labels
            ),
            **values,
        }
        for labels, values in by_labels.items()
        if labels and len(values) == 2
    ]
    if not rows:
        return None
    return Table(
        name="protocols",
        caption=f"{measure.heading}: the same arms under both protocols. The two losses are of "
        f"different validation sets, so only their order compares.",
        frame=pd.DataFrame(rows),
        columns=(
            Column(key="labels", heading="Arm"),
            Column(key="as_published", heading="As published", digits=measure.digits),
            Column(key="honest", heading="Honest", digits=measure.digits),
        ),
    )


def paired(frame: pd.DataFrame, comparison: Comparison) -> np.ndarray:
    """Arm minus baseline, one a seed; NaN where either has no value."""
    by_seed = frame.pivot(index="seed", columns="arm", values=comparison.measure)
    return pair_differences(by_seed[comparison.arm], by_seed[comparison.baseline])


def comparisons_table(study: Study, frame: pd.DataFrame) -> Table:
    """Every comparison with both intervals, its p corrected over the table, and what it says."""
    made = [c for c in study.comparisons if c.measure in frame]
    pairs = [Pair.of(comparison) for comparison in made]
    by_measure = {
        measure: contrasts(
            frame, [p for p, c in zip(pairs, made, strict=True) if c.measure == measure], measure
        )
        for measure in dict.fromkeys(comparison.measure for comparison in made)
    }
    found = corrected([by_measure[comparison.measure].pop(0) for comparison in made])
    rows = []
    for comparison, difference in zip(made, found, strict=True):
        p = difference.corrected_p
        differences = paired(frame, comparison)
        same = equivalence_p(difference) if is_loss(comparison.measure) else math.nan
        rows.append(
            {
                "comparison": f"{comparison.arm} − {comparison.baseline}",
                "measure": measure_column(comparison.measure).heading,
                "mean": difference.mean,
                "t": interval_text(Interval(low=difference.low, high=difference.high)),
                "scatter": _scatter(difference),
                "regret": _regret(difference),
                "bootstrap": interval_text(bootstrap_interval(differences)),
                "p": p_text(difference.p),
                "holm": p_text(p),
                "tost": p_text(same),
                "n": str(difference.num_pairs),
                "paper": math.nan if comparison.paper is None else comparison.paper,
                "reading": _reading(difference.mean, difference.num_pairs, p, same),
            }
        )
    return Table(
        name="comparisons",
        caption="Arm minus baseline, paired by seed. Scatter of: the interval rests on the scatter "
        "of all compared arms where Bartlett's test finds them alike "
        f"(p ≥ {ALIKE}), else on that of the pairs; d.f.: degrees of freedom. Regret: how much "
        "worse than the best of their searches the settings of arm and of baseline may be; "
        "interval and p contain it, the bootstrap does not. p: t test (Wilcoxon's where a run "
        "diverged); Holm: corrected over this table; TOST: below .05, the losses are equal within "
        f"±{EQUIVALENCE_MARGIN} nats.",
        frame=pd.DataFrame(rows),
        columns=(
            Column(key="comparison", heading="Comparison"),
            Column(key="measure", heading="Measure"),
            Column(key="reading", heading="Reading"),
            Column(key="mean", heading="Difference", digits=4),
            Column(key="t", heading="95 % interval"),
            Column(key="scatter", heading="Scatter of"),
            Column(key="regret", heading="Regret (nats)"),
            Column(key="bootstrap", heading="95 % bootstrap"),
            Column(key="p", heading="p"),
            Column(key="holm", heading="p (Holm)"),
            Column(key="tost", heading="p (TOST)"),
            Column(key="n", heading="Pairs"),
            Column(key="paper", heading="Paper's", digits=4),
        ),
    )


def _scatter(difference: Difference) -> str:
    """Whose scatter made the interval."""
    if math.isnan(difference.error):
        return "–"
    return f"{'all arms' if difference.pooled else 'the pairs'}, {difference.freedom:g} d.f."


def _regret(difference: Difference) -> str:
    if not any(difference.regret):
        return "not tuned"
    if all(map(math.isnan, difference.regret)):
        return "not measured"
    return " and ".join(
        "not measured" if math.isnan(lost) else f"{lost:.4f}" for lost in difference.regret
    )


def interval_text(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "none"
    return f"[{interval.low:+,.4f}, {interval.high:+,.4f}]"


def p_text(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _reading(mean: float, num_pairs: int, p: float, same: float) -> str:
    if num_pairs == 0:
        return "no pair of runs yet"
    if num_pairs == 1:
        return "one seed: no interval"
    if same < 0.05:
        return f"no effect: within ±{EQUIVALENCE_MARGIN}"
    if math.isinf(mean):
        return "diverged" if mean > 0 else "the baseline diverged"
    if p < 0.05:
        return "lower" if mean < 0 else "higher"
    return "not told apart"


def trials_table(trials: pd.DataFrame) -> Table:
    """Every tuning trial, the chosen ones said so."""
    fields = [key for key in trials if str(key).startswith("tuned/")]
    frame = trials.assign(chosen=["chosen" if chosen else "" for chosen in trials["chosen"]])
    for key in fields:
        frame[key] = [f"{value:.3g}" if value == value else "" for value in trials[key]]
    return Table(
        name="trials",
        caption="Every trial of every search, and the best ones again with other seeds, whose "
        "mean chooses; inf: it diverged.",
        frame=frame,
        columns=(
            ARM,
            *(Column(key=str(key), heading=str(key).removeprefix("tuned/")) for key in fields),
            Column(key="kind", heading="Run"),
            Column(key="seed", heading="Seed"),
            Column(key="loss", heading="Loss (nats/token)", digits=4),
            Column(key="status", heading="Status"),
            Column(key="chosen", heading="Chosen"),
        ),
    )


def runs_table(study: Study, frame: pd.DataFrame) -> Table:
    """Every run of ``frame`` with its figures and its error."""
    labels = {arm.name: arm_label(arm) for arm in study.arms}
    measures: Sequence[str] = [key for key in study.measures if key in frame]
    warned = {arm.name for arm in study.arms if arm_warnings(arm)}
    return Table(
        name="runs",
        caption="Every run at its end.",
        frame=frame.assign(arm=[labels[name] for name in frame["arm"]]),
        columns=(
            ARM,
            Column(key="seed", heading="Seed"),
            *map(measure_column, measures),
            Column(key="status", heading="Status"),
            Column(key="error", heading="Error", wraps=True),
        ),
        contenders=[name not in warned for name in frame["arm"]],
    )
