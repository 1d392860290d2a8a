"""P1-stiefel: is Muon natural-gradient descent on the Stiefel manifold?

The polar factor of G is the point of the Stiefel manifold {O : OᵀO = I} nearest to G, which is the
one that maximises ⟨G, O⟩. That is an identity about G. It says nothing about a weight W on the
manifold: there the Riemannian gradient of the canonical metric is G − W·Gᵀ·W, another direction.
For linear regression with inputs X and weight error E = W − W*, G = XᵀX·E and the natural gradient
is E: the polar factor is parallel to it exactly where EEᵀ ∝ I.
"""

import math
import statistics
from dataclasses import dataclass

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from muonlab.lab.bounds import Row, judge_findings, rows_of
from muonlab.lab.experiment import Context, Finding, Measurement, Scale, Verdict
from muonlab.optim import orthogonalise
from muonlab.papers.theory.panels import COLOURS, label, panels

SHAPES = ((8, 8), (32, 8), (48, 16))  # tall or square: the points have orthonormal columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is tried."""

    num_points: int = 10_000
    num_matrices: int = 5
    num_directions: int = 200
    ascent_steps: int = 2000


def measure(sizes: Sizes, context: Context) -> list[Row]:
    """Measure the extremal property, the two cosines, and the identities of `orthogonalise`."""
    generator = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    for position, (m, n) in enumerate(SHAPES):
        for index in range(sizes.num_matrices):
            gradient = _normal(generator, m, n)
            found = {
                **identities(gradient),
                "best_random": best_random(gradient, sizes.num_points, generator),
                **ascent(gradient, sizes.ascent_steps, generator),
            }
            rows.append({"part": "maximum", "shape": f"{m}×{n}", "matrix": index, **found})
        for index in range(sizes.num_directions):
            point = random_point(generator, m, n)
            rows.append(
                {
                    "part": "canonical gradient",
                    "shape": f"{m}×{n}",
                    "matrix": index,
                    **canonical_gradient(point, _normal(generator, m, n)),
                }
            )
        context.advance((position + 1) / (len(SHAPES) + 1))
    for spread in (1.0, 2.0, 5.0, 10.0, 30.0, 100.0):
        for index in range(sizes.num_matrices):
            found = linear_regression(spread, generator)
            rows.append({"part": "regression", "spread": spread, "matrix": index, **found})
    context.advance(1.0)
    return rows


def say(findings: list[Finding]) -> str:
    """The outcome in a sentence."""
    value = {item.name: item.value for item in findings}
    return (
        "The polar factor is the maximiser of ⟨G, O⟩ over the Stiefel manifold (Riemannian ascent "
        f"from random points ends there, to {value['ascent above the polar factor']:.0e}), and one "
        "step of Shampoo without accumulation. It is not the Riemannian gradient G − W·Gᵀ·W: the "
        f"cosine is {value['cosine with the canonical gradient']:.2f} at the median. It is the "
        "natural-gradient direction of a linear regression only where the weight error E has "
        f"EEᵀ ∝ I; with singular values spread over 100, the cosine is "
        f"{value['cosine with the natural gradient']:.2f}."
    )


def identities(gradient: Tensor) -> dict[str, float]:
    """Largest errors of UVᵀ = G(GᵀG)^−½ = (GGᵀ)^−¼·G·(GᵀG)^−¼, by eigenvectors, and of OᵀO = I."""
    polar = orthogonalise(gradient, "svd")
    whitened = gradient @ _power(gradient.mT @ gradient, -0.5)
    shampoo = (
        _power(gradient @ gradient.mT, -0.25) @ gradient @ _power(gradient.mT @ gradient, -0.25)
    )
    eye = torch.eye(gradient.shape[1], dtype=gradient.dtype)
    return {
        "polar_error": (polar - whitened).abs().max().item(),
        "shampoo_error": (polar - shampoo).abs().max().item(),
        "orthogonality_error": (polar.mT @ polar - eye).abs().max().item(),
    }


def best_random(gradient: Tensor, num_points: int, generator: torch.Generator) -> float:
    """The largest ⟨G, O⟩/⟨G, UVᵀ⟩ of random points O of the manifold; half of them near UVᵀ."""
    polar = orthogonalise(gradient, "svd")
    points = _normal(generator, num_points, *gradient.shape)
    near = points[: num_points // 2]
    spread = torch.logspace(-6, 1, len(near), dtype=gradient.dtype).view(-1, 1, 1)
    near.mul_(spread / gradient.shape[0]).add_(polar)
    inner = (torch.linalg.qr(points[len(near) :]).Q * gradient).sum(dim=(1, 2))
    inner_near = (orthogonalise(near, "svd") * gradient).sum(dim=(1, 2))
    best = torch.cat((inner.abs(), inner_near)).max()
    return (best / (polar * gradient).sum()).item()


def ascent(gradient: Tensor, num_steps: int, generator: torch.Generator) -> dict[str, float]:
    """Riemannian gradient ascent of ⟨G, O⟩ from a random point, with QR retraction.

    On square matrices the manifold has two parts; the start is then taken in the polar factor's.
    """
    polar = orthogonalise(gradient, "svd")
    point = random_point(generator, *gradient.shape)
    if gradient.shape[0] == gradient.shape[1] and torch.det(point) * torch.det(polar) < 0:
        point[:, 0].neg_()
    nuclear = (polar * gradient).sum()
    step = 1 / torch.linalg.matrix_norm(gradient, 2)
    size = torch.zeros(())
    for _ in range(num_steps):
        tangent = gradient - point @ gradient.mT @ point
        size = torch.linalg.matrix_norm(tangent) / torch.linalg.matrix_norm(gradient)
        if size < 1e-12:
            break
        q, r = torch.linalg.qr(point + step * tangent)
        point = q * r.diagonal().sign()
    return {
        "ascent_gradient": size.item(),
        "ascent_gain": ((point * gradient).sum() / nuclear - 1).item(),
        "ascent_distance": (point - polar).abs().max().item(),
    }


def canonical_gradient(point: Tensor, gradient: Tensor) -> dict[str, float]:
    """Muon's direction against the Riemannian gradient G − W·Gᵀ·W at W, as cosines.

    ``normal_share``: the part of Muon's direction that points out of the manifold's tangent space.
    """
    polar = orthogonalise(gradient, "svd")
    riemannian = gradient - point @ gradient.mT @ point
    symmetric = point.mT @ polar
    normal = point @ (symmetric + symmetric.mT) / 2
    return {
        "cosine": _cosine(polar, riemannian),
        "cosine_of_polar_factors": _cosine(polar, orthogonalise(riemannian, "svd")),
        "normal_share": (normal.norm() / polar.norm()).item(),
    }


def linear_regression(spread: float, generator: torch.Generator) -> dict[str, float]:
    """The polar factor of G = XᵀX·E against the natural gradient E, by cosine.

    The singular values of E run from 1 to 1/``spread``; the inputs are correlated.
    """
    inputs = _normal(generator, 64, 12) * torch.logspace(0, -1, 12, dtype=torch.float64)
    left, right = random_point(generator, 12, 12), random_point(generator, 24, 12)
    error = left * torch.logspace(0, -1, 12, dtype=torch.float64).pow(math.log10(spread)) @ right.mT
    gradient = inputs.mT @ inputs @ error
    return {
        "natural_cosine": _cosine(orthogonalise(gradient, "svd"), error),
        "gradient_cosine": _cosine(gradient, error),
    }


def random_point(generator: torch.Generator, m: int, n: int) -> Tensor:
    """A uniformly random m × n matrix with orthonormal columns, fp64."""
    q, r = torch.linalg.qr(_normal(generator, m, n))
    return q * r.diagonal().sign()


def find(rows: list[Row]) -> list[Finding]:
    """What the rows say of the claim."""

    def values(part: str, key: str) -> list[float]:
        return [float(row[key]) for row in rows if row["part"] == part]

    regression = [row for row in rows if row["part"] == "regression"]
    widest = [float(r["natural_cosine"]) for r in regression if r["spread"] == 100.0]
    isotropic = [float(r["natural_cosine"]) for r in regression if r["spread"] == 1.0]
    return [
        Finding(
            name="size of the gradient where ascent ends",
            value=max(values("maximum", "ascent_gradient")),
            high=1e-9,
            role="requirement",
            about="relative Riemannian gradient; larger means that the ascent has not converged",
        ),
        Finding(
            name="error of G(GᵀG)^−½",
            value=max(values("maximum", "polar_error")),
            high=1e-8,
            about="`orthogonalise` against the formula by eigenvectors, fp64",
        ),
        Finding(
            name="best random point over the polar factor",
            value=max(values("maximum", "best_random")),
            high=1 + 1e-8,
            about="largest ⟨G, O⟩/⟨G, UVᵀ⟩ over random O of the manifold, far from and near UVᵀ",
        ),
        Finding(
            name="ascent above the polar factor",
            value=max(abs(value) for value in values("maximum", "ascent_gain")),
            high=1e-8,
            about="Riemannian ascent of ⟨G, O⟩ from random points: relative distance to ‖G‖_*",
        ),
        Finding(
            name="cosine with the canonical gradient",
            value=statistics.median(values("canonical gradient", "cosine")),
            low=0.99,
            about="median over random points and gradients of cos(UVᵀ, G − W·Gᵀ·W); 1 if the same",
        ),
        Finding(
            name="cosine with the natural gradient",
            value=statistics.median(widest),
            low=0.99,
            about="linear regression, singular values of the weight error spread over 100",
        ),
        Finding(
            name="cosine with the natural gradient where EEᵀ ∝ I",
            value=min(isotropic),
            low=1 - 1e-8,
            role="direction",
            about="linear regression whose weight error is a multiple of an orthogonal matrix",
        ),
        Finding(
            name="smallest cosine with the canonical gradient",
            value=min(values("canonical gradient", "cosine")),
            low=0.0,
            role="direction",
            about="positive: Muon's direction is still one of descent on the manifold",
        ),
        Finding(
            name="error of Shampoo's form",
            value=max(values("maximum", "shampoo_error")),
            high=1e-8,
            role="direction",
            about="UVᵀ = (GGᵀ)^−¼·G·(GᵀG)^−¼: Muon is Shampoo without accumulation",
        ),
        Finding(
            name="share of the step that leaves the manifold",
            value=statistics.median(values("canonical gradient", "normal_share")),
            role="note",
            about="median norm of the part of UVᵀ normal to the manifold at W, ‖UVᵀ‖ = 1",
        ),
        Finding(
            name="cosine of the two polar factors",
            value=statistics.median(values("canonical gradient", "cosine_of_polar_factors")),
            role="note",
            about="median cosine of UVᵀ and the polar factor of the canonical gradient",
        ),
    ]


def draw(rows: list[Row], sizes: Sizes) -> Figure:
    """Where Muon's direction lies against both gradients."""
    figure, (left, right) = panels(
        2,
        f"Left: {sizes.num_directions} random points W and gradients G a shape. Right: "
        f"{sizes.num_matrices} random problems a point, W 12×24, 64 correlated inputs. "
        "fp64, exact polar factor.",
    )
    for (m, n), colour in zip(SHAPES, COLOURS, strict=False):
        cosines = [
            float(row["cosine"])
            for row in rows
            if row["part"] == "canonical gradient" and row["shape"] == f"{m}×{n}"
        ]
        left.hist(cosines, bins=20, color=colour, alpha=0.6, label=f"{m}×{n}")
    left.set_xlim(0, 1.02)
    left.axvline(1.0, color="#999999", linewidth=1)
    label(
        left,
        "On the Stiefel manifold",
        "cosine of UVᵀ and the canonical gradient (1: the same)",
        "number of random points",
    )
    regression = [row for row in rows if row["part"] == "regression"]
    for key, name, colour in (
        ("natural_cosine", "Muon's direction UVᵀ", COLOURS[0]),
        ("gradient_cosine", "the gradient itself", COLOURS[1]),
    ):
        right.semilogx(
            [row["spread"] for row in regression],
            [row[key] for row in regression],
            "o",
            color=colour,
            label=name,
        )
    right.set_ylim(0, 1.02)
    label(
        right,
        "Linear regression",
        "largest over smallest singular value of the weight error",
        "cosine with the natural gradient",
    )
    return figure


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _power(gram: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive semi-definite matrix on its range; 0 elsewhere."""
    values, vectors = torch.linalg.eigh(gram)
    inside = values > values[-1] * len(values) * torch.finfo(gram.dtype).eps
    powers = torch.where(inside, values.clamp_min(1e-300).pow(exponent), 0.0)
    return (vectors * powers) @ vectors.mT


def _cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


THOROUGH = Sizes(num_points=100_000, num_matrices=20, num_directions=2000, ascent_steps=10_000)


def check(scale: Scale) -> Measurement:
    """The check at its usual sizes (``nano``), or with more seeds and sizes."""
    sizes = Sizes() if scale == "nano" else THOROUGH

    def judge(frame: pd.DataFrame) -> list[Verdict]:
        rows = rows_of(frame)
        findings = find(rows)
        return [judge_findings("P1-stiefel", findings, say(findings))]

    return Measurement(
        name="theory-stiefel",
        scale=scale,
        question="Is Muon natural-gradient descent on the Stiefel manifold?",
        claims=("P1-stiefel",),
        measure=lambda context: pd.DataFrame(measure(sizes, context)),
        judge=judge,
        draw=lambda frame: draw(rows_of(frame), sizes),
        notes=(
            "The claim: Muon is connected to natural gradient descent on the Stiefel manifold.",
            "The theorem: G(GᵀG)^−½ maximises ⟨G, O⟩ over OᵀO = I (orthogonal Procrustes). The "
            "Riemannian gradient of the canonical metric at W is G − W·Gᵀ·W.",
            "Measured on: Random matrices of three shapes, random points of the manifold, "
            "linear regression.",
            "Sources: Schönemann 1966 (Procrustes); physics/9806030 (canonical metric); "
            "2409.20325 (Shampoo without accumulation).",
        ),
    )
