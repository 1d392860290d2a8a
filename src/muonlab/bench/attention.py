"""How every attention kind grows with the length: counted, timed, and its memory measured.

Beside the full count stands the one that is often quoted for latent attention: n²·d operations and
n²·4 bytes against 2·n·k·d and 2·n·k·4, which leaves out the projections, one of the two products
with every key, and that causal attention needs but half of the pairs.
"""

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.table import Column, Table
from torch.profiler import ProfilerActivity, profile

from muonlab.bench.interleave import interleave
from muonlab.model.attention import (
    AttentionConfig,
    CausalMHLAConfig,
    MHLAConfig,
    MHSAConfig,
    MLAConfig,
    PrefixMHLAConfig,
)

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
MEASURES = {
    "forward_seconds": "forward, s",
    "step_seconds": "forward + backward, s",
    "peak_bytes": "peak memory, bytes",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCost:
    """One attention layer over one sequence of ``length`` tokens, batch 1."""

    kind: str
    length: int
    quoted_flops: int  # the count of scores alone
    quoted_bytes: int
    forward_flops: int  # all matrix products
    forward_seconds: float  # median
    step_seconds: float  # forward and backward, median
    peak_bytes: int  # highest sum of live tensors in forward and backward, without the weights


def default_kinds(num_heads: int = 8, num_latents: int = 64) -> dict[str, AttentionConfig]:
    """One configuration of every kind, and block-causal attention without its latents."""
    H, K = num_heads, num_latents
    return {
        "mhsa": MHSAConfig(num_heads=H),
        "mla": MLAConfig(num_heads=H, kv_rank=64),
        "mhla": MHLAConfig(num_heads=H, num_latents=K),
        "causal_mhla": CausalMHLAConfig(num_heads=H, num_latents=K),
        "chunk only": CausalMHLAConfig(num_heads=H, num_latents=0),
        "prefix_mhla": PrefixMHLAConfig(num_heads=H, num_latents=K),
    }


def measure_attention(
    kinds: Mapping[str, AttentionConfig],
    *,
    lengths: Sequence[int] = LENGTHS,
    dim: int = 384,
    dtype: torch.dtype = torch.bfloat16,
    rounds: int = 20,
) -> list[AttentionCost]:
    """Costs of every kind at every length; kinds take turns within a length.

    The caller decides about the allocator (`muonlab.allocator`) and the threads.
    """
    costs = []
    for length in lengths:
        calls = {name: _calls(config, length, dim, dtype) for name, config in kinds.items()}
        forward = interleave({name: call[0] for name, call in calls.items()}, rounds=rounds)
        step = interleave({name: call[1] for name, call in calls.items()}, rounds=rounds)
        for name, config in kinds.items():
            flops, num_bytes = quoted_cost(config, length, dim)
            per_token = config.projection_flops(dim) + config.mixing_flops(dim, length)
            costs.append(
                AttentionCost(
                    kind=name,
                    length=length,
                    quoted_flops=flops,
                    quoted_bytes=num_bytes,
                    forward_flops=length * per_token,
                    forward_seconds=forward[name].median,
                    step_seconds=step[name].median,
                    peak_bytes=peak_bytes(calls[name][1]),
                )
            )
    return costs


def quoted_cost(config: AttentionConfig, length: int, dim: int) -> tuple[int, int]:
    """The quoted operations and bytes: n²·d and n²·4, or with k latents 2·n·k·d and 2·n·k·4."""
    latents = getattr(config, "num_latents", None)
    pairs = length * length if latents is None else 2 * length * latents
    return pairs * dim, pairs * 4


def peak_bytes(call: Callable[[], object]) -> int:
    """Highest sum of bytes that torch's CPU allocator held at once during ``call``."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its start on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue] (not in torch's stub)
        highest = max(highest, held)
    return highest


def growth_exponent(
    costs: Sequence[AttentionCost], kind: str, measure: str, *, from_length: int = 2048
) -> float:
    """Slope of log measure over log length from ``from_length`` on (least squares)."""
    chosen = [cost for cost in costs if cost.kind == kind and cost.length >= from_length]
    if len(chosen) < 2:
        raise ValueError(
            f"from_length is {from_length}; it leaves fewer than two lengths of {kind}"
        )
    x = [math.log(cost.length) for cost in chosen]
    y = [math.log(getattr(cost, measure)) for cost in chosen]
    return statistics.linear_regression(x, y).slope


def crossover(costs: Sequence[AttentionCost], kind: str, against: str = "mhsa") -> int | None:
    """The shortest measured length from which ``kind`` is never slower forward and backward."""
    seconds = {(cost.kind, cost.length): cost.step_seconds for cost in costs}
    overtaken = None
    for length in sorted({cost.length for cost in costs}, reverse=True):
        if seconds[kind, length] > seconds[against, length]:
            break
        overtaken = length
    return overtaken


def attention_table(costs: Sequence[AttentionCost]) -> Table:
    """All costs, a row a length and kind."""
    kind = Column("kind", no_wrap=True)
    counted = ("quoted GFLOP", "quoted MB", "full GFLOP")
    measured = ("forward ms", "fwd+bwd ms", "peak MB")
    table = Table("length", kind, *counted, *measured, title="Attention over one sequence")
    for cost in costs:
        table.add_row(
            str(cost.length),
            cost.kind,
            f"{cost.quoted_flops / 1e9:.2f}",
            f"{cost.quoted_bytes / 1e6:.1f}",
            f"{cost.forward_flops / 1e9:.2f}",
            f"{cost.forward_seconds * 1e3:.1f}",
            f"{cost.step_seconds * 1e3:.1f}",
            f"{cost.peak_bytes / 1e6:.0f}",
        )
    return table


def exponent_table(costs: Sequence[AttentionCost], *, from_length: int = 2048) -> Table:
    """Growth exponents of every kind, and where it overtakes ``mhsa``."""
    kinds = list(dict.fromkeys(cost.kind for cost in costs))
    table = Table(Column("kind", no_wrap=True), *MEASURES.values(), "faster than mhsa from")
    table.title = f"Growth exponents from {from_length} tokens on"
    for kind in kinds:
        slopes = [
            f"{growth_exponent(costs, kind, measure, from_length=from_length):.2f}"
            for measure in MEASURES
        ]
        start = crossover(costs, kind) if "mhsa" in kinds and kind != "mhsa" else None
        table.add_row(kind, *slopes, "–" if start is None else str(start))
    return table


def plot_attention(costs: Sequence[AttentionCost], path: Path) -> None:
    """Log-log curves of every measure over the length, a panel each."""
    figure = Figure(figsize=(4.2 * len(MEASURES), 3.8), layout="constrained")
    panels = figure.subplots(1, len(MEASURES))
    for panel, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for kind in dict.fromkeys(cost.kind for cost in costs):
            points = [(c.length, getattr(c, measure)) for c in costs if c.kind == kind]
            panel.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=kind, base=2)
        panel.set_xlabel("length, tokens")
        panel.set_title(label, fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def _calls(
    config: AttentionConfig, length: int, dim: int, dtype: torch.dtype
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Forward without gradients, and forward with backward, of one layer."""
    module = config.build(dim, length, 1e-6, 0.0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.02)
    x = torch.randn(1, length, dim).to(dtype).requires_grad_()
    gradient = torch.randn(1, length, dim).to(dtype)

    @torch.no_grad()
    def forward() -> None:
        module(x)

    def step() -> None:
        module(x).backward(gradient)
        x.grad = None
        module.zero_grad()

    return forward, step
