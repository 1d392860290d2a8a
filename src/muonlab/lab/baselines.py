"""What optimizers are compared by: two base runs, and baselines with the ranges that tune them."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from muonlab.config import OptimizerConfig, RunConfig
from muonlab.custom_optimizer import CustomConfig
from muonlab.data import DataConfig, DocumentSplit, TokenizerConfig
from muonlab.lab.experiment import Scale
from muonlab.optim.config import AdamWConfig, MuonConfig
from muonlab.recipes import nano, small

SPACE = Mapping[str, tuple[float, float]]
ADAMW_RANGE, MUON_RANGE = (5e-4, 2e-2), (2e-3, 8e-2)  # of learning rates: equal volumes, log scale
RATIO_RANGE = (0.3, 30.0)  # of all other parameters' rate to that of matrices


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """An optimizer to compare with, and what of it is tuned."""

    make: Callable[[], OptimizerConfig]
    space: SPACE


BASELINES: dict[str, Baseline] = {
    "adamw": Baseline(  # with one rate for everything it is a weak baseline
        make=AdamWConfig,
        space={"optimizer.lr": ADAMW_RANGE, "optimizer.other_lr_ratio": RATIO_RANGE},
    ),
    "muon": Baseline(
        make=MuonConfig,
        space={"optimizer.lr": MUON_RANGE, "optimizer.adamw_lr_ratio": RATIO_RANGE},
    ),
    "sgd": Baseline(  # the one that must lose: a comparison in which it does not is to be doubted
        make=lambda: CustomConfig(factory="torch.optim:SGD", options={"lr": 1.0, "momentum": 0.9}),
        space={"optimizer.options.lr": (0.05, 5.0)},
    ),
}


def documents(tokenizer: TokenizerConfig) -> DataConfig:
    """The builtin corpus with documents held out.

    With this salt, three of the 249 documents (1.3 % of the text) validate: evaluating must not
    take longer than the run.
    """
    split = DocumentSplit(validation_fraction=0.02, test_fraction=0.02, salt="a")
    return DataConfig(tokenizer=tokenizer, split=split)


def base(scale: Scale) -> RunConfig:
    """The run that optimizers are compared on: evaluated half-way and at the end.

    The dtype is settled here, so that no pair of arms can differ in it.
    """
    return _BASES[scale]()


def with_updates(config: RunConfig, updates: int) -> RunConfig:
    """The same run with that many updates, evaluated half-way and at the end."""
    train = dataclasses.replace(
        config.train, steps=updates, evaluate_every=-(-updates // 2), checkpoint_every=updates
    )
    return dataclasses.replace(config, train=train)


def _nano() -> RunConfig:
    """The recipe with enough updates to tell optimizers apart, in seconds."""
    config = nano()
    train = dataclasses.replace(config.train, dtype="fp32", evaluate_batches=32)
    return with_updates(dataclasses.replace(config, train=train), 200)


def _small() -> RunConfig:
    """The recipe, validated on a split that takes a second instead of ten."""
    config = small()
    return with_updates(
        dataclasses.replace(
            config,
            data=documents(config.data.tokenizer),
            train=dataclasses.replace(config.train, dtype="bf16"),
        ),
        240,
    )


_BASES: dict[Scale, Callable[[], RunConfig]] = {"nano": _nano, "small": _small}
SCALES: tuple[Scale, ...] = tuple(_BASES)
