"""Runs as tasks of a local Ray."""

import dataclasses
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tiny_studies import arm, study_of

from muonlab.config import RunConfig, override
from muonlab.lab.engine import Resources, run_study
from muonlab.lab.results import StudyResults


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs muonlab[cluster]")
def test_ray_makes_the_same_runs(
    make_config: Callable[..., RunConfig], tmp_path: Path, cache_dir: Path
):
    config = make_config("train.steps=3")
    wild = override(config, ["train.steps=20", "optimizer.lr=1e9"])
    study = study_of(arm("muon", config), arm("wild", wild), seeds=(0,))
    here = Resources(workers=1, cache_dir=cache_dir)
    frames = []
    for name, resources in (("ray", dataclasses.replace(here, executor="ray")), ("local", here)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own
            run_study(study, tmp_path / name, resources, console=Console(quiet=True))
        frames.append(StudyResults(study, tmp_path / name).frame)
    ray, local = frames
    assert list(ray["status"]) == ["finished", "failed"]
    assert list(ray["val/loss"]) == pytest.approx(list(local["val/loss"]), abs=1e-6)
