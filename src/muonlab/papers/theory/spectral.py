"""P1-spectral: does Muon's spectral regularisation prevent gradient explosion?

An update W ← (1 − ηλ)W − ηsO with ‖O‖₂ ≤ c gives, for ηλ ≤ 1,

    ‖W‖₂ ≤ (1 − ηλ)‖W‖₂ + ηcs,   so   ‖W_t‖₂ ≤ max(‖W₀‖₂, cs/λ)   for every t,

with c = 1 for the polar factor. It is the weight decay that bounds: Muon with decay is Frank–Wolfe
on the ball ‖W‖₂ ≤ s/λ, and without decay nothing is bounded. A bound on weights bounds attention
logits and gradients only through its powers; how far that is from what training does is measured.
"""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from muonlab.lab.bounds import Row, fit_slope, judge_findings, rows_of
from muonlab.lab.experiment import Context, Finding, Measurement, Scale, Verdict
from muonlab.optim import Muon
from muonlab.optim.schedules import scalar_map
from muonlab.papers.theory.panels import COLOURS, MARKERS, label, panels
from muonlab.papers.theory.spectral_training import ARMS, LOGIT_LIMIT, train_arm

GRADIENTS = ("constant", "random", "outward")
DECAYS = (0.1, 1.0)
ROWS, COLUMNS = 12, 8
EXPLODES = 10.0  # times its first value: a gradient that grows more has exploded
PREVENTION = (  # the findings of the claim's second half
    "explosion without the bound",
    "logit that the bound allows, Muon λ = 0.1",
    "gradient growth without decay over growth with it",
    "gradient growth, Muon λ = 0.1",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Updates of the problems, and of the language model with its seeds."""

    num_updates: int = 1500
    training_updates: int = 400
    training_seeds: tuple[int, ...] = (0, 1)
    probe_every: int = 20


def measure(sizes: Sizes, context: Context) -> list[Row]:
    """The bound under three kinds of gradients, Frank–Wolfe's gap, then training."""
    rows: list[Row] = []
    for schedule in ("svd", "keller5"):
        for decay in DECAYS:
            rows += bounded_walk(schedule, decay, sizes.num_updates)
    rows += frank_wolfe(sizes.num_updates)
    context.advance(0.1)
    done, total = 0, len(ARMS) * len(sizes.training_seeds)
    for arm in ARMS:
        for seed in sizes.training_seeds:
            rows += train_arm(
                arm, seed, sizes.training_updates, sizes.probe_every, context.cache_dir
            )
            done += 1
            context.advance(0.1 + 0.9 * done / total)
    return rows


def judge_both(findings: list[Finding]) -> list[Verdict]:
    """The claim has two halves: that norms are bounded, and that this prevents explosion."""
    prevention = [found for found in findings if found.name in PREVENTION]
    bound = [found for found in findings if found.name not in PREVENTION]
    return [
        judge_findings("P1-spectral", bound, say_bound(findings)),
        judge_findings("P1-spectral", prevention, say_prevention(findings)),
    ]


def say_bound(findings: list[Finding]) -> str:
    """Of the bound on weights, in a sentence."""
    found = {item.name: item.value for item in findings}
    return (
        "Of the bound: max(‖W₀‖₂, cs/λ) holds on problems and in training, where the largest norm "
        f"of Muon is {found['norm over the bound in training, Muon']:.0%} of it, and Frank–Wolfe's "
        "gap vanishes. It is due to weight decay: without it norms end "
        f"{1 / found['norm with decay over norm without, Muon']:.2f} times as large."
    )


def say_prevention(findings: list[Finding]) -> str:
    """Of what the bound prevents, in a sentence."""
    found = {item.name: item.value for item in findings}
    bound = found["logit that the bound allows, Muon λ = 0.1"]
    seen = found["largest logit seen, Muon λ = 0.1"]
    return (
        "Of the prevention: no arm exploded, with the bound or without, so these runs could not "
        "show it. "
        if found["explosion without the bound"] < 1
        else "Of the prevention: arms without the bound exploded. "
    ) + (
        f"The bound allows attention logits of {bound:,.0f} where {seen:.1f} was the largest, and "
        f"gradients grew {found['gradient growth, Muon λ = 0']:.1f} times without decay, "
        f"{found['gradient growth, Muon λ = 0.1']:.1f} times with it."
    )


def largest_output(schedule: str) -> float:
    """c: the largest singular value that a schedule can return, over all inputs in (0, 1]."""
    grid = torch.logspace(-8, 0, 800_001, dtype=torch.float64)
    return scalar_map(schedule, grid).max().item()


def bounded_walk(schedule: str, decay: float, num_updates: int) -> list[Row]:
    """‖W_t‖₂ over its bound under constant, random and outward gradients (G = −W); one row each."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(len(GRADIENTS), ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    weight *= 0.1
    constant = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    weight.requires_grad_()
    optimizer = Muon(
        [weight],
        lr=0.01 / decay,  # ηλ = 0.01: the bound is reached within some hundred updates
        weight_decay=decay,
        momentum=0.95,
        schedule=schedule,
        scale="none",
    )
    initial = torch.linalg.matrix_norm(weight.detach(), 2)
    bound = initial.clamp_min(largest_output(schedule) / decay)
    worst = torch.zeros(len(GRADIENTS), dtype=torch.float64)
    for _ in range(num_updates):
        noise = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
        weight.grad = torch.stack([constant, noise, -weight.detach()[2]])
        optimizer.step()
        worst = torch.maximum(worst, torch.linalg.matrix_norm(weight.detach(), 2) / bound)
    final = torch.linalg.matrix_norm(weight.detach(), 2) / bound
    return [
        {
            "part": "bound",
            "schedule": schedule,
            "weight_decay": decay,
            "gradients": kind,
            "largest_ratio": worst[index].item(),
            "final_ratio": final[index].item(),
        }
        for index, kind in enumerate(GRADIENTS)
    ]


def frank_wolfe(num_updates: int) -> list[Row]:
    """The gap ⟨∇f, W⟩ + ‖∇f‖_*/λ of ½‖W − A‖²_F over ‖W‖₂ ≤ 1/λ, with ηλ = 2/(t + 2).

    A has singular values within and without the ball; the solution has them clipped at 1/λ.
    ``bound``: the smallest gap so far is at most 27/4·C/(t + 2) with curvature C ≤ rank·(2/λ)²
    (Jaggi 2013, Theorem 2).
    """
    decay = 0.5
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(noise, full_matrices=False)
    sigma = torch.linspace(0.2, 4.0, COLUMNS, dtype=torch.float64)
    target, solution = (u * sigma) @ vh, (u * sigma.clamp_max(1 / decay)) @ vh
    weight = torch.zeros(ROWS, COLUMNS, dtype=torch.float64, requires_grad=True)
    optimizer = Muon(
        [weight], lr=1.0, weight_decay=decay, momentum=0.0, schedule="svd", scale="none"
    )
    rows: list[Row] = []
    smallest = math.inf
    curvature = COLUMNS * (2 / decay) ** 2
    kept = {round(10 ** (power / 10)) for power in range(100)}
    for update in range(num_updates + 1):
        gradient = weight.detach() - target
        nuclear = torch.linalg.matrix_norm(gradient, "nuc")
        gap = ((gradient * weight.detach()).sum() + nuclear / decay).item()
        smallest = min(smallest, gap)
        if update in kept:
            rows.append(
                {
                    "part": "Frank–Wolfe",
                    "update": update,
                    "gap": gap,
                    "smallest_gap": smallest,
                    "bound": 27 / 4 * curvature / (update + 2),
                    "distance": (weight.detach() - solution).norm().item(),
                }
            )
        optimizer.param_groups[0]["lr"] = 2 / (update + 2) / decay
        weight.grad = gradient
        optimizer.step()
    return rows


def find(rows: list[Row]) -> list[Finding]:
    """What the rows say of the claim."""
    walks = [row for row in rows if row["part"] == "bound"]
    gaps = [row for row in rows if row["part"] == "Frank–Wolfe"]
    late = [row for row in gaps if int(row["update"]) >= 10]
    summaries = {}
    for arm in ARMS:
        summaries[arm.name] = summarise(rows, arm.name)
    muon, free = summaries["Muon λ = 0.1"], summaries["Muon λ = 0"]
    adamw = summaries["AdamW λ = 0.1"]
    gap_slope = fit_slope(
        [float(row["update"]) for row in late], [float(row["smallest_gap"]) for row in late]
    )
    return [
        Finding(
            name="norm over the bound on problems",
            value=max(float(row["largest_ratio"]) for row in walks),
            high=1 + 1e-9,
            about="largest ‖W_t‖₂/max(‖W₀‖₂, c/λ), svd (c = 1) and keller5 (c = "
            f"{largest_output('keller5'):.4f}), λ of 0.1 and 1, three kinds of gradients",
        ),
        Finding(
            name="norm over the bound on problems, constant gradients",
            value=min(
                float(r["final_ratio"])
                for r in walks
                if r["gradients"] == "constant" and r["schedule"] == "svd"
            ),
            low=0.99,
            role="requirement",
            about="svd ends at the bound, which is tight: the measure above could fail",
        ),
        Finding(
            name="norm over the bound in training, Muon",
            value=max(summaries[name]["norm_ratio"] for name in ("Muon λ = 0.1", "Muon λ = 1")),
            high=1.0,
            about="largest ‖W‖₂/max(‖W₀‖₂, cs/λ) over matrices, updates and seeds; s: update scale",
        ),
        Finding(
            name="Frank–Wolfe gap over its bound",
            value=max(float(row["smallest_gap"]) / float(row["bound"]) for row in gaps[1:]),
            high=1.0,
            about="smallest gap so far over 27/4·C/(t + 2)",
        ),
        gap_slope.finding(
            "slope of the Frank–Wolfe gap",
            "theory: −1 or faster",
            low=-2.5,
            high=-0.9,
        ),
        Finding(
            name="explosion without the bound",
            value=max(
                max(summary["largest_logit"] / LOGIT_LIMIT, summary["gradient_growth"] / EXPLODES)
                for name, summary in summaries.items()
                if name.startswith("AdamW") or name == "Muon λ = 0"
            ),
            low=1.0,
            role="requirement",
            about=f"largest logit over {LOGIT_LIMIT:g}, or growth of gradients over {EXPLODES:g}, "
            "of AdamW and of Muon without decay: below 1 nothing exploded that could be prevented",
        ),
        Finding(
            name="logit that the bound allows, Muon λ = 0.1",
            value=muon["logit_bound"],
            high=LOGIT_LIMIT,
            about=f"largest attention logit that the norm bounds permit; {LOGIT_LIMIT:g} is where "
            "MuonClip intervenes, a bound above it prevents nothing",
        ),
        Finding(
            name="gradient growth without decay over growth with it",
            value=free["gradient_growth"] / muon["gradient_growth"],
            low=2.0,
            about="if the bound prevents explosion, taking it away has to show",
        ),
        Finding(
            name="norm with decay over norm without, Muon",
            value=muon["final_norm"] / free["final_norm"],
            high=0.95,
            role="direction",
            about="largest ‖W‖₂ after training, mean over seeds",
        ),
        Finding(
            name="gradient growth, Muon λ = 0.1",
            value=muon["gradient_growth"],
            high=EXPLODES,
            role="direction",
            about="largest norm of the hidden matrices' gradients over its first value",
        ),
        *(
            Finding(name=f"{what}, {name}", value=summary[key], role="note", about=about)
            for name, summary in summaries.items()
            for what, key, about in (
                ("largest logit seen", "largest_logit", "over batches, layers and heads"),
                ("gradient growth", "gradient_growth", "of the hidden matrices' gradient norm"),
                ("largest final norm", "final_norm", "‖W‖₂, mean over seeds"),
                (
                    "final geometric mean of norms",
                    "final_mean_norm",
                    "the product of all ‖W‖₂, by its root",
                ),
                ("final loss", "final_loss", "training, nats per token, mean of the last probes"),
            )
            if (what, name) != ("gradient growth", "Muon λ = 0.1")
        ),
        Finding(
            name="AdamW's bound over Muon's at λ = 0.1",
            value=adamw["bound"] / muon["bound"],
            role="note",
            about="√(mn)·c/λ against c·s/λ, geometric mean over the matrices",
        ),
    ]


def summarise(rows: list[Row], arm: str) -> dict[str, float]:
    """The numbers of one arm: the worst over seeds, or the mean over seeds of final values."""
    matrices = [row for row in rows if row["part"] == "matrix" and row["arm"] == arm]
    probes = [row for row in rows if row["part"] == "probe" and row["arm"] == arm]
    last = max(int(row["step"]) for row in probes)
    seeds = {row["seed"] for row in probes}
    first = {row["seed"]: float(row["gradient_norm"]) for row in probes if row["step"] == 0}
    final = [row for row in matrices if row["step"] == last]
    bounds = [float(row["bound"]) for row in final]
    finite = [b for b in bounds if math.isfinite(b)]
    losses = [float(row["loss"]) for row in probes if int(row["step"]) >= 0.8 * last]
    logs = [math.log(float(row["norm"])) for row in final]
    return {
        "norm_ratio": max(float(row["norm"]) / float(row["bound"]) for row in matrices),
        "logit_bound": max(float(row["logit_bound"]) for row in probes),
        "largest_logit": max(float(row["largest_logit"]) for row in probes),
        "gradient_growth": max(float(r["gradient_norm"]) / first[r["seed"]] for r in probes),
        "final_norm": sum(
            max(float(row["norm"]) for row in final if row["seed"] == seed) for seed in seeds
        )
        / len(seeds),
        "final_mean_norm": math.exp(sum(logs) / len(logs)),
        "final_loss": sum(losses) / len(losses),
        "bound": math.exp(sum(map(math.log, finite)) / len(finite)) if finite else math.inf,
    }


def draw(rows: list[Row], sizes: Sizes) -> Figure:
    """Frank–Wolfe's gap; norms, logits and gradients over training."""
    figure, axes = panels(
        6,
        "First: one start, 12×8, fp64, exact polar factor. Others: recipe nano, fp32, keller5, "
        f"constant learning rate, {len(sizes.training_seeds)} seeds (lines). Dashed: Muon's bound "
        f"of that matrix. Grey: MuonClip's threshold of {LOGIT_LIMIT:g}.",
        rows=2,
    )
    gaps = [row for row in rows if row["part"] == "Frank–Wolfe"]
    updates = [row["update"] for row in gaps]
    axes[0].loglog(
        updates, [r["smallest_gap"] for r in gaps], color=COLOURS[0], label="smallest gap so far"
    )
    axes[0].loglog(updates, [r["bound"] for r in gaps], "--", color=COLOURS[0], label="its bound")
    axes[0].loglog(
        updates, [r["distance"] for r in gaps], color=COLOURS[1], label="‖W − solution‖_F"
    )
    label(axes[0], "Muon with decay is Frank–Wolfe", "update t", "⟨∇f, W⟩ + ‖∇f‖_*/λ")
    draw_norms(rows, axes[1], sizes)
    axes[3].axhline(LOGIT_LIMIT, color="#999999", linewidth=0.8)
    for panel, key, title, what in (
        (axes[2], "norm_product", "Product of the layers' norms", "product of all ‖W‖₂"),
        (axes[3], "largest_logit", "Attention", "largest attention logit of the batch"),
        (axes[4], "gradient_norm", "Gradients", "norm of the hidden matrices' gradients"),
        (axes[5], "loss", "Loss", "training loss, nats per token"),
    ):
        _draw_probe(rows, panel, key, sizes)
        label(panel, title, "update", what)
    return figure


def draw_norms(rows: list[Row], panel: Axes, sizes: Sizes) -> None:
    """The largest spectral norm of each arm over training, and the bound of that matrix."""
    for arm, colour in zip(ARMS, COLOURS, strict=False):
        for seed in sizes.training_seeds:
            matrices = [
                row
                for row in rows
                if row["part"] == "matrix" and row["arm"] == arm.name and row["seed"] == seed
            ]
            steps = sorted({int(row["step"]) for row in matrices})
            largest = [
                max((r for r in matrices if r["step"] == step), key=lambda r: float(r["norm"]))
                for step in steps
            ]
            first = seed == sizes.training_seeds[0]
            panel.semilogy(
                steps,
                [row["norm"] for row in largest],
                color=colour,
                label=arm.name if first else None,
            )
            bound = float(largest[-1]["bound"])
            if first and arm.name.startswith("Muon") and math.isfinite(bound):
                panel.axhline(bound, color=colour, linestyle="--", linewidth=0.9)
    label(panel, "Weights", "update", "largest spectral norm ‖W‖₂ of all matrices")


def _draw_probe(rows: list[Row], panel: Axes, key: str, sizes: Sizes) -> None:
    for arm, colour, marker in zip(ARMS, COLOURS, MARKERS, strict=False):
        for seed in sizes.training_seeds:
            curve = [
                row
                for row in rows
                if row["part"] == "probe" and row["arm"] == arm.name and row["seed"] == seed
            ]
            panel.semilogy(
                [row["step"] for row in curve],
                [row[key] for row in curve],
                color=colour,
                marker=marker,
                markersize=2.5,
                linewidth=1,
                label=arm.name if seed == sizes.training_seeds[0] else None,
            )


THOROUGH = Sizes(
    num_updates=30_000, training_updates=2000, training_seeds=(0, 1, 2, 3), probe_every=50
)


def check(scale: Scale) -> Measurement:
    """The check at its usual sizes (``nano``), or with more seeds and sizes."""
    sizes = Sizes() if scale == "nano" else THOROUGH

    def judge(frame: pd.DataFrame) -> list[Verdict]:
        return judge_both(find(rows_of(frame)))

    return Measurement(
        name="theory-spectral",
        scale=scale,
        question="Does Muon's spectral regularisation prevent gradient explosion?",
        claims=("P1-spectral",),
        measure=lambda context: pd.DataFrame(measure(sizes, context)),
        judge=judge,
        draw=lambda frame: draw(rows_of(frame), sizes),
        notes=(
            "The claim: Muon's spectral regularisation prevents gradient explosion.",
            "The theorem: ‖W_t‖₂ ≤ max(‖W₀‖₂, cs/λ) for ηλ ≤ 1; with decay Muon is Frank–Wolfe "
            "on ‖W‖₂ ≤ s/λ, whose gap ⟨∇f, W⟩ + ‖∇f‖_*/λ goes to 0.",
            "Measured on: Constant, random and outward gradients; ½‖W − A‖²_F over a spectral "
            "ball; the nano language model under Muon and AdamW, with and without weight decay.",
            "Sources: 2506.15054; Jaggi 2013 (Frank–Wolfe); 2507.20534 (MuonClip).",
        ),
    )
