"""P2-ntk: can the neural tangent kernel bound Muon on latent attention?

A kernel bound follows training by f' = −K(f − y) with K as at the start. It needs two things: a
kernel that stands still as the width grows, and a step that is linear in the residual f − y. The
first is a matter of scaling: it holds where the readout has 1/√width (and, for attention, the
number of heads grows: 2006.10540), and fails where features move (1/width: the scaling that Muon's
update rule amounts to). The second holds for gradient descent.
"""

from dataclasses import dataclass
from itertools import product
from typing import get_args

import pandas as pd
import torch
from matplotlib.figure import Figure

from muonlab.lab.bounds import Row, Slope, fit_slope, judge_findings, rows_of
from muonlab.lab.experiment import Context, Finding, Measurement, Role, Scale, Verdict
from muonlab.papers.theory.kernel import (
    EXAMPLES,
    HEAD_DIM,
    TOKENS,
    Algorithm,
    NetworkName,
    Scaling,
    first_update,
    train_to_half,
)
from muonlab.papers.theory.panels import COLOURS, MARKERS, label, panels

NETWORKS: tuple[NetworkName, ...] = get_args(NetworkName)
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
FREEZES = (-1.1, -0.4)  # slopes of a drift that vanishes with the width: −1 in theory, or −½


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Widths of the two-layer network and of the attentions, and seeds."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    attention_widths: tuple[int, ...] = (32, 48, 64, 96, 128, 192, 256)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)

    def of(self, network: NetworkName) -> tuple[int, ...]:
        return self.widths if network == "two layers" else self.attention_widths


def measure(sizes: Sizes, context: Context) -> list[Row]:
    """Train every network in every scaling by every algorithm, from the smallest width up."""
    work: list[tuple[NetworkName, Scaling, Algorithm, int, int]] = [
        (network, scaling, algorithm, width, seed)
        for network in NETWORKS
        for width, scaling, algorithm, seed in product(
            sizes.of(network), SCALINGS, ALGORITHMS, sizes.seeds
        )
    ]
    total = sum(width for *_, width, _ in work)
    done = 0
    rows: list[Row] = []
    for network, scaling, algorithm, width, seed in work:
        found = train_to_half(network, scaling, algorithm, width, seed)
        rows.append(
            {
                "part": "drift",
                "network": network,
                "scaling": scaling,
                "algorithm": algorithm,
                "width": width,
                "seed": seed,
                "drift": found.drift,
                "updates": found.updates,
                "loss_ratio": found.loss_ratio,
            }
        )
        done += width
        context.advance(done / total)
    for algorithm in ALGORITHMS:
        reference = first_update(algorithm, 1.0)
        for exponent in range(-3, 4):
            update = first_update(algorithm, 10.0**exponent)
            rows.append(
                {
                    "part": "residual",
                    "algorithm": algorithm,
                    "residual_scale": 10.0**exponent,
                    "step_norm": update.norm().item(),
                    "change": ((update - reference).norm() / reference.norm()).item(),
                }
            )
    return rows


def say(findings: list[Finding]) -> str:
    """The outcome in a sentence."""
    found = {item.name: item.value for item in findings}
    return (
        "Between start and half the loss the tangent kernel of causal_mhla moves by a share that "
        f"goes as width^{found['drift, causal_mhla, ntk scaling, gd']:.2f} under gradient descent "
        f"and as width^{found['drift, causal_mhla, ntk scaling, muon']:.2f} under Muon in the NTK "
        "scaling, if the number of heads grows with the width; with 4 heads as width^"
        f"{found['drift, causal_mhla, 4 heads, ntk scaling, muon']:.2f} even there. In the "
        "spectral scaling, which Muon is used in, it goes as width^"
        f"{found['drift, causal_mhla, spectral scaling, muon']:.2f} (two layers: "
        f"{found['drift, two layers, spectral scaling, muon']:.2f}). Muon's step goes as "
        f"residual^{abs(round(found['step over residual, muon'], 2)):g}, where f' = −K(f − y) "
        "needs 1."
    )


def drift_slope(
    rows: list[Row], network: NetworkName, scaling: Scaling, algorithm: Algorithm
) -> Slope:
    """The power of the width by which the kernel drifts, all seeds together."""
    chosen = _select(rows, network, scaling, algorithm)
    return fit_slope(
        [float(row["width"]) for row in chosen],
        [float(row["drift"]) for row in chosen],
        groups=[int(row["seed"]) for row in chosen],
    )


def find(rows: list[Row]) -> list[Finding]:
    """What the rows say of the claim."""
    drifts = [row for row in rows if row["part"] == "drift"]
    residuals = [row for row in rows if row["part"] == "residual"]

    def residual_slope(algorithm: Algorithm) -> Slope:
        chosen = [row for row in residuals if row["algorithm"] == algorithm]
        return fit_slope(
            [float(row["residual_scale"]) for row in chosen],
            [float(row["step_norm"]) for row in chosen],
        )

    findings = [
        Finding(
            name="loss where training ends",
            value=max(float(row["loss_ratio"]) for row in drifts),
            high=0.5,
            role="requirement",
            about="largest share of the first loss: drifts are compared at a halved loss",
        ),
        residual_slope("gd").finding(
            "step over residual, gd",
            "gradient descent is linear in f − y: 1",
            low=0.999,
            high=1.001,
            role="requirement",
        ),
        residual_slope("muon").finding(
            "step over residual, muon", "f' = −K(f − y) needs 1", low=0.95, high=1.05
        ),
        Finding(
            name="change of Muon's step when the residual is scaled",
            value=max(float(row["change"]) for row in residuals if row["algorithm"] == "muon"),
            role="note",
            about="largest relative change over scales from 1e-3 to 1e3; invariant: below 1e-6",
        ),
    ]
    expected: dict[tuple[str, str, str], tuple[Role, tuple[float, float], str]] = {
        ("two layers", "ntk", "gd"): (
            "requirement",
            FREEZES,
            "known to vanish (1806.07572): the experiment has to see it",
        ),
        ("two layers", "spectral", "gd"): (
            "requirement",
            (-0.15, 0.15),
            "known to stay (mean field): the experiment has to see it",
        ),
        ("two layers", "spectral", "muon"): (
            "claim",
            FREEZES,
            "a kernel bound needs the drift to vanish in the scaling that is used",
        ),
        ("causal_mhla", "spectral", "muon"): (
            "claim",
            FREEZES,
            "a kernel bound needs the drift to vanish in the scaling that is used",
        ),
        ("causal_mhla", "ntk", "gd"): (
            "direction",
            FREEZES,
            "whether the drift vanishes at least in the NTK scaling",
        ),
        ("causal_mhla", "ntk", "muon"): (
            "direction",
            FREEZES,
            "whether the drift vanishes at least in the NTK scaling",
        ),
    }
    for network, scaling, algorithm in product(NETWORKS, SCALINGS, ALGORITHMS):
        slope = drift_slope(rows, network, scaling, algorithm)
        name = f"drift, {network}, {scaling} scaling, {algorithm}"
        if (network, scaling, algorithm) in expected:
            role, (low, high), about = expected[network, scaling, algorithm]
            findings.append(slope.finding(name, f"slope; {about}", low=low, high=high, role=role))
        else:
            findings.append(slope.finding(name, "slope over the width", role="note"))
    return findings


def draw(rows: list[Row], sizes: Sizes) -> Figure:
    """Kernel drift over width, one panel a network."""
    figure, axes = panels(
        len(NETWORKS),
        f"Means of {len(sizes.seeds)} seeds at half the first loss; {EXAMPLES} examples"
        f" ({TOKENS} tokens each for attention, heads of width {HEAD_DIM} or 4 heads, 8 latents, "
        "chunks of 4), fp64; Muon by keller5. Legend: fitted slopes. Solid: NTK scaling; dashed: "
        "spectral scaling.",
        rows=2,
    )
    styles = list(product(SCALINGS, enumerate(ALGORITHMS)))
    for panel, network in zip(axes, NETWORKS, strict=True):
        for scaling, (index, algorithm) in styles:
            chosen = _select(rows, network, scaling, algorithm)
            widths = sizes.of(network)
            means = [
                torch.tensor([float(row["drift"]) for row in chosen if row["width"] == width])
                .mean()
                .item()
                for width in widths
            ]
            slope = drift_slope(rows, network, scaling, algorithm).value
            panel.loglog(
                widths,
                means,
                "-" if scaling == "ntk" else "--",
                color=COLOURS[index],
                marker=MARKERS[index],
                markersize=4,
                label=f"{scaling}, {algorithm}: {slope:.2f}",
            )
        label(panel, network, "width", "kernel drift ‖K_T − K_0‖_F / ‖K_0‖_F")
    return figure


def _select(
    rows: list[Row], network: NetworkName, scaling: Scaling, algorithm: Algorithm
) -> list[Row]:
    wanted = {"part": "drift", "network": network, "scaling": scaling, "algorithm": algorithm}
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


THOROUGH = Sizes(
    widths=(64, 128, 256, 512, 1024, 2048, 4096, 8192),
    attention_widths=(32, 48, 64, 96, 128, 192, 256, 384, 512),
    seeds=tuple(range(10)),
)


def check(scale: Scale) -> Measurement:
    """The check at its usual sizes (``nano``), or with more seeds and sizes."""
    sizes = Sizes() if scale == "nano" else THOROUGH

    def judge(frame: pd.DataFrame) -> list[Verdict]:
        rows = rows_of(frame)
        findings = find(rows)
        return [judge_findings("P2-ntk", findings, say(findings))]

    return Measurement(
        name="theory-ntk",
        scale=scale,
        question="Can the neural tangent kernel bound Muon on latent attention?",
        claims=("P2-ntk",),
        measure=lambda context: pd.DataFrame(measure(sizes, context)),
        judge=judge,
        draw=lambda frame: draw(rows_of(frame), sizes),
        notes=(
            "The claim: bounds for Muon and MHLA can be had from the neural tangent kernel.",
            "The theorem: With 1/√width in front of the readout the tangent kernel stands still"
            " as the width grows and f' = −K(f − y); with 1/width it moves at every width.",
            "Measured on: Regression on random data to half the first loss: two-layer tanh "
            "networks, MHSA and causal_mhla with a readout; gradient descent, AdamW, Muon.",
            "Sources: 1806.07572 (NTK); 2006.10540 (attention); 2310.17813 (spectral scaling).",
        ),
    )
