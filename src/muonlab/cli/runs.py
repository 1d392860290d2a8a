"""`muonlab train | resume | import`: make runs, and continue from runs or models."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from muonlab.cli.configs import check_factory, check_factory_of_json, data_notes, with_data
from muonlab.cli.options import (
    RUNS_DIR,
    CacheDir,
    Data,
    Overrides,
    RecipeName,
    RunPath,
    RunsDir,
)

if TYPE_CHECKING:
    from muonlab.config import RunConfig
    from muonlab.runs import RunDirectory


def train_recipe(
    recipe_name: RecipeName,
    overrides: Overrides = (),
    *,
    data: Data = (),
    init_from: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="RUN",
            help="start from the model, weights and tokenizer of a run, of one of its "
            "checkpoints, or of a Hugging Face directory",
            help_behavior_hint="",
        ),
    ] = None,
    runs_dir: RunsDir = RUNS_DIR,
    cache_dir: CacheDir = None,
) -> None:
    """Train a recipe. FIELD=VALUE sets any field of it.

    Ctrl-C writes a checkpoint and ends with exit code 130; `muonlab resume` continues the run.
    With --init-from, the model comes from there, and the recipe says how to train it.
    """
    from muonlab.config import override
    from muonlab.pretrained import begin_from, open_pretrained
    from muonlab.recipes import recipe
    from muonlab.runs import RunDirectory, RunError

    config = recipe(recipe_name)
    source = open_pretrained(init_from) if init_from is not None else None
    if source is not None:
        config = begin_from(config, source)
        _say(f"beginning with the weights of {source.about}")
    config = override(with_data(config, data, cache_dir), list(overrides))
    check_factory_of_json(recipe_name, config, overrides)
    if source is not None:
        optimizer = config.optimizer
        _say(
            f"training with {config.label} at a peak learning rate of {_rate(config, 1.0)}, as for "
            f"recipe {recipe_name} from random weights; optimizer.lr=… sets another"
        )
        if optimizer.kind == "muon" and source.trained_by != "muon":
            _say(
                f"these weights were trained by {source.trained_by or 'an unknown optimizer'}: on "
                f"a model that AdamW has trained, optimizer.kind=adamw is the safer choice, or a "
                f"lower rate (2605.10468)"
            )
    run = RunDirectory.place(runs_dir, config)
    if run.exists():
        raise RunError(
            f"{run.path} holds this run already, {run.status()}; {_how_to_go_on(run)}, "
            f"seed=N starts another"
        )
    execute(config, run, cache_dir)


def resume(
    run_path: RunPath,
    *,
    steps_more: Annotated[
        int | None,
        tyro.conf.arg(
            help="train a finished run for N more steps", metavar="N", help_behavior_hint=""
        ),
    ] = None,
    factory: Annotated[
        str | None,
        tyro.conf.arg(
            help="name the factory of a custom optimizer again: its code is executed only if "
            "you name it",
            metavar="FILE.py:NAME",
            help_behavior_hint="",
        ),
    ] = None,
    cache_dir: CacheDir = None,
) -> None:
    """Continue an interrupted run from its newest checkpoint.

    On the same machine with the same number of threads, it ends in the same weights, bit for bit,
    as a run that was never interrupted. With --steps-more, a finished run trains for longer: the
    learning rate continues as in a run of the new length, and the command prints it.
    """
    from muonlab.runs import RunDirectory, RunError

    run = RunDirectory(run_path)
    config = run.config()
    finished = run.status() == "finished"
    if factory is not None or not finished or steps_more:
        check_factory(config, factory, f"muonlab resume {run_path} --factory ")
    if steps_more is None:
        if finished:
            raise RunError(
                f"{run_path} is finished: {run.summary()['steps']} steps; {_how_to_go_on(run)}"
            )
    elif steps_more < 1:
        raise RunError(f"--steps-more is {steps_more}; it must be at least 1")
    elif not finished:
        raise RunError(
            f"{run_path} is {run.status()}; --steps-more is for a finished run, "
            f"`muonlab resume {run_path}` finishes it"
        )
    elif "imported_from" in run.manifest():
        raise RunError(f"{run_path} has no corpus: it was imported; {_how_to_go_on(run)}")
    else:
        ended = config.train.steps
        last = _rate(config, config.learning_rate_multiplier(ended - 1))
        config = run.extend(steps_more)
        following = config.learning_rate_multiplier(ended)
        final = config.learning_rate_multiplier(config.train.steps - 1)
        _say(
            f"{run_path} ended at step {ended} and goes on to step {config.train.steps}. "
            f"Its last learning rate was {last}; the {config.learning_rate.kind} schedule of "
            f"{config.train.steps} steps goes on at {_rate(config, following)} "
            f"({following:.0%} of the peak) and ends at {_rate(config, final)}."
        )
    if factory is not None:  # the same source, perhaps in another place
        optimizer = dataclasses.replace(config.optimizer, factory=factory)
        config = dataclasses.replace(config, optimizer=optimizer)
    execute(config, run, cache_dir)


def import_model(
    directory: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="DIRECTORY", help="a Hugging Face model with its tokenizer"),
    ],
    *,
    to: Annotated[
        Path | None,
        tyro.conf.arg(
            help="a new directory for the run",
            help_behavior_hint="(default: RUNS-DIR/imported/…)",
        ),
    ] = None,
    runs_dir: RunsDir = RUNS_DIR,
) -> None:
    """Turn a Hugging Face model into a run, for generate, eval --data and train --init-from.

    Its weights must be safetensors.
    """
    from muonlab.pretrained import import_run, open_pretrained

    run = import_run(
        open_pretrained(directory), to or runs_dir / "imported" / directory.absolute().name
    )
    facts = run.manifest()
    _say(f"{run.path}: {facts['parameters']:,} parameters, imported from {facts['imported_from']}")
    _say(f"`muonlab train RECIPE --init-from {run.path} --data FILE` trains it on")


def _rate(config: "RunConfig", multiplier: float) -> str:
    """A learning rate as a number; of a custom optimizer, as a share of what its factory sets."""
    rate = config.optimizer.lr * multiplier
    return f"{multiplier:.0%} of its factory's" if math.isnan(rate) else f"{rate:.2g}"


def _how_to_go_on(run: "RunDirectory") -> str:
    if "imported_from" in run.manifest():
        return f"`muonlab train RECIPE --init-from {run.path}` trains it on"
    if run.status() == "finished":
        return f"`muonlab resume {run.path} --steps-more N` extends it"
    return f"`muonlab resume {run.path}` continues it"


def execute(config: "RunConfig", run: "RunDirectory", cache_dir: Path | None) -> None:
    """Train with a progress bar; say where, and how it ended."""
    from muonlab.train import train

    for warning in config.data.split.warnings:  # the model warns when it is built
        _say(f"warning: {warning}", style="bold red")
    data = config.data.prepare(cache_dir)
    for note in data_notes(config, data):
        _say(f"note: {note}")
    _say(f"training in {run.path}")
    summary = train(config, run, data)
    _say(
        f"{run.path}: validation loss {summary['val/loss']:.4f} nats/token, "
        f"{summary['val/bits_per_byte']:.4f} bits/byte, accuracy {summary['val/accuracy']:.1%}, "
        f"{summary['tokens_per_second']:,.0f} tokens/s, {summary['train_seconds']:.1f} s"
    )


def _say(line: str, *, style: str | None = None) -> None:
    Console(markup=False, highlight=False, soft_wrap=True).print(line, style=style)
