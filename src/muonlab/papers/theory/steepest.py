"""P1-steepest: is Muon steepest descent under the spectral norm?

Duality: the nuclear norm is dual to the spectral norm, and the polar factor UVᵀ of G attains it,
⟨G, UVᵀ⟩ = ‖G‖_*. The minimiser of ⟨G, Δ⟩ + μ/2·‖Δ‖₂² is −(‖G‖_*/μ)·UVᵀ. Muon steps along −UVᵀ and
drops the length ‖G‖_*: its step is the linear minimisation oracle of a spectral ball, not the
steepest-descent step.
"""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from muonlab.lab.bounds import Row, fit_slope, judge_findings, rows_of
from muonlab.lab.experiment import Context, Finding, Measurement, Scale, Verdict
from muonlab.optim import Muon, orthogonalise
from muonlab.papers.theory.panels import COLOURS, label, panels

SHAPES = ((8, 8), (32, 8), (16, 48))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is tried: points a matrix, matrices a shape, and updates of the quadratic."""

    num_points: int = 10_000
    num_matrices: int = 5
    num_updates: int = 200


def measure(sizes: Sizes, context: Context) -> list[Row]:
    """Check the identities on random matrices, then the step lengths of Muon's own optimizer."""
    generator = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    for m, n in SHAPES:
        for index in range(sizes.num_matrices):
            gradient = torch.randn(m, n, generator=generator, dtype=torch.float64)
            identities = {
                **duality(gradient),
                **random_points(gradient, sizes.num_points, generator),
            }
            rows.append({"part": "duality", "shape": f"{m}×{n}", "matrix": index, **identities})
    context.advance(0.5)
    scales = [10.0**exponent for exponent in range(-3, 4)]
    lengths = [step_lengths(scale) for scale in scales]
    rows += [
        {"part": "length", "gradient_scale": scale, **found}
        for scale, found in zip(scales, lengths, strict=True)
    ]
    curves = {
        "steepest descent, step ‖G‖_*/μ·UVᵀ": quadratic(sizes.num_updates, keep_length=True),
        "Muon, constant step": quadratic(sizes.num_updates, keep_length=False),
    }
    for method, losses in curves.items():
        rows += [
            {"part": "quadratic", "method": method, "update": update, "loss": loss}
            for update, loss in enumerate(losses)
        ]
    context.advance(1.0)
    return rows


def say(rows: list[Row], findings: list[Finding]) -> str:
    """The outcome in a sentence."""
    muon_slope = next(m for m in findings if m.name == "Muon's step length over ‖G‖_*")
    excess = max(float(row["best_random"]) for row in rows if row["part"] == "duality")
    return (
        f"The duality holds to {_worst(rows, 'duality_error'):.0e}; the best "
        "random point of the unit spectral ball reaches "
        f"{excess:.0%} of ‖G‖_*. But the length of Muon's step grows as "
        f"‖G‖_*^{abs(round(muon_slope.value, 1)):g}, "
        "that of steepest descent as ‖G‖_*^1: Muon takes the direction of steepest descent under "
        "the spectral norm with a length of its own, a conditional-gradient step."
    )


def duality(gradient: Tensor) -> dict[str, float]:
    """Relative errors of ⟨G, UVᵀ⟩ = ‖G‖_* and of the regularised minimum −‖G‖_*²/(2μ), μ = 1.

    Also the alignment ⟨G, O⟩/‖G‖_* and the norm ‖O‖₂ of the five-step polynomial ``keller5``.
    """
    nuclear = torch.linalg.matrix_norm(gradient, "nuc")
    polar = orthogonalise(gradient, "svd")
    step = -nuclear * polar
    minimum = -0.5 * nuclear.square()
    approximate = orthogonalise(gradient, "keller5")
    return {
        "nuclear_norm": nuclear.item(),
        "duality_error": ((gradient * polar).sum() / nuclear - 1).abs().item(),
        "minimum_error": (_objective(gradient, step) / minimum - 1).abs().item(),
        "keller5_alignment": ((gradient * approximate).sum() / nuclear).item(),
        "keller5_norm": torch.linalg.matrix_norm(approximate, 2).item(),
    }


def random_points(
    gradient: Tensor, num_points: int, generator: torch.Generator
) -> dict[str, float]:
    """The best of random points, as a share of what duality allows; above 1 would refute it.

    ``best_point``: ⟨G, Δ⟩/‖G‖_* over ‖Δ‖₂ = 1, half of the points near UVᵀ; ``best_random``: of the
    others. ``best_objective``: the gain of the regularised objective over its minimum's, each point
    with its own best length.
    """
    nuclear = torch.linalg.matrix_norm(gradient, "nuc")
    noise = torch.randn(num_points, *gradient.shape, generator=generator, dtype=gradient.dtype)
    near = noise[: num_points // 2]
    spread = torch.logspace(-6, 1, len(near), dtype=gradient.dtype).view(-1, 1, 1)
    near.mul_(spread / gradient.shape[0]).add_(orthogonalise(gradient, "svd"))
    noise /= torch.linalg.matrix_norm(noise, 2).view(-1, 1, 1)
    inner = (noise * gradient).sum(dim=(1, 2)) / nuclear
    far = inner[len(near) :]
    return {
        "best_random": far.max().item(),
        "best_point": inner.max().item(),
        # over the length t, ⟨G, −tΔ⟩ + t²/2 is least at t = ⟨G, Δ⟩: −⟨G, Δ⟩²/2
        "best_objective": inner.clamp_min(0).square().max().item(),
    }


def step_lengths(scale: float) -> dict[str, float]:
    """‖ΔW‖₂ of one update for a gradient times ``scale``: Muon's, and steepest descent's."""
    generator = torch.Generator().manual_seed(1)
    gradient = scale * torch.randn(16, 12, generator=generator, dtype=torch.float64)
    weight = torch.zeros(16, 12, dtype=torch.float64, requires_grad=True)
    muon(weight, lr=1.0, gradient=gradient)
    nuclear = torch.linalg.matrix_norm(gradient, "nuc").item()
    direction = -orthogonalise(gradient, "svd")
    step = weight.detach()
    return {
        "nuclear_norm": nuclear,
        "muon_step": torch.linalg.matrix_norm(step, 2).item(),
        "steepest_step": torch.linalg.matrix_norm(nuclear * direction, 2).item(),
        "cosine": torch.cosine_similarity(step.flatten(), direction.flatten(), dim=0).item(),
    }


def muon(weight: Tensor, *, lr: float, gradient: Tensor) -> None:
    """One update of ``weight`` by `Muon`: exact polar factor, no momentum, no decay."""
    weight.grad = gradient
    Muon([weight], lr=lr, weight_decay=0.0, momentum=0.0, schedule="svd", scale="none").step()


def quadratic(num_updates: int, *, keep_length: bool) -> list[float]:
    """Losses of ½‖W‖²_F from a random start; μ = rank is the smoothness under the spectral norm."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(16, 12, generator=generator, dtype=torch.float64).requires_grad_()
    losses = []
    for _ in range(num_updates + 1):
        gradient = weight.detach().clone()
        losses.append(0.5 * gradient.square().sum().item())
        length = torch.linalg.matrix_norm(gradient, "nuc").item() / 12 if keep_length else 0.1
        muon(weight, lr=length, gradient=gradient)
    return losses


def find(rows: list[Row]) -> list[Finding]:
    """What the rows say of the claim."""
    lengths = [row for row in rows if row["part"] == "length"]
    nuclear = [float(row["nuclear_norm"]) for row in lengths]
    muon_slope = fit_slope(nuclear, [float(row["muon_step"]) for row in lengths])
    steepest_slope = fit_slope(nuclear, [float(row["steepest_step"]) for row in lengths])
    return [
        Finding(
            name="duality error",
            value=_worst(rows, "duality_error"),
            high=1e-10,
            about="largest |⟨G, UVᵀ⟩/‖G‖_* − 1| over random matrices, UVᵀ by `orthogonalise`, fp64",
        ),
        Finding(
            name="error of the regularised minimum",
            value=_worst(rows, "minimum_error"),
            high=1e-10,
            about="largest relative error of ⟨G, Δ⟩ + ½‖Δ‖₂² = −½‖G‖_*² at Δ = −‖G‖_*·UVᵀ",
        ),
        Finding(
            name="best feasible point over the polar factor",
            value=_worst(rows, "best_point"),
            high=1 + 1e-10,
            about="largest ⟨G, Δ⟩/‖G‖_* over random ‖Δ‖₂ = 1, far from and near UVᵀ",
        ),
        Finding(
            name="best regularised gain over the minimum's",
            value=_worst(rows, "best_objective"),
            high=1 + 1e-10,
            about="the same points in the regularised objective, each with its own best length",
        ),
        muon_slope.finding(
            "Muon's step length over ‖G‖_*",
            "exponent of ‖ΔW‖₂; steepest descent has 1, an oracle of a ball has 0",
            low=0.95,
            high=1.05,
        ),
        steepest_slope.finding(
            "steepest descent's step length over ‖G‖_*",
            "the same fit on the minimiser itself, to see that it can tell 1 from 0",
            low=0.95,
            high=1.05,
            role="requirement",
        ),
        Finding(
            name="cosine of Muon's step and steepest descent's",
            value=min(float(row["cosine"]) for row in lengths),
            low=1 - 1e-10,
            role="direction",
            about="smallest over gradients scaled by 1e-3 to 1e3",
        ),
        Finding(
            name="alignment of keller5",
            value=min(float(r["keller5_alignment"]) for r in rows if r["part"] == "duality"),
            role="note",
            about="smallest ⟨G, O⟩/‖G‖_* of the five-step polynomial in place of the polar factor",
        ),
        Finding(
            name="norm of keller5",
            value=_worst(rows, "keller5_norm"),
            role="note",
            about="largest ‖O‖₂ of the five-step polynomial; the polar factor has 1",
        ),
    ]


def draw(rows: list[Row], sizes: Sizes):
    """Duality, step length, and what dropping the length means on a quadratic."""
    count = sizes.num_matrices * len(SHAPES)
    figure, (left, middle, right) = panels(
        3,
        f"Left: {count} random matrices ({', '.join(f'{m}×{n}' for m, n in SHAPES)}), "
        f"{sizes.num_points:,} points each. Middle: one 16×12 gradient, 7 scales. "
        "Right: ½‖W‖²_F, 16×12, one start. fp64, exact polar factor, no momentum.",
    )
    pairs = [row for row in rows if row["part"] == "duality"]
    nuclear = [float(row["nuclear_norm"]) for row in pairs]
    left.plot([0, max(nuclear)], [0, max(nuclear)], color="#999999", linewidth=0.8, label="‖G‖_*")
    kinds = (
        ("polar factor UVᵀ", lambda row: 1.0, "o"),
        (
            "keller5 over its own norm",
            lambda row: row["keller5_alignment"] / row["keller5_norm"],
            "s",
        ),
        ("best random point", lambda row: row["best_random"], "^"),
    )
    for (name, share, marker), colour in zip(kinds, COLOURS, strict=False):
        values = [share(row) * float(row["nuclear_norm"]) for row in pairs]
        left.plot(nuclear, values, marker, color=colour, markersize=5, label=name)
    label(left, "Duality", "nuclear norm ‖G‖_*", "⟨G, Δ⟩ at ‖Δ‖₂ = 1")
    lengths = [row for row in rows if row["part"] == "length"]
    for key, name, colour in (
        ("steepest_step", "steepest descent", COLOURS[0]),
        ("muon_step", "Muon", COLOURS[1]),
    ):
        middle.loglog(
            [row["nuclear_norm"] for row in lengths],
            [row[key] for row in lengths],
            "o-",
            color=colour,
            label=name,
        )
    label(middle, "Length of the step", "nuclear norm ‖G‖_*", "spectral norm of the step ‖ΔW‖₂")
    methods = dict.fromkeys(str(row["method"]) for row in rows if row["part"] == "quadratic")
    for method, colour in zip(methods, COLOURS, strict=False):
        curve = [row for row in rows if row.get("method") == method]
        right.semilogy(
            [row["update"] for row in curve],
            [max(float(row["loss"]), 1e-32) for row in curve],
            color=colour,
            label=method,
        )
    label(right, "What dropping the length means", "update", "loss ½‖W‖²_F")
    return figure


def _worst(rows: list[Row], key: str) -> float:
    return max(float(row[key]) for row in rows if row["part"] == "duality")


def _objective(gradient: Tensor, step: Tensor) -> Tensor:
    return (gradient * step).sum() + 0.5 * torch.linalg.matrix_norm(step, 2).square()


THOROUGH = Sizes(num_points=100_000, num_matrices=20, num_updates=1000)


def check(scale: Scale) -> Measurement:
    """The check at its usual sizes (``nano``), or with more seeds and sizes."""
    sizes = Sizes() if scale == "nano" else THOROUGH

    def judge(frame: pd.DataFrame) -> list[Verdict]:
        rows = rows_of(frame)
        findings = find(rows)
        return [judge_findings("P1-steepest", findings, say(rows, findings))]

    return Measurement(
        name="theory-steepest",
        scale=scale,
        question="Is Muon steepest descent under the spectral norm?",
        claims=("P1-steepest",),
        measure=lambda context: pd.DataFrame(measure(sizes, context)),
        judge=judge,
        draw=lambda frame: draw(rows_of(frame), sizes),
        notes=(
            "The claim: Muon is equivalent to steepest descent under the spectral norm.",
            "The theorem: ⟨G, UVᵀ⟩ = ‖G‖_* = max over ‖Δ‖₂ ≤ 1 of ⟨G, Δ⟩, and −(‖G‖_*/μ)·UVᵀ "
            "minimises ⟨G, Δ⟩ + μ/2·‖Δ‖₂².",
            "Measured on: Random matrices of three shapes; one update for gradients over six "
            "decades of scale.",
            "Sources: 2409.20325; 2502.07529.",
        ),
    )
