"""Arguments that several commands share. Nothing here imports torch: help must be quick."""

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
        help="your own text instead: a file (.txt .md .jsonl .parquet), a directory of texts, or - "
        "for standard input; several mix: --data a.txt=0.7 --data b.txt=0.3",
        help_behavior_hint="(default: the recipe's corpus)",
    ),
]
Overrides = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="FIELD=VALUE",
        help="changes to any field of the config, such as model.dim=256 optimizer.kind=adamw",
        help_behavior_hint="(default: none)",
    ),
]

Native = Annotated[bool, tyro.conf.arg(help="compile faster CPU kernels (needs a C++ compiler)")]
Scale = Literal["nano", "small", "paper"]

RUNS_DIR = Path("runs")
STUDIES_DIR = Path("runs/studies")
RESULTS_DIR = Path("results")
