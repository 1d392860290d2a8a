"""Studies of runs that take a second, and a program that makes one in another process."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from muonlab.cli import run
from muonlab.config import RunConfig, from_json, override, to_json
from muonlab.lab.experiment import Arm, Search, Study, Verdict, VerdictName
from muonlab.papers import EXPERIMENTS

LEARNING_RATE = Search(
    space={"optimizer.lr": (1e-3, 1e-1)}, trials=4, extensions=0, seed=90, finalists=2, repeats=1
)


def judge(frame: pd.DataFrame) -> list[Verdict]:
    done = list(frame["status"]).count("finished")
    name: VerdictName = "reproduced" if done == len(frame) else "inconclusive"
    return [Verdict(claim="T-1", verdict=name, sentence=f"{done} of {len(frame)} runs")]


def arm(name: str, config: RunConfig, *overrides: str, **fields: Any) -> Arm:
    return Arm(name=name, config=override(config, list(overrides)), **fields)


def study_of(*arms: Arm, seeds: tuple[int, ...] = (0, 1), **fields: Any) -> Study:
    study = Study(
        name="tiny",
        scale="nano",
        question="Does it run?",
        claims=("T-1",),
        arms=arms,
        seeds=seeds,
        judge=judge,
    )
    return dataclasses.replace(study, **fields)


def long_study(config: RunConfig) -> Study:
    """Runs of some seconds, with a checkpoint every other step."""
    config = override(config, ["train.steps=200", "train.evaluate_every=200"])
    low, high = (arm(name, config, f"optimizer.lr={lr}") for name, lr in (("a", 0.01), ("b", 0.02)))
    return study_of(low, high, name="long")


def written(root: Path) -> dict[Path, int]:
    """When each run's summary was written: a run made twice shows."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("summary.json")}


def start_engine(config: RunConfig, root: Path, cache_dir: Path) -> subprocess.Popen[str]:
    """``muonlab study run long`` with two workers, as a process of its own."""
    arguments = ["study", "run", "long", "--scale", "nano", "--workers", "2"]
    places = ["--runs-dir", str(root), "--cache-dir", str(cache_dir)]
    return subprocess.Popen(
        [sys.executable, __file__, to_json(config), *arguments, *places],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


if __name__ == "__main__":
    tiny = from_json(sys.argv[1])
    EXPERIMENTS["long"] = lambda scale: long_study(tiny)
    sys.exit(run(sys.argv[2:]))
