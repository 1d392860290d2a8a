"""Arguments that several commands share. Nothing here imports torch: help must be quick."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

RunsDir = Annotated[Path, tyro.conf.arg(help="where run directories are kept")]
CacheDir = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="DIR",
        help="where encoded corpora are kept",
        help_behavior_hint="(default: the user's cache, ~/.cache/muonlab/corpora)",
    ),
]
RunPath = Annotated[
    Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="a run directory")
]
RecipeName = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="RECIPE",
        help="a name (`muonlab inspect` lists all), a config.json, or my_recipes.py:function",
    ),
]
Data = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(
        metavar="TEXT",
        help="use your own text: a file (.txt .md .jsonl .parquet), a directory of such files, or "
        "- for standard input; to mix several, give each a weight: --data a.txt=0.7 "
        "--data b.txt=0.3",
        help_behavior_hint="(default: the recipe's corpus)",
    ),
]
Overrides = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="FIELD=VALUE",
        help="set any field of the config, such as model.dim=256 optimizer.kind=adamw",
        help_behavior_hint="(default: none)",
    ),
]

Native = Annotated[
    bool, tyro.conf.arg(help="use faster CPU kernels, compiled once (needs a C++ compiler)")
]
Workers = Annotated[
    int | None,
    tyro.conf.arg(
        help="how many runs to make at the same time",
        help_behavior_hint="(default: usable cores divided by --threads)",
    ),
]
Threads = Annotated[int, tyro.conf.arg(help="CPU threads for each run")]
DryRun = Annotated[bool, tyro.conf.arg(help="only print what the missing runs would cost")]
StudiesDir = Annotated[Path, tyro.conf.arg(help="where the folders of studies are kept")]
ResultsDir = Annotated[Path, tyro.conf.arg(help="where reports are kept")]
Scale = Literal["nano", "small", "paper"]

RUNS_DIR = Path("runs")
STUDIES_DIR = Path("runs/studies")
RESULTS_DIR = Path("results")

OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
SWITCHES = ("--config", "--json")  # the flags without a value, of commands that take overrides


def overrides_last(arguments: Sequence[str]) -> list[str]:
    """Arguments with every FIELD=VALUE at the end, for a parser that wants them side by side.

    What follows a flag other than a switch is that flag's value: ``--data a.txt=0.7`` stays.
    """
    others, overrides = [], []
    before = ""
    for argument in arguments:
        is_value = before.startswith("-") and "=" not in before and before not in SWITCHES
        found = OVERRIDE.match(argument) and not is_value
        (overrides if found else others).append(argument)
        before = argument
    return others + overrides
