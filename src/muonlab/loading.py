"""A trained model with all it needs to run, from its run directory alone: `load`."""

from dataclasses import dataclass
from pathlib import Path

import torch

from muonlab import machine
from muonlab.checkpoints import load_weights
from muonlab.config import RunConfig
from muonlab.data import TextTokenizer, TokenData
from muonlab.model import LanguageModel
from muonlab.runs import RunDirectory, RunError


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedRun:
    """A trained model in evaluation mode, computing in the dtype that it was trained in.

    ``step`` is the number of updates that it has had.
    """

    run: RunDirectory
    config: RunConfig
    step: int
    model: LanguageModel
    tokenizer: TextTokenizer


def load(
    path: Path | str,
    *,
    step: int | None = None,
    device: torch.device | None = None,
    cache_dir: Path | None = None,
) -> LoadedRun:
    """The model of a run after ``step`` updates (None: its newest checkpoint).

    Needs the run directory only. A run made before runs kept their tokenizer needs its corpus as
    well, encoded in ``cache_dir`` (None: the user's cache). Raises `RunError` or `DataError`.
    """
    run = RunDirectory(Path(path))
    config = run.untouched_config()
    tokenizer = run.tokenizer() or open_corpus(run, cache_dir).tokenizer
    checkpoint = run.load_checkpoint(step)
    device = device or machine.default_device()
    model = config.model.build(0, device)
    load_weights(model, checkpoint.model, run.path)
    model.compute_dtype = machine.resolve_dtype(checkpoint.state.dtype, device)
    model.eval()
    return LoadedRun(run=run, config=config, step=checkpoint.step, model=model, tokenizer=tokenizer)


def open_corpus(run: RunDirectory, cache_dir: Path | None) -> TokenData:
    """The corpus that a run was trained on; raises RunError if it now holds other text."""
    if origin := run.manifest().get("imported_from"):
        raise RunError(f"{run.path} has no corpus: it was imported from {origin}")
    data = run.config().data.prepare(cache_dir)
    if data.data_hash != run.manifest()["data_hash"]:
        raise RunError(f"{run.path} was trained on other data than the corpus now holds")
    return data
