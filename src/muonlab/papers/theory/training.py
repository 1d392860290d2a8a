"""Training a small language model under observation: the loop that `rate` and `spectral` share."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from muonlab.config import RunConfig, stream_seed
from muonlab.custom_optimizer import AnyOptimizer
from muonlab.data import TokenData
from muonlab.model import LanguageModel
from muonlab.optim.groups import place_parameters
from muonlab.optim.layout import MatrixSpec
from muonlab.train import Batches, accumulate_gradients


@dataclass(frozen=True, slots=True)
class Moment:
    """A model between the backward pass of update ``step`` and that update; gradients are set."""

    step: int
    loss: float
    model: LanguageModel
    optimizer: AnyOptimizer


def moments(config: RunConfig, data: TokenData) -> Iterator[Moment]:
    """Train ``config`` in fp32 without clipping, pausing before every update and at the end.

    The last moment, at ``step`` = ``train.steps``, has the gradients of a batch that is not used.
    """
    model = config.model.build(stream_seed(config.seed, "init"))
    optimizer = config.optimizer.build(model)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    batches = Batches(config, data, torch.device("cpu"))
    model.train()
    for step in range(config.train.steps + 1):
        multiplier = config.learning_rate.multiplier(step, config.train.steps)
        for group, base_rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = base_rate * multiplier
        loss = accumulate_gradients(config, model, batches.take(step), step).item()
        yield Moment(step, loss, model, optimizer)
        if step < config.train.steps:
            optimizer.step()
            model.update_balance()
        optimizer.zero_grad()


def hidden_matrices(model: LanguageModel) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Every hidden matrix as Muon sees it, with its gradient: name -> (B, m, n) and the same.

    A fused projection is several; a stack of experts is one, of B matrices.
    """
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for place in place_parameters(model):
        if place.role != "hidden":
            continue
        spec = MatrixSpec.from_layout(place.parameter.shape, place.layout)
        weights = spec.blocks(place.parameter.detach())
        gradient = place.parameter.grad
        gradients = [None] * len(weights) if gradient is None else spec.blocks(gradient)
        for index, (weight, slope) in enumerate(zip(weights, gradients, strict=True)):
            suffix = f"[{index}]" if len(weights) > 1 else ""
            found[place.name + suffix] = (weight, slope)
    return found


def singular_values(matrices: Tensor) -> Tensor:
    """Of (B, m, n), ascending: (B, min(m, n)), in fp64."""
    return torch.linalg.svdvals(matrices.double()).flip(-1)
