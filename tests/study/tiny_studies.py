"""Studies of runs that take a second, and a program that runs one as another process."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from muonlab.config import override
from muonlab.recipes import nano
from muonlab.study.engine import Resources, run_study
from muonlab.study.experiment import Arm, Search, Study, Verdict, VerdictName
from tests.tiny_runs import TINY

LEARNING_RATE = Search(space={"optimizer.lr": (1e-3, 1e-1)}, trials=4, extensions=0, seed=90)


def judge(frame: pd.DataFrame) -> list[Verdict]:
    done = list(frame["status"]).count("finished")
    name: VerdictName = "reproduced" if done == len(frame) else "inconclusive"
    return [Verdict(claim="T-1", verdict=name, sentence=f"{done} of {len(frame)} runs")]


def tiny_arm(name: str, text: Path, *overrides: str, **fields: Any) -> Arm:
    config = override(nano(), [*TINY, f"data.source.path={text}", "train.steps=4", *overrides])
    return Arm(name=name, config=config, **fields)


def tiny_study(text: Path, *arms: Arm, seeds: tuple[int, ...] = (0, 1), name: str = "t1") -> Study:
    default = (
        tiny_arm("muon", text),
        tiny_arm("adamw", text, "optimizer.kind=adamw", labels={"optimizer": "AdamW"}),
    )
    return Study(
        name=name,
        scale="nano",
        question="Does it run?",
        claims=("T-1",),
        arms=arms or default,
        seeds=seeds,
        judge=judge,
    )


def slow_study(text: Path) -> Study:
    """Runs long enough to be killed in."""
    arms = (tiny_arm(name, text, f"optimizer.lr={rate}", "train.steps=60") for name, rate in RATES)
    return tiny_study(text, *arms, name="slow")


RATES = (("low", 0.01), ("high", 0.02))


if __name__ == "__main__":
    text, root, cache_dir, workers = sys.argv[1:]
    resources = Resources(workers=int(workers), cache_dir=Path(cache_dir))
    run_study(slow_study(Path(text)), Path(root), resources, console=Console(stderr=True))
