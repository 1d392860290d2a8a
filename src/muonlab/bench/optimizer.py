"""What one Muon step costs: where its time goes, against torch.optim.Muon and the FLOP floor.

The parameter sets are those of the models in question, with random values and gradients; the time
of a step does not depend on them (beyond low-rank matrices, which these do not have).
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from muonlab.bench.interleave import Timing, interleave, paired_ratio
from muonlab.errors import UserError
from muonlab.machine import gemm_flops
from muonlab.optim import Muon, bf16_is_native

SETS: dict[str, tuple[list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    # name: (shapes under Muon, shapes under AdamW)
    "p2": (  # its hybrid model, QKV split
        [(384, 384)] * 24 + [(1536, 384)] * 48 + [(384, 1536)] * 48,
        [(49152, 384)],
    ),
    "moe": (  # fine-grained: 12 layers of 64 experts, attention of 256
        [(256, 256)] * 48 + [(64, 256, 128)] * 12 + [(64, 128, 256)] * 12,
        [(4096, 256)],
    ),
    "dense": (  # 125M: 12 layers of width 768
        [(768, 768)] * 48 + [(3072, 768)] * 12 + [(768, 3072)] * 12,
        [(50304, 768)],
    ),
}
_SHARES = {
    "matrix products": ("aten::bmm", "aten::baddbmm"),
    "copies and casts": ("aten::copy_",),
    "momentum": ("aten::lerp_", "aten::lerp"),
    "norms and checks": ("aten::linalg_vector_norm", "aten::dot", "aten::div_"),
    "applying the update": ("aten::add_", "aten::mul_", "aten::addcmul_"),
    "AdamW": ("aten::_fused_adamw_",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerReport:
    """One set's costs; seconds are medians of interleaved rounds.

    ``slow_seconds`` holds those that were too slow for rounds: the seconds of one step, measured
    once, or for torch's on a processor without bf16 the sum over one matrix of each shape.
    """

    parameter_set: str
    timings: dict[str, Timing]
    slow_seconds: dict[str, float]
    shares: dict[str, float]
    step_flops: int
    gemm_flops_per_second: float
    state_bytes: int
    workspace_bytes: int

    def text(self) -> str:
        """A plain-text table."""
        ours = self.timings["muonlab"]
        rate = self.step_flops / ours.median / 1e9
        floor = self.step_flops / self.gemm_flops_per_second
        lines = [f"set {self.parameter_set}: seconds a step (median), times faster than it"]
        for name, timing in self.timings.items():
            lines.append(
                f"  {name:<24} {timing.median:8.3f} s  {paired_ratio(timing, ours):6.2f}×"
                f"  (spread {timing.spread:.2f})"
            )
        for name, seconds in self.slow_seconds.items():
            lines.append(
                f"  {name:<24} {seconds:8.3f} s  {seconds / ours.median:6.2f}×  (not in the rounds)"
            )
        lines += [
            f"  matrix products: {self.step_flops / 1e9:.0f} GFLOP, {rate:.0f} GFLOP/s over the "
            f"whole step; measured rate {self.gemm_flops_per_second / 1e9:.0f} GFLOP/s, "
            f"floor {floor:.3f} s",
            f"  state {self.state_bytes / 2**20:.0f} MiB, "
            f"workspace {self.workspace_bytes / 2**20:.0f} MiB",
        ]
        lines.append("  shares of a step in one thread:")
        lines += [f"  {share:6.1%} {name}" for name, share in self.shares.items()]
        return "\n".join(lines)


def make_parameters(shapes: list[tuple[int, ...]], seed: int = 0) -> list[nn.Parameter]:
    """Random parameters with random gradients, on the default device."""
    device = torch.get_default_device()
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for shape in shapes:
        values, gradient = torch.randn(2, *shape, generator=generator, device="cpu").to(device)
        parameter = nn.Parameter(values)
        parameter.grad = gradient
        parameters.append(parameter)
    return parameters


def separate_matrices(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """The same values and gradients as 2-D parameters, for optimizers that know no stacks."""
    separate = []
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        values = parameter.detach().reshape(-1, *parameter.shape[-2:])
        for value, part in zip(values, gradient.reshape(values.shape), strict=True):
            matrix = nn.Parameter(value.clone())
            matrix.grad = part.clone()
            separate.append(matrix)
    return separate


def our_optimizer(name: str, **options: object) -> Muon:
    """muonlab's Muon over a whole set, AdamW part included."""
    matrices, rest = (make_parameters(shapes) for shapes in SETS[name])
    groups = [{"params": matrices}, {"params": rest, "algorithm": "adamw"}]
    return Muon(groups, lr=1e-3, **options)  # type: ignore[arg-type]


def torch_optimizer(name: str) -> Callable[[], None]:
    """A step of torch.optim.Muon for the matrices and torch.optim.AdamW (fused) for the rest."""
    matrices, rest = (make_parameters(shapes) for shapes in SETS[name])
    muon = torch.optim.Muon(separate_matrices(matrices), lr=1e-3)
    adamw = torch.optim.AdamW(rest, lr=1e-3, fused=True)

    def step() -> None:
        muon.step()
        adamw.step()

    return step


def seconds_by_shape(name: str) -> float:
    """A step of torch.optim.Muon, which goes matrix by matrix, from one matrix of each shape."""
    matrices = separate_matrices(make_parameters(SETS[name][0]))
    total = 0.0
    for shape, count in Counter(tuple(matrix.shape) for matrix in matrices).items():
        step = torch.optim.Muon(make_parameters([shape]), lr=1e-3).step
        start = time.perf_counter()
        step()
        total += count * (time.perf_counter() - start)
    return total


def bench_optimizer(
    name: str,
    *,
    rounds: int = 5,
    peers: dict[str, Callable[[], object]] | None = None,
    slow_after: float = 20.0,
    report: Callable[[str], None] = lambda line: None,
) -> OptimizerReport:
    """Time our step, torch's and ``peers``' (each a call that makes one step) in turns.

    Each makes one step first; one that takes more than ``slow_after`` seconds takes no part in the
    rounds. On a processor without bf16, torch.optim.Muon is never run whole: it takes minutes a
    step there. ``report`` gets lines of progress.
    """
    if name not in SETS:
        raise UserError(f"parameter set {name!r} is unknown: legal are {', '.join(SETS)}")
    muon = our_optimizer(name)
    candidates: dict[str, Callable[[], object]] = {"muonlab": muon.step}
    slow_seconds = {}
    if bf16_is_native(torch.device("cpu")):
        candidates["torch.optim.Muon"] = torch_optimizer(name)
    else:
        slow_seconds["torch.optim.Muon"] = seconds_by_shape(name)
        report(f"{name}: no bf16 in this processor: torch.optim.Muon measured shape by shape")
    candidates |= peers or {}
    for candidate, call in list(candidates.items()):
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        report(f"{name}: first step of {candidate} took {seconds:.2f} s")
        if seconds > slow_after and candidate != "muonlab":
            slow_seconds[candidate] = seconds
            del candidates[candidate]
    report(f"{name}: {rounds} rounds of {', '.join(candidates)}")
    timings = interleave(candidates, rounds=rounds, warmup=1)
    workspace_bytes = muon.workspace_bytes()  # of as many threads as were timed
    return OptimizerReport(
        parameter_set=name,
        timings=timings,
        slow_seconds=slow_seconds,
        shares=step_shares(muon),
        step_flops=muon.step_flops(),
        gemm_flops_per_second=max(
            gemm_flops(dtype, torch.device("cpu")) for dtype in (torch.float32, torch.bfloat16)
        ),
        state_bytes=muon.state_bytes(),
        workspace_bytes=workspace_bytes,
    )


def step_shares(optimizer: Muon) -> dict[str, float]:
    """The share of one profiled step, in a single thread, that each kind of work takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the profiler does not see worker threads
    try:
        optimizer.step()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            optimizer.step()
    finally:
        torch.set_num_threads(threads)
    microseconds = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(microseconds.values())
    shares = {
        share: sum(microseconds.get(key, 0.0) for key in keys) / total
        for share, keys in _SHARES.items()
    }
    shares["rest"] = 1 - sum(shares.values())
    return shares
