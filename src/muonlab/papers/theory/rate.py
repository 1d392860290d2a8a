"""P1-rate: does Muon converge at O(1/√T)?

For f with ‖∇f(W) − ∇f(W')‖_* ≤ L·‖W − W'‖₂ and exact polar factors without momentum,

    f(W − ηO) ≤ f(W) − η‖G‖_* + η²L/2,   so   mean ‖G‖_* ≤ Δ/(ηT) + ηL/2 = √(2ΔL/T)

at η = √(2Δ/(LT)), Δ = f(W₀) − min f. With a polynomial in place of the polar factor, whose
alignment ⟨G, O⟩/‖G‖_* is at least a and whose ‖O‖₂ is at most c, the bound is c/a times that.
Noise breaks it: the polar factor is not linear in G, so skewed noise leaves a bias that only
growing batches or vanishing averages remove.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from muonlab.config import override
from muonlab.lab.bounds import Row, Slope, fit_slope, judge_findings, rows_of
from muonlab.lab.experiment import Context, Finding, Measurement, Scale, Verdict
from muonlab.optim import Muon
from muonlab.papers.theory.panels import COLOURS, MARKERS, label, panels
from muonlab.papers.theory.training import hidden_matrices, moments, singular_values
from muonlab.recipes import nano

ROWS, COLUMNS = 12, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Horizons T of the problems with their random starts, and those of the language model."""

    horizons: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    num_starts: int = 4
    training_horizons: tuple[int, ...] = (32, 64, 128, 256, 512)
    training_seeds: tuple[int, ...] = (0, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One way to run Muon on one problem, for a horizon T.

    The batch has ``batch_share``·T samples, at least one (0: the gradient is exact). Momentum is
    1 − T^−½ where ``averaging``; the step is then ∝ T^−¾, otherwise ∝ T^−½.
    """

    name: str
    problem: str = "quadratic"
    schedule: str = "svd"
    noisy: bool = False
    batch_share: float = 0.0
    averaging: bool = False


SETTINGS = (
    Setting(name="exact gradient, quadratic"),
    Setting(name="exact gradient, robust regression", problem="robust regression"),
    Setting(name="exact gradient, quadratic, keller5", schedule="keller5"),
    Setting(name="noise, batch ∝ T", noisy=True, batch_share=1.0),
    Setting(name="noise, batch 1, 1 − β = T^−½", noisy=True, averaging=True),
    Setting(name="noise, batch 1, β = 0", noisy=True),
)


def measure(sizes: Sizes, context: Context) -> list[Row]:
    """Every setting at every horizon, then a language model at its own horizons."""
    work = len(SETTINGS) * sum(sizes.horizons)
    training_work = 20 * sum(sizes.training_horizons) * len(sizes.training_seeds)
    done = 0.0
    rows: list[Row] = []
    for setting in SETTINGS:
        for horizon in sizes.horizons:
            rows += descend(setting, horizon, sizes.num_starts)
            done += horizon
            context.advance(done / (work + training_work))
    for row in training(sizes, context):
        rows.append(row)
        if row["step"] == row["horizon"]:
            done += 20 * int(row["horizon"])
            context.advance(done / (work + training_work))
    return rows


def say(slopes: dict[str, Slope], trained: Slope) -> str:
    """The outcome in a sentence."""
    fixed, averaged = slopes["noise, batch 1, β = 0"], slopes["noise, batch 1, 1 − β = T^−½"]
    return (
        "Mean ‖G‖_* falls as T^"
        f"{slopes['exact gradient, quadratic'].value:.2f} without noise and as T^"
        f"{slopes['noise, batch ∝ T'].value:.2f} with a batch that grows with T, as the theorem "
        f"says. With skewed noise and a fixed batch it falls as T^{averaged.value:.2f} with "
        f"vanishing averages (theory: −¼) and as T^{round(fixed.value, 2) + 0.0:.2f} without "
        "momentum: there is no O(1/√T). On the nano language model, far from a stationary point, "
        f"the mean over a run goes as T^{trained.value:.2f}."
    )


def descend(setting: Setting, horizon: int, num_starts: int) -> list[Row]:
    """One row a start: mean ‖G‖_* over the updates, the bound, alignment and norm of the steps."""
    generator = torch.Generator().manual_seed(0)  # every horizon has the same starts
    starts = torch.randn(num_starts, ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    weight = starts.clone().requires_grad_()
    # ½‖W‖²: L is the rank. Σρ(W_ij): |ρ''| ≤ 2, so twice that.
    smoothness = COLUMNS * (1.0 if setting.problem == "quadratic" else 2.0)
    gap = value(setting.problem, starts).mean().item()  # Δ: the least value of both is 0
    lr = math.sqrt(2 * gap / (smoothness * horizon))
    momentum = 0.0
    if setting.averaging:
        momentum = 1 - horizon**-0.5
        lr *= horizon**-0.25
    optimizer = Muon(
        [weight],
        lr=lr,
        weight_decay=0.0,
        momentum=momentum,
        nesterov=False,
        schedule=setting.schedule,
        scale="none",
    )
    batch = max(1, round(setting.batch_share * horizon))
    total = torch.zeros(num_starts, dtype=torch.float64)
    direction = torch.eye(ROWS, COLUMNS, dtype=torch.float64)
    worst_alignment, worst_norm = math.inf, 0.0
    for _ in range(horizon):
        exact = gradient(setting.problem, weight.detach())
        sigma = torch.linalg.svdvals(exact)
        total += sigma.sum(-1)
        weight.grad = exact
        if setting.noisy:
            weight.grad = exact + skewed_noise(num_starts, batch, generator) * direction
        before = weight.detach().clone()
        optimizer.step()
        if setting.schedule != "svd":
            step = (before - weight.detach()) / lr
            alignment = (exact * step).sum(dim=(1, 2)) / sigma.sum(-1)
            worst_alignment = min(worst_alignment, alignment.min().item())
            worst_norm = max(worst_norm, torch.linalg.matrix_norm(step, 2).max().item())
    c, a = (1.0, 1.0) if setting.schedule == "svd" else (worst_norm, worst_alignment)
    # Δ/(aηT) + ηLc²/(2a), each start with its own Δ
    gaps = value(setting.problem, starts)
    bounds = gaps / (a * lr * horizon) + lr * smoothness * c * c / (2 * a)
    return [
        {
            "part": "problem",
            "setting": setting.name,
            "horizon": horizon,
            "start": index,
            "mean_nuclear_norm": mean,
            "bound": bound,
            "alignment": a,
            "norm": c,
        }
        for index, (mean, bound) in enumerate(
            zip((total / horizon).tolist(), bounds.tolist(), strict=True)
        )
    ]


def value(problem: str, weight: Tensor) -> Tensor:
    """f of each of (B, m, n): ½‖W‖²_F, or Σρ(W_ij) with ρ(u) = u²/(1 + u²)."""
    square = weight.square()
    terms = square / 2 if problem == "quadratic" else square / (1 + square)
    return terms.sum(dim=(1, 2))


def gradient(problem: str, weight: Tensor) -> Tensor:
    """∇f of each of (B, m, n)."""
    if problem == "quadratic":
        return weight.clone()
    return 2 * weight / (1 + weight.square()).square()


def skewed_noise(num_starts: int, batch: int, generator: torch.Generator) -> Tensor:
    """(B, 1, 1): means of ``batch`` draws of −1 (probability ¾) or +3 (¼); variance 3 a draw.

    They multiply a fixed matrix of full rank: where the gradient is small, the mean of the polar
    factors is −½ of that matrix though the mean of the noise is 0.
    """
    counts = torch.full((num_starts, 1, 1), float(batch), dtype=torch.float64)
    highs = torch.binomial(counts, torch.full_like(counts, 0.25), generator=generator)
    return 4 * highs / batch - 1


def training(sizes: Sizes, context: Context) -> Iterator[Row]:
    """The nano recipe at each horizon, η ∝ T^−½ and constant: Σ‖G‖_* over its hidden matrices.

    G is the gradient of the step's own batch; eight moments of a run are measured.
    """
    base = override(nano(), ["learning_rate.kind=constant", "learning_rate.warmup=0"])
    if not sizes.training_horizons:
        return
    data = base.data.prepare(context.cache_dir, progress=False)
    longest = max(sizes.training_horizons)
    for horizon in sizes.training_horizons:
        for seed in sizes.training_seeds:
            optimizer = dataclasses.replace(
                base.optimizer, lr=base.optimizer.lr * (longest / horizon) ** 0.5 / 2
            )
            config = dataclasses.replace(
                base,
                seed=seed,
                optimizer=optimizer,
                train=dataclasses.replace(base.train, steps=horizon),
            )
            for moment in moments(config, data):
                if moment.step % max(1, horizon // 16) == 0:
                    nuclear = sum(
                        singular_values(slope).sum().item()
                        for _, slope in hidden_matrices(moment.model).values()
                        if slope is not None
                    )
                    yield {
                        "part": "training",
                        "horizon": horizon,
                        "seed": seed,
                        "step": moment.step,
                        "loss": moment.loss,
                        "nuclear_norm": nuclear,
                    }


def slope(rows: list[Row], setting: str) -> Slope:
    """The power of T by which mean ‖G‖_* falls in a setting, all starts together."""
    chosen = [row for row in rows if row.get("setting") == setting]
    return fit_slope(
        [float(row["horizon"]) for row in chosen],
        [float(row["mean_nuclear_norm"]) for row in chosen],
    )


def training_slope(rows: list[Row]) -> Slope:
    """The same of the language model: a point is the mean over one run."""
    means = training_means(rows)
    return fit_slope([float(horizon) for horizon, _ in means], list(means.values()))


def training_means(rows: list[Row]) -> dict[tuple[int, int], float]:
    """Mean Σ‖G‖_* of every run of the language model, by (horizon, seed)."""
    runs: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        if row["part"] == "training":
            key = int(row["horizon"]), int(row["seed"])
            runs.setdefault(key, []).append(float(row["nuclear_norm"]))
    return {key: sum(values) / len(values) for key, values in runs.items()}


def find(rows: list[Row], slopes: dict[str, Slope], trained: Slope) -> list[Finding]:
    """What the rows say of the claim."""

    def ratio(settings: list[str]) -> float:
        chosen = [row for row in rows if row.get("setting") in settings]
        return max(float(row["mean_nuclear_norm"]) / float(row["bound"]) for row in chosen)

    keller = [row for row in rows if row.get("setting") == SETTINGS[2].name]
    return [
        Finding(
            name="mean ‖G‖_* over the bound, exact gradient",
            value=ratio([SETTINGS[0].name, SETTINGS[1].name]),
            high=1.0,
            about="largest over problems, horizons and starts; the bound is a theorem: above 1 "
            "means a mistake here or there",
        ),
        Finding(
            name="mean ‖G‖_* over the bound, keller5",
            value=ratio([SETTINGS[2].name]),
            high=1.0,
            about="the same with the measured smallest alignment and largest norm of the steps",
        ),
        slopes[SETTINGS[0].name].finding(
            "slope, exact gradient, quadratic",
            "theory: −½",
            low=-0.57,
            high=-0.43,
            role="direction",
        ),
        slopes[SETTINGS[1].name].finding(
            "slope, exact gradient, robust regression",
            "theory: −½",
            low=-0.57,
            high=-0.43,
            role="direction",
        ),
        slopes[SETTINGS[2].name].finding(
            "slope, exact gradient, keller5", "theory: −½", low=-0.57, high=-0.43, role="direction"
        ),
        slopes[SETTINGS[3].name].finding(
            "slope, noise, batch ∝ T", "theory: −½", low=-0.57, high=-0.43, role="direction"
        ),
        slopes[SETTINGS[4].name].finding(
            "slope, noise, batch 1, vanishing averages",
            "the claim: −½ under standard assumptions, that is with noise; theory: −¼",
            low=-0.57,
            high=-0.43,
        ),
        slopes[SETTINGS[5].name].finding(
            "slope, noise, batch 1, no momentum",
            "the claim: −½; theory: no convergence, 0",
            low=-0.57,
            high=-0.43,
        ),
        Finding(
            name="alignment of keller5",
            value=min(float(row["alignment"]) for row in keller),
            role="note",
            about="smallest ⟨G, O⟩/‖G‖_* over all its updates",
        ),
        Finding(
            name="norm of keller5",
            value=max(float(row["norm"]) for row in keller),
            role="note",
            about="largest ‖O‖₂ over all its updates",
        ),
        trained.finding(
            "slope, nano language model",
            "Σ‖G‖_* of the hidden matrices, mean over a run of T updates, batch fixed, η ∝ T^−½",
            role="note",
        ),
    ]


def draw(rows: list[Row], sizes: Sizes) -> Figure:
    """Mean nuclear norms over T, and those of the language model over its steps."""
    figure, (left, right) = panels(
        2,
        f"Left: {ROWS}×{COLUMNS}, {sizes.num_starts} starts a point (mean), fp64. "
        f"Right: recipe nano, fp32, keller5, constant η ∝ T^−½, {len(sizes.training_seeds)} seeds "
        "(lines), G of the step's own batch of 512 tokens.",
    )
    for setting, colour, marker in zip(SETTINGS, COLOURS, MARKERS, strict=False):
        chosen = [row for row in rows if row.get("setting") == setting.name]
        means = [
            sum(float(row["mean_nuclear_norm"]) for row in chosen if row["horizon"] == horizon)
            / sizes.num_starts
            for horizon in sizes.horizons
        ]
        fitted = slope(rows, setting.name).value
        left.loglog(
            sizes.horizons,
            means,
            marker=marker,
            color=colour,
            markersize=4,
            label=f"{setting.name}: {fitted:.2f}",
        )
    label(
        left, "Mean ‖G‖_* over the horizon, fitted slopes", "updates T", "mean nuclear norm ‖G‖_*"
    )
    for horizon, colour in zip(sizes.training_horizons, COLOURS, strict=False):
        for seed in sizes.training_seeds:
            curve = [
                row
                for row in rows
                if row["part"] == "training" and row["horizon"] == horizon and row["seed"] == seed
            ]
            right.loglog(
                [int(row["step"]) + 1 for row in curve],
                [row["nuclear_norm"] for row in curve],
                color=colour,
                linewidth=1,
                label=f"T = {horizon}" if seed == sizes.training_seeds[0] else None,
            )
    label(right, "Language model", "update + 1", "Σ‖G‖_* over the hidden matrices")
    return figure


THOROUGH = Sizes(
    num_starts=16,
    horizons=(128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536),
    training_horizons=(32, 64, 128, 256, 512, 1024, 2048),
    training_seeds=(0, 1, 2, 3),
)


def check(scale: Scale) -> Measurement:
    """The check at its usual sizes (``nano``), or with more seeds and sizes."""
    sizes = Sizes() if scale == "nano" else THOROUGH

    def judge(frame: pd.DataFrame) -> list[Verdict]:
        rows = rows_of(frame)
        slopes = {setting.name: slope(rows, setting.name) for setting in SETTINGS}
        trained = training_slope(rows)
        findings = find(rows, slopes, trained)
        return [judge_findings("P1-rate", findings, say(slopes, trained))]

    return Measurement(
        name="theory-rate",
        scale=scale,
        question="How fast does Muon converge, with and without noise?",
        claims=("P1-rate",),
        measure=lambda context: pd.DataFrame(measure(sizes, context)),
        judge=judge,
        draw=lambda frame: draw(rows_of(frame), sizes),
        notes=(
            "The claim: Muon converges at O(1/√T) under standard assumptions.",
            "The theorem: Exact polar factors without momentum: mean ‖G‖_* ≤ √(2ΔL/T) at η = "
            "√(2Δ/(LT)), L the smoothness ‖∇f(W) − ∇f(W')‖_* ≤ L·‖W − W'‖₂. With noise of fixed"
            " variance, Õ(T^−¼).",
            "Measured on: ½‖W‖²_F and robust regression Σ W²/(1 + W²), 12×8; skewed noise −1 "
            "(¾) or +3 (¼) times a fixed matrix; the nano language model.",
            "Sources: 2505.23737; 2503.12645; 2603.28254 (Õ(T^−¼) with noise).",
        ),
    )
