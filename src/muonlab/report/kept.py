"""A study's results as a report has kept them: rows, trials, pictures, and how they were made.

A report is committed, its runs are not. When rules or layout change, it is made anew from the rows
that were committed with it: no number is measured again, and none is read out of a text.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from muonlab.files import write_whole
from muonlab.lab.counts import count_losses, with_counts
from muonlab.lab.experiment import Experiment, Study, Verdict
from muonlab.lab.results import with_headline
from muonlab.lab.tuning import Box
from muonlab.report.content import Picture
from muonlab.report.files import RUNS
from muonlab.runs import RunError

MADE = "made.json"  # hardware, and the lines on commands, code, versions, machine and data
TRIALS = "trials.csv"
OF_RUNS = ("training-", "validation-", "search-")  # how the pictures begin that need the runs


class KeptResults:
    """What `StudyResults` says, as far as the files of ``directory`` do.

    Curves and manifests are not kept; ``pictures`` are those that were drawn from them.
    """

    def __init__(self, study: Study, directory: Path, cache_dir: Path | None = None) -> None:
        self.study = study
        self.directory = directory
        self._cache_dir = cache_dir
        self.curves: dict[str, pd.DataFrame] = {}
        self.manifests: dict[str, dict[str, Any]] = {}
        self.spaces: dict[str, Box] = {}
        self.edges: dict[str, dict[str, str]] = {}

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows of today's arms, with the loss that counts, and what counting comes to."""
        kept = read_rows(self.directory)
        arms = [arm.name for arm in self.study.arms]
        if missing := sorted(set(arms) - set(kept["arm"])):
            raise RunError(
                f"{self.directory / RUNS} has no rows of {', '.join(missing)}: these results are "
                "of an earlier definition and stay as they are"
            )
        frame = with_headline(kept.loc[kept["arm"].isin(arms)].reset_index(drop=True))
        frame["error"] = ["" if isinstance(text, float) else text for text in frame["error"]]
        if "unigram" in frame and bool(frame["unigram"].notna().to_numpy().all()):
            return frame
        data = {arm.name: arm.config.data for arm in self.study.arms}
        keys = {name: config.cache_key() for name, config in data.items()}
        counts = {
            key: count_losses(config.prepare(self._cache_dir))
            for key, config in {keys[name]: config for name, config in data.items()}.items()
        }
        return with_counts(frame, keys, counts)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        return self.study.judge(self.frame)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Every run of a search; empty where none was kept."""
        path = self.directory / TRIALS
        return pd.read_csv(path) if path.exists() else pd.DataFrame()

    @cached_property
    def pictures(self) -> list[Picture]:
        """What was drawn from runs that are not here."""
        return [
            Picture(name=path.stem, title=_title(path.stem), picture=path.read_bytes())
            for path in sorted(self.directory.glob("*.png"))
            if path.stem.startswith(OF_RUNS)
        ]

    @cached_property
    def made(self) -> dict[str, list[str]]:
        return read_made(self.directory)


def read_rows(directory: Path) -> pd.DataFrame:
    """The rows that were committed; raises RunError where they are missing or damaged."""
    try:
        return pd.read_csv(directory / RUNS)
    except (OSError, ValueError) as error:
        raise RunError(f"{directory / RUNS}: {error}") from None


def read_made(directory: Path) -> dict[str, list[str]]:
    """``hardware`` and ``lines``; nothing where they were not kept."""
    try:
        found = json.loads((directory / MADE).read_text(encoding="utf-8"))
        return {"hardware": list(found["hardware"]), "lines": list(found["lines"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"hardware": [], "lines": []}


def write_kept(
    directory: Path, trials: pd.DataFrame, hardware: list[str], lines: list[str]
) -> None:
    """What a later report will need beside the rows."""
    facts = {"hardware": hardware, "lines": lines}
    write_whole(directory / MADE, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    if len(trials):
        write_whole(directory / TRIALS, trials.to_csv(index=False))


def definition_changed(experiment: Experiment, lines: list[str]) -> bool:
    """Whether the runs were made for another definition than today's."""
    kept = [line.split()[-1] for line in lines if line.startswith("Definition: ")]
    return isinstance(experiment, Study) and kept != [experiment.fingerprint()[:12]]


def _title(name: str) -> str:
    """In words: "search-muon-optimizer.lr" is "search muon optimizer.lr"."""
    return name.replace("-", " ").capitalize()
