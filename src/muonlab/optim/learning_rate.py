"""Learning-rate schedules: pure functions of the step, as frozen configs.

``multiplier(step, total_steps)`` is what the initial learning rate is multiplied with at update
``step`` (from 0) of ``total_steps``. ``warmup`` and ``decay`` are fractions of the run when below
1, numbers of updates from 1 on.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstantConfig:
    """Linear warm-up, then constant."""

    kind: Literal["constant"] = "constant"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check("warmup", self.warmup, math.inf)

    def multiplier(self, step: int, total_steps: int) -> float:
        return _warmup(step, _updates(self.warmup, total_steps))


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearConfig:
    """Linear warm-up, then linear decay that reaches ``final`` one update after the last."""

    kind: Literal["linear"] = "linear"
    warmup: float = 0.05
    final: float = 0.0

    def __post_init__(self) -> None:
        _check("warmup", self.warmup, math.inf)
        _check("final", self.final, 1.0)

    def multiplier(self, step: int, total_steps: int) -> float:
        warmup = _updates(self.warmup, total_steps)
        progress = _progress(step, warmup, total_steps)
        return _warmup(step, warmup) * (1 + (self.final - 1) * progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class CosineConfig:
    """Linear warm-up, then half a cosine that reaches ``final`` one update after the last."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = 0.05
    final: float = 0.0

    def __post_init__(self) -> None:
        _check("warmup", self.warmup, math.inf)
        _check("final", self.final, 1.0)

    def multiplier(self, step: int, total_steps: int) -> float:
        warmup = _updates(self.warmup, total_steps)
        cosine = _cosine(_progress(step, warmup, total_steps), self.final)
        return _warmup(step, warmup) * cosine


@dataclass(frozen=True, kw_only=True, slots=True)
class WSDConfig:
    """Warm-up, stable, then linear decay over the last ``decay`` of the run (2404.06395)."""

    kind: Literal["wsd"] = "wsd"
    warmup: float = 0.05
    decay: float = 0.4
    final: float = 0.0

    def __post_init__(self) -> None:
        _check("warmup", self.warmup, math.inf)
        _check("decay", self.decay, math.inf)
        _check("final", self.final, 1.0)

    def multiplier(self, step: int, total_steps: int) -> float:
        start = total_steps - _updates(self.decay, total_steps)
        progress = _progress(step, start, total_steps)
        warmup = _warmup(step, _updates(self.warmup, total_steps))
        return warmup * (1 + (self.final - 1) * progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class P2Config:
    """P2's schedule as published: planned in micro-batches, ticked once an update.

    Warm-up (from 0, so the first update does nothing) and cosine are laid over
    ``total_steps · micro_batches`` ticks, of which only the first ``total_steps`` happen: warm-up
    takes 20 % of the run and the rate never decays below about 90 % of its peak.
    """

    kind: Literal["p2"] = "p2"
    micro_batches: int = 4
    warmup: float = 0.05
    final: float = 0.1

    def __post_init__(self) -> None:
        _check("micro_batches", self.micro_batches, math.inf)
        _check("warmup", self.warmup, 1.0)
        _check("final", self.final, 1.0)

    def multiplier(self, step: int, total_steps: int) -> float:
        horizon = total_steps * self.micro_batches
        warmup = int(horizon * self.warmup)
        if step < warmup:
            return step / max(1, warmup)
        return _cosine((step - warmup) / max(1, horizon - warmup), self.final)


LearningRate = ConstantConfig | LinearConfig | CosineConfig | WSDConfig | P2Config


def _updates(amount: float, total_steps: int) -> int:
    return round(amount * total_steps) if amount < 1 else int(amount)


def _warmup(step: int, updates: int) -> float:
    return min(1.0, (step + 1) / updates) if updates else 1.0


def _progress(step: int, start: int, stop: int) -> float:
    return min(1.0, max(0.0, (step - start) / max(1, stop - start)))


def _cosine(progress: float, final: float) -> float:
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def _check(name: str, value: float, high: float) -> None:
    if not 0 <= value <= high:
        legal = "at least 0" if math.isinf(high) else f"in [0, {high:g}]"
        raise ValueError(f"{name} {value!r} must be {legal}")
