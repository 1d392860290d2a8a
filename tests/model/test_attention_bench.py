"""What `muonlab bench attention` computes from its measurements, and that it measures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from muonlab.bench.attention import (
    AttentionCost,
    attention_table,
    crossover,
    default_kinds,
    exponent_table,
    growth_exponent,
    measure_attention,
    peak_bytes,
    plot_attention,
    quoted_cost,
)

pytestmark = pytest.mark.filterwarnings("ignore:attention kind mhla is not causal")


def costs_of(kind: str, seconds: dict[int, float]) -> list[AttentionCost]:
    blank = AttentionCost(
        kind=kind, length=0, quoted_flops=1, quoted_bytes=1, forward_flops=1,
        forward_seconds=1.0, step_seconds=1.0, peak_bytes=1,
    )  # fmt: skip
    return [replace(blank, length=n, step_seconds=s) for n, s in seconds.items()]


def test_growth_exponent_of_a_power_law():
    costs = costs_of("a", {n: 3e-9 * n**1.7 for n in (512, 2048, 4096, 8192)})
    assert growth_exponent(costs, "a", "step_seconds") == pytest.approx(1.7)
    assert growth_exponent(costs, "a", "forward_seconds") == pytest.approx(0)
    with pytest.raises(ValueError, match="from_length is 8192; it leaves fewer than two"):
        growth_exponent(costs, "a", "step_seconds", from_length=8192)


def test_crossover_is_where_a_kind_stays_faster():
    costs = costs_of("mhsa", {256: 1.0, 512: 2.0, 1024: 4.0, 2048: 16.0})
    faster = costs_of("a", {256: 0.5, 512: 3.0, 1024: 3.0, 2048: 6.0})
    never = costs_of("b", dict.fromkeys((256, 512, 1024, 2048), 99.0))
    assert crossover(costs + faster, "a") == 1024
    assert crossover(costs + never, "b") is None


def test_quoted_costs_are_the_published_formulas():
    kinds = default_kinds(num_heads=8, num_latents=64)
    assert quoted_cost(kinds["mhsa"], 512, 384) == (512 * 512 * 384, 512 * 512 * 4)
    assert quoted_cost(kinds["mhla"], 512, 384) == (2 * 512 * 64 * 384, 2 * 512 * 64 * 4)


def test_peak_bytes_counts_what_is_alive_together():
    def call() -> None:
        first = torch.ones(1000, 1000)
        second = first + 1
        del first
        (second.sum() + torch.ones(500, 1000).sum()).item()

    assert peak_bytes(call) == pytest.approx(8e6, rel=0.01)


def test_measures_every_kind(tmp_path: Path):
    kinds = default_kinds(num_heads=2, num_latents=4)
    costs = measure_attention(kinds, lengths=(64, 128), dim=64, rounds=2)
    assert len(costs) == 2 * len(kinds)
    for cost in costs:
        assert min(cost.step_seconds, cost.forward_seconds) > 0
        assert cost.peak_bytes > 2 * cost.length * 64
    assert attention_table(costs).row_count == len(costs)
    assert exponent_table(costs, from_length=64).row_count == len(kinds)
    plot_attention(costs, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 1000
