"""Invented run directories, written through the same `RunDirectory` as real ones."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muonlab.config import RunConfig, override
from muonlab.recipes import nano
from muonlab.runs import RunDirectory

STEPS, EVERY, TOKENS_A_STEP = 60, 10, 512

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """``write_run("muon", 0)`` leaves a finished run and returns its path."""

    def write(
        variant: str,
        seed: int = 0,
        *,
        floor: float = 4.0,
        finished: bool = True,
        warnings: tuple[str, ...] = (),
        steps: int = STEPS,
        manifest: dict[str, Any] | None = None,
        name: str = "demo",
        config: RunConfig | None = None,
    ) -> Path:
        """Variants are told apart by a learning rate of their own, as real ones are by more."""
        rate = 1e-3 * (1 + sum(variant.encode()))
        recipe = override(nano(), [f"optimizer.lr={rate}"])
        config = config or replace(recipe, name=name, variant=variant, seed=seed)
        run = RunDirectory.place(tmp_path / "runs", config)
        written = facts() | {"fingerprint": config.fingerprint(), "warnings": list(warnings)}
        run.create(config, written | (manifest or {}))
        noise = np.random.default_rng(config.seed)
        final: dict[str, float] = {}
        for step in range(steps + 1):
            loss = floor + 4 * math.exp(-step / 15) + noise.normal(0, 0.02)
            stamp = {"step": step, "tokens": step * TOKENS_A_STEP, "time": 0.25 * step}
            if step:
                training = {
                    "train/loss": loss,
                    "train/tokens_per_second": 2048.0,
                    "train/grad_norm": 1.0,
                }
                run.append_metrics(stamp | training)
            if step % EVERY == 0:
                final = {
                    "val/loss": loss + 0.1,
                    "val/bits_per_byte": loss / 3,
                    "val/perplexity": math.exp(loss + 0.1),
                    "val/accuracy": 0.25,
                    "moe/load_cv": 0.5 / (1 + step),
                    "moe/max_load": 1.4,
                    "moe/dead_experts": 0.0,
                    "moe/router_entropy": 1.2,
                }
                run.append_metrics(stamp | final)
        if finished:
            summary = {
                "steps": steps,
                "tokens": steps * TOKENS_A_STEP,
                "train_seconds": 0.25 * steps,
                "tokens_per_second": 2048.0,
                "optimizer_share": 0.125,
                "optimizer_state_bytes": 3_000_000,
                "peak_memory_bytes": 500_000_000,
                "finished": "2026-01-01T00:00:00Z",
            }
            run.finish(summary | final)
        return run.path

    return write


def facts() -> dict[str, Any]:
    """A manifest as the trainer writes it."""
    return {
        "created": "2026-01-01T00:00:00Z",
        "git": {"sha": "0" * 40, "dirty": False},
        "machine": {"processor": "Imaginary CPU", "cores": 2, "threads": 2, "device": "cpu"},
        "dtype": "fp32",
        "data_hash": "abcdef0123456789",
        "parameters": 1_000_000,
    }
