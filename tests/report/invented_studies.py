"""A study whose runs are invented, in the folders where the engine would have made them."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from muonlab.config import override
from muonlab.lab.experiment import Arm, Comparison, PaperRow, Search, Study, Verdict
from muonlab.lab.plan import Job, Plan
from muonlab.recipes import nano
from muonlab.runs import RunDirectory

from .conftest import facts

RATE = "optimizer.lr"
SEARCH = Search(space={RATE: (1e-3, 1e-1)}, trials=4, extensions=0, seed=90)
TOKENS_A_STEP = 512


def judge(frame: pd.DataFrame) -> list[Verdict]:
    done = list(frame["status"]).count("finished")
    if done < len(frame):
        sentence = f"{done} of {len(frame)} runs have finished."
        return [Verdict(claim="T-1", verdict="inconclusive", sentence=sentence)]
    muon, adamw = (
        frame.loc[frame["arm"] == name, "val/loss"].to_numpy(dtype=float).mean()
        for name in ("muon", "adamw")
    )
    return [
        Verdict(
            claim="T-1",
            verdict="reproduced",
            sentence="Muon is lower.",
            paper="-13.2 %",
            ours=f"{muon / adamw - 1:+.1%}",
        )
    ]


def invented_study(**fields: Any) -> Study:
    """Muon, tuned, against AdamW, under two protocols."""
    arms = []
    for name in ("adamw", "muon"):
        honest = override(nano(), [f"optimizer.kind={name}"])
        leaky = override(honest, ["data.split.kind=leaky_windows"])
        arms += [
            Arm(name=name, config=honest, labels={"optimizer": name}, search=SEARCH),
            Arm(
                name=f"{name}-leaky",
                config=leaky,
                labels={"optimizer": name},
                protocol="as_published",
            ),
        ]
    study = Study(
        name="invented",
        scale="nano",
        question="Which <optimizer> is better?",
        claims=("T-1", "T-2"),
        arms=tuple(arms),
        seeds=(0, 1, 2),
        judge=judge,
        comparisons=(
            Comparison(arm="muon", baseline="adamw", paper=-0.0071),
            Comparison(arm="muon-leaky", baseline="adamw-leaky"),
        ),
        paper=(PaperRow(arm="muon-leaky", values={"loss": 0.0476, "val/accuracy": 0.9907}),),
        notes=("Everything here is invented.",),
    )
    return dataclasses.replace(study, **fields)


def make_runs(
    study: Study,
    root: Path,
    *,
    steps: int = 20,
    diverges: Callable[[Job], bool] = lambda job: False,
    skips: Callable[[Job], bool] = lambda job: False,
) -> None:
    """Leave a finished run for every job, trials first, as an engine would."""
    plan = Plan(study, root)
    while jobs := [job for job in plan.to_do() if not skips(job)]:
        for job in jobs:
            write_run(job, steps=steps, diverged=diverges(job))
        plan.refresh()


def write_run(job: Job, *, steps: int, diverged: bool) -> None:
    """A run that ends at a loss of its arm, its rate and its seed."""
    run = RunDirectory(job.path)
    run.create(job.config, facts() | {"fingerprint": job.fingerprint, "warnings": []})
    if diverged:
        failure = {"diverged": True, "error": "step 3: loss nan"}
        (job.path / "failed.json").write_text(json.dumps(failure))
        return
    noise = np.random.default_rng(job.config.seed)
    floor = 4.0 if job.arm.startswith("muon") else 4.5
    floor += 0.3 * abs(math.log10(job.values.get(RATE, 0.02) / 0.02))
    final: dict[str, float] = {}
    for step in range(steps + 1):
        loss = floor + 4 * math.exp(-step / 15) + noise.normal(0, 0.02)
        stamp = {"step": step, "tokens": step * TOKENS_A_STEP, "time": 0.25 * step}
        if step:
            run.append_metrics(
                stamp | {"train/loss": loss, "train/step_seconds": 9.0 if step == 3 else 0.25}
            )
        if step % 10 == 0:
            final = {"val/loss": loss, "val/perplexity": math.exp(loss), "val/accuracy": 0.25}
            run.append_metrics(stamp | final)
    summary = {"steps": steps, "train_seconds": 0.25 * steps, "finished": "2026-01-01T00:00:00Z"}
    run.finish(summary | final)
