"""The report that sets runs side by side: which arm, how good, how fast, how large."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from muonlab.report.content import (
    WARNING_MARK,
    Column,
    CurveFigure,
    Figure,
    IntervalFigure,
    Report,
    Samples,
    Section,
    Table,
    mean_and_half_width,
)
from muonlab.report.curves import (
    CURVES,
    EXPERT_CURVES,
    Series,
    Wanted,
    clock_runs_forwards,
    curve_figures,
)
from muonlab.report.files import write_report
from muonlab.report.frames import Run, hardware, read_runs
from muonlab.report.headline import headline, mark
from muonlab.run_names import arm_names

MEASURES = (
    Column(key="val/loss", heading="Loss (nats/token)", digits=4, better="lower"),
    Column(key="val/bits_per_byte", heading="Bits per byte", digits=4, better="lower"),
    Column(key="val/perplexity", heading="Perplexity", digits=2, better="lower"),
    Column(key="val/accuracy", heading="Accuracy (%)", digits=2, scale=100, better="higher"),
    Column(key="tokens_per_second", heading="Tokens/s", better="higher"),
    Column(key="train_seconds", heading="Training time (s)", digits=1, better="lower"),
    Column(
        key="optimizer_share", heading="Optimizer share (%)", digits=1, scale=100, better="lower"
    ),
    Column(
        key="optimizer_state_bytes",
        heading="Optimizer state (MB)",
        digits=1,
        scale=1e-6,
        better="lower",
    ),
)
ARM = Column(key="arm", heading="Arm")
SEED = Column(key="seed", heading="Seed")
SEEDS = Column(key="seeds", heading="Seeds")
OVER_TOKENS = "validation-loss-tokens"  # the figure that the headline reads
STATUS = Column(key="status", heading="Status")


def comparison_table(runs: Sequence[Path]) -> pd.DataFrame:
    """One row a run, ready to print: text under headings with units. Unreadable runs are left out.

    A ``⚠`` before an arm's name says that its manifest warns of its numbers.
    """
    readable, _ = read_runs(runs)
    table = _table_of_runs(readable)
    rows = [[cell.text for cell in row] for row in table.rows()]
    return pd.DataFrame(rows, columns=[column.heading for column in table.columns])


def comparison_records(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """One record a run, ready for JSON: every final figure under its metric's name, unscaled.

    Losses are in nats a token, times in seconds, sizes in bytes, shares between 0 and 1; what was
    not measured is None. Unreadable runs are left out.
    """
    readable, _ = read_runs(runs)
    frame = _frame(readable).assign(run=[str(run.path) for run in readable])
    return json.loads(str(frame.to_json(orient="records", double_precision=15)))


def write_comparison(
    runs: Sequence[Path],
    directory: Path,
    *,
    title: str | None = None,
    introduction: str,
    samples: dict[str, list[tuple[str, str]]],
) -> Path:
    """Write ``index.html``, ``report.md`` with its PNGs, and ``runs.csv``; returns the page's path.

    Without a ``title`` the page is headed by the arms' names.
    ``samples`` holds (prompt, continuation) pairs by model. A run that cannot be read is left out
    and named; runs that warn of their numbers are marked.
    """
    readable, problems = read_runs(runs)
    if title is None:
        title = " against ".join(dict.fromkeys(arm_labels(readable))) or "No runs"
    report = compare(readable, problems, title=title, introduction=introduction, samples=samples)
    return write_report(report, directory, _table_of_runs(readable).csv())


def compare(
    runs: Sequence[Run],
    problems: Sequence[str] = (),
    *,
    title: str,
    introduction: str,
    samples: dict[str, list[tuple[str, str]]],
) -> Report:
    """The comparison as content, from runs and the lines about those that could not be read."""
    curves = _curves(runs, CURVES, with_seconds=True)
    results: list[Table | Figure] = [_table_of_runs(runs)]
    if _has_seeds(runs):
        results = [_table_of_arms(runs), *_loss_intervals(runs), *results]
    sections = [
        Section(
            title="Results",
            text=[] if runs else ["No run has been read, so there is nothing to compare."],
            items=results if runs else (),
        ),
        Section(title="Curves", items=curves),
        Section(title="Experts", items=_curves(runs, EXPERT_CURVES, with_seconds=False)),
        Section(
            title="Samples",
            text=["Every prompt is in bold; what follows it was written by the model."],
            items=[Samples(texts=samples)] if samples else (),
        ),
    ]
    return Report(
        title=title,
        introduction=introduction,
        headline=headline(
            _ranking(runs),
            [c for figure in curves if figure.name == OVER_TOKENS for c in figure.curves],
            min(Counter(arm_labels(runs)).values(), default=0),
        ),
        circumstances=_circumstances(runs),
        notices=_notices(runs, problems),
        sections=[section for section in sections if section.items or section.title == "Results"],
    )


def arm_labels(runs: Sequence[Run]) -> list[str]:
    """A name for every run's arm; runs of one name are seeds of one arm.

    They differ in nothing but the seed and were made from the same data. So an unfinished run has a
    name of its own, a run that warns of its numbers is marked, and two copies of one run go by
    their directories.
    """
    names = arm_names([run.config for run in runs])
    data = [str(run.manifest.get("data_hash", "unknown"))[:8] for run in runs]
    several = Counter(name for name, _ in set(zip(names, data, strict=True)))
    copies = Counter(zip(names, data, (run.config.seed for run in runs), strict=True))
    labels: list[str] = []
    for name, text, run in zip(names, data, runs, strict=True):
        label = f"{name} (data {text})" if several[name] > 1 else name
        if copies[name, text, run.config.seed] > 1:
            label = str(run.path)
        mark = f"{WARNING_MARK} " if run.warnings else ""
        labels.append(mark + label + ("" if run.finished else " (unfinished)"))
    return labels


def _has_seeds(runs: Sequence[Run]) -> bool:
    return max(Counter(arm_labels(runs)).values(), default=0) > 1


def _frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: arm, seed, status, the measures, then every other final figure, unscaled."""
    rows = [
        {
            "arm": label,
            "seed": run.config.seed,
            "status": _status(run),
            "run": run.path.name,
            **run.final,
        }
        for label, run in zip(arm_labels(runs), runs, strict=True)
    ]
    first = ["arm", "seed", "status", "run", *(measure.key for measure in MEASURES)]
    frame = pd.DataFrame(rows, columns=None if rows else first)
    return frame.reindex(columns=[*first, *(key for key in frame.columns if key not in first)])


def _status(run: Run) -> str:
    return "finished" if run.finished else f"unfinished, step {run.final.get('step', 0):.0f}"


def _is_sound(run: Run) -> bool:
    return run.finished and not run.warnings


def _table_of_runs(runs: Sequence[Run]) -> Table:
    return Table(
        name="runs",
        caption="Every run at its last evaluation.",
        frame=_frame(runs),
        columns=(ARM, SEED, *MEASURES, STATUS),
        contenders=[_is_sound(run) for run in runs],
    )


def _table_of_arms(runs: Sequence[Run]) -> Table:
    frame = _frame(runs)
    keys = [measure.key for measure in MEASURES]
    means: list[dict[str, object]] = []
    halves: list[dict[str, float]] = []
    contenders: list[bool] = []
    for arm, group in frame.groupby("arm", sort=False):
        mean, half = mean_and_half_width(group[keys].to_numpy(dtype=float))
        means.append({"arm": arm, "seeds": len(group), **dict(zip(keys, mean, strict=True))})
        halves.append(dict(zip(keys, half, strict=True)))
        contenders.append(all(_is_sound(runs[index]) for index in group.index))
    return Table(
        name="arms",
        caption="Mean over seeds ± half of its 95 % t interval; an arm with one seed has none.",
        frame=pd.DataFrame(means),
        columns=(ARM, SEEDS, *MEASURES),
        half_widths=pd.DataFrame(halves),
        contenders=contenders,
    )


def _loss_intervals(runs: Sequence[Run]) -> list[Figure]:
    frame = _frame(runs).dropna(subset=["val/loss"])
    if frame.empty:
        return []
    return [
        IntervalFigure(
            name="final-loss",
            title="Validation loss at the end",
            value_label="validation loss (nats/token)",
            caption="Points: seeds. Marks: mean and its 95 % t interval.",
            values={
                str(arm): list(group["val/loss"]) for arm, group in frame.groupby("arm", sort=False)
            },
        )
    ]


def _curves(
    runs: Sequence[Run], wanted: Sequence[Wanted], *, with_seconds: bool
) -> list[CurveFigure]:
    series = [
        Series(arm=label, seed=run.config.seed, metrics=run.metrics)
        for label, run in zip(arm_labels(runs), runs, strict=True)
    ]
    figures = curve_figures(series, wanted, with_seconds=with_seconds)
    return [
        replace(figure, mark=mark(figure.curves, _ranking(runs)))
        if figure.name.startswith("validation-loss")
        else figure
        for figure in figures
    ]


def _ranking(runs: Sequence[Run]) -> dict[str, float]:
    """Arms of finished runs without warnings → mean final loss, lowest first.

    Empty where the runs did not see the same data: then their losses do not compare.
    """
    if len({run.manifest.get("data_hash") for run in runs}) > 1:
        return {}
    losses: dict[str, list[float]] = {}
    for label, run in zip(arm_labels(runs), runs, strict=True):
        if _is_sound(run) or len(runs) == 1:
            losses.setdefault(label, []).append(run.final.get("val/loss", math.nan))
    means = {label: sum(values) / len(values) for label, values in losses.items()}
    finite = {label: mean for label, mean in means.items() if math.isfinite(mean)}
    return dict(sorted(finite.items(), key=lambda item: item[1]))


def _notices(runs: Sequence[Run], problems: Sequence[str]) -> list[str]:
    notices = [
        f"{label.removeprefix(WARNING_MARK).strip()}: {warning}"
        for label, run in zip(arm_labels(runs), runs, strict=True)
        for warning in run.warnings
    ]
    notices = list(dict.fromkeys(notices))  # once an arm, not once a seed
    notices += [f"Left out: {problem}" for problem in problems]
    notices += [
        f"{run.path.name}: its clock went backwards, so it is not drawn against seconds"
        for run in runs
        if not clock_runs_forwards(run.metrics)
    ]
    if len({run.manifest.get("data_hash") for run in runs}) > 1:
        notices.append("The runs did not see the same data: their losses do not compare.")
    if len({run.machine.get("processor") for run in runs}) > 1:
        notices.append("The runs were made on different machines: their times do not compare.")
    return notices


def _circumstances(runs: Sequence[Run]) -> str:
    """Seeds, n, hardware and protocol, in one sentence each."""
    if not runs:
        return "n = 0 runs."
    seeds = ", ".join(map(str, sorted({run.config.seed for run in runs})))
    facts = [f"n = {len(runs)} run{'s' * (len(runs) > 1)}, seed{'s' * (',' in seeds)} {seeds}"]
    facts.append(" / ".join(sorted({hardware(run.manifest) for run in runs})))
    data = sorted({str(run.manifest.get("data_hash", "unknown"))[:8] for run in runs})
    facts.append(f"Data {', '.join(data)}; evaluated on the validation split")
    return ". ".join(facts) + "."
