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
    tyro.conf.arg(metavar="RECIPE", help="its name; `muonlab inspect` lists all"),
]
Overrides = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="FIELD=VALUE",
        help="changes to any field of the config, such as model.dim=256 optimizer.kind=adamw",
    ),
]

Native = Annotated[bool, tyro.conf.arg(help="compile faster CPU kernels (needs a C++ compiler)")]
Scale = Literal["nano", "small", "paper"]

RUNS_DIR = Path("runs")
STUDIES_DIR = Path("runs/studies")
RESULTS_DIR = Path("results")
