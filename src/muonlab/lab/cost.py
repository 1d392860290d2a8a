"""What a study would cost: runs, FLOPs, hours on this machine from timed steps, bytes on disk."""

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from muonlab import machine
from muonlab.config import OptimizerConfig, RunConfig, to_dict
from muonlab.custom_optimizer import AnyOptimizer
from muonlab.data import DataError
from muonlab.model import LanguageModel
from muonlab.model.accounting import account

TIMED_STEPS = 3
METRICS_ROW_BYTES = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of some runs, made one after another."""

    runs: int
    flops: float
    seconds: float
    checkpoint_bytes: int  # of the largest run, while it is under way
    kept_bytes: int  # of all runs, after their checkpoints are gone
    notes: tuple[str, ...]


def train_tokens(config: RunConfig) -> int:
    """Of all training steps of a run."""
    return config.train.steps * config.train.batch_size * config.train.sequence_length


def model_flops(config: RunConfig) -> float:
    """Of all training steps of a run, forward and backward, without the optimizer's."""
    per_token = account(config.model, length=config.train.sequence_length).forward_flops
    return 3.0 * per_token * train_tokens(config)


def state_bytes(model: LanguageModel, optimizer_config: OptimizerConfig) -> int:
    """Bytes of an optimizer's state tensors after one step of that model."""
    optimizer = optimizer_config.build(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    return optimizer.state_bytes()


def estimate(configs: Sequence[RunConfig], cache_dir: Path | None) -> Cost:
    """Cost of these runs, by timing a few steps of each distinct shape in this process."""
    rates: dict[str, tuple[float, float, int]] = {}
    evaluations: dict[str, int | None] = {}
    flops = seconds = 0.0
    checkpoint_bytes = kept_bytes = 0
    unknown_flops = False
    for config in configs:
        settings = config.train
        shape = _shape(config)
        if shape not in rates:
            rates[shape] = _time_step(config)
        step_seconds, optimizer_flops, state_bytes = rates[shape]
        unknown_flops |= math.isnan(optimizer_flops)
        flops += model_flops(config) + settings.steps * (
            0.0 if math.isnan(optimizer_flops) else optimizer_flops
        )
        seconds += settings.steps * step_seconds
        tokens = _evaluated_tokens(config, cache_dir, evaluations)
        step_tokens = settings.batch_size * settings.sequence_length
        num_evaluations = 1 + -(-settings.steps // settings.evaluate_every)
        # a forward pass is a third of a step's work
        seconds += num_evaluations * (tokens or 0) / step_tokens * step_seconds / 3
        checkpoint_bytes = max(checkpoint_bytes, settings.keep_checkpoints * state_bytes)
        kept_bytes += METRICS_ROW_BYTES * settings.steps
    notes = []
    if unknown_flops:
        notes.append("the FLOPs of optimizers whose factory has no step_flops are left out")
    if None in evaluations.values():
        notes.append("evaluations are left out: the corpus is not prepared")
    return Cost(
        runs=len(configs),
        flops=flops,
        seconds=seconds,
        checkpoint_bytes=checkpoint_bytes,
        kept_bytes=kept_bytes,
        notes=tuple(notes),
    )


def _shape(config: RunConfig) -> str:
    """What decides the time of a step; learning rates and the like do not."""
    values = to_dict(config)
    optimizer = _without_floats(values["optimizer"])
    settings = {
        name: values["train"][name]
        for name in ("batch_size", "micro_batch_size", "sequence_length", "dtype")
    }
    return json.dumps([values["model"], optimizer, settings], sort_keys=True)


def _without_floats(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_floats(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if not isinstance(value, float)
    }


def _time_step(config: RunConfig) -> tuple[float, float, int]:
    """Seconds of a step on random tokens, the optimizer's FLOPs in it, bytes of a checkpoint.

    One micro-batch is timed for all of a step.
    """
    settings = config.train
    device = machine.default_device()
    model = config.model.build(0, device)
    model.compute_dtype = machine.resolve_dtype(settings.dtype, device)
    optimizer = config.optimizer.build(model)
    rows = settings.micro_batch_size or settings.batch_size
    shape = (rows, settings.sequence_length + 1)
    batch = torch.randint(config.model.vocab_size, shape, device=device)
    gradients, updates = [], []
    for _ in range(1 + TIMED_STEPS):  # the first pass pays for allocation
        gradients.append(_seconds_of_gradients(model, batch))
        started = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        updates.append(time.perf_counter() - started)
    passes = settings.batch_size // rows
    seconds = passes * statistics.median(gradients[1:]) + statistics.median(updates[1:])
    return seconds, optimizer.step_flops(), _checkpoint_bytes(model, optimizer)


def _seconds_of_gradients(model: LanguageModel, batch: torch.Tensor) -> float:
    started = time.perf_counter()
    output = model(batch[:, :-1], batch[:, 1:], torch.Generator(batch.device))
    output.loss.backward()
    output.cross_entropy.item()
    return time.perf_counter() - started


def _checkpoint_bytes(model: LanguageModel, optimizer: AnyOptimizer) -> int:
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights + optimizer.state_bytes()


def _evaluated_tokens(
    config: RunConfig, cache_dir: Path | None, known: dict[str, int | None]
) -> int | None:
    """Tokens of one evaluation; None where only the corpus could tell and it is not at hand."""
    settings = config.train
    bound = settings.evaluate_batches
    rows = settings.micro_batch_size or settings.batch_size
    limit = bound * rows * settings.sequence_length if bound else None
    key = config.data.cache_key()
    if key not in known:
        try:
            known[key] = config.data.prepare(cache_dir).num_tokens("validation")
        except (DataError, OSError):
            known[key] = None
    tokens = known[key]
    if tokens is None or limit is None:
        return tokens or limit
    return min(tokens, limit)
