"""Polynomial schedules: which odd quintic is applied to the singular values at each step.

One step maps every singular value σ to p(σ) = aσ + bσ³ + cσ⁵; a schedule is a tuple of (a, b, c).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]
Schedule = tuple[Coefficients, ...]

KELLER = (3.4445, -4.7750, 2.0315)  # kellerjordan.github.io/posts/muon
CONVERGED = (1.875, -1.25, 0.375)  # the Padé limit that every minimax sequence reaches
POLAR_EXPRESS_LOWER_BOUND = 1e-3
# 2505.16932 section 4.4: keeps the early polynomials from flattening the interval's lower end, and
# leaves room for rounding above 1.
CUSHION = 0.02407327424182761
SAFETY = 1.01

_KAON_MAP = (4.1, -8.2, 4.1)  # 2605.11181: 4.1·(1 − σ²)²·σ, chaotic

_NAMED: dict[str, Schedule] = {
    "keller5": (KELLER,) * 5,
    "you5": (  # YouJiacheng's five, from the modded-nanogpt record log
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "deepseek_v4": (KELLER,) * 8 + ((2.0, -1.5, 0.5),) * 2,
    # The random-spectrum placebo: the singular vectors of Muon, singular values scrambled.
    "kaon": (_KAON_MAP,) * 4 + (tuple(v / 1.175 for v in _KAON_MAP),),  # type: ignore[dict-item]
}
POLYNOMIAL_NAMES = ("keller5", "you5", "polar_express", "deepseek_v4", "kaon")
SCHEDULE_NAMES = (*POLYNOMIAL_NAMES, "svd", "none")


def resolve_schedule(schedule: str | Sequence[Sequence[float]]) -> Schedule:
    """The coefficients of a named schedule, or of a custom sequence of (a, b, c).

    ``"polar_express"`` has 5 steps; `polar_express` makes any other. ``"svd"`` (exact polar factor)
    and ``"none"`` (no orthogonalisation) are not polynomials and are refused here.
    """
    if isinstance(schedule, str):
        if schedule == "polar_express":
            return polar_express(5)
        if schedule in _NAMED:
            return _NAMED[schedule]
        raise ValueError(f"schedule {schedule!r} is not a polynomial: legal are {SCHEDULE_NAMES}")
    steps = tuple(tuple(float(value) for value in step) for step in schedule)
    if not steps or any(len(step) != 3 or not all(map(math.isfinite, step)) for step in steps):
        raise ValueError(f"schedule {schedule!r} must be one or more finite triples (a, b, c)")
    return steps  # type: ignore[return-value]


def polar_express(
    num_steps: int,
    lower_bound: float = POLAR_EXPRESS_LOWER_BOUND,
    *,
    cushion: float = CUSHION,
    safety: float = SAFETY,
) -> Schedule:
    """Minimax-optimal quintics for singular values in [lower_bound, 1] (2505.16932, Alg. 1).

    Each step is the best odd quintic on the interval that the earlier steps leave. ``safety``
    shrinks the argument of every step before convergence, against rounding above the interval.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps {num_steps} must be at least 1")
    if not 0 < lower_bound < 1:
        raise ValueError(f"lower_bound {lower_bound} must lie in (0, 1)")
    low, high = lower_bound, 1.0
    steps: list[Coefficients] = []
    for _ in range(num_steps):
        if low / high >= 1 - 5e-6:
            steps.append(CONVERGED)
            continue
        a, b, c = minimax_quintic(max(low, cushion * high), high)
        if cushion * high > low:  # recentre p([low, high]) around 1
            factor = 2 / (_evaluate((a, b, c), low) + _evaluate((a, b, c), high))
            a, b, c = a * factor, b * factor, c * factor
        low = _evaluate((a, b, c), low)
        high = 2 - low
        steps.append((a / safety, b / safety**3, c / safety**5))
    return tuple(steps)


def minimax_quintic(low: float, high: float) -> Coefficients:
    """The odd quintic closest to 1 on [low, high] in the maximum norm (Remez exchange).

    The error alternates at low, two inner extrema, and high.
    """
    inner = [(3 * low + high) / 4, (low + 3 * high) / 4]
    previous_error = math.inf
    while True:
        points = torch.tensor([low, *inner, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], dim=1)
        a, b, c, error = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        if abs(error - previous_error) < 1e-15:
            return a, b, c
        previous_error = error
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))  # p'(x) = a + 3bx² + 5cx⁴
        inner = [math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))]


def scalar_map(schedule: str | Sequence[Sequence[float]], sigma: Tensor) -> Tensor:
    """What a schedule makes of singular values ``sigma`` in exact arithmetic."""
    if schedule == "svd":
        return (sigma > 0).to(sigma.dtype)
    if schedule == "none":
        return sigma.clone()
    for a, b, c in resolve_schedule(schedule):
        square = sigma * sigma
        sigma = sigma * (a + square * (b + c * square))
    return sigma


def band(
    schedule: str | Sequence[Sequence[float]], lower_bound: float = 1e-2
) -> tuple[float, float]:
    """Smallest and largest output for inputs in [lower_bound, 1] (dense logarithmic grid)."""
    grid = torch.logspace(math.log10(lower_bound), 0, 200_001, dtype=torch.float64)
    out = scalar_map(schedule, grid)
    return out.min().item(), out.max().item()


def draw(schedule: str | Sequence[Sequence[float]], *, width: int = 72, height: int = 16) -> str:
    """The scalar map as text: σ from 1e-4 to 1 (logarithmic) across, output 0 to 1.3 up."""
    top = 1.3
    values = scalar_map(schedule, torch.logspace(-4, 0, width, dtype=torch.float64)).tolist()
    canvas = [[" "] * width for _ in range(height)]
    for column, value in enumerate(values):
        row = round((1 - min(max(value / top, 0.0), 1.0)) * (height - 1))
        canvas[row][column] = "*"
    labels = [f"{top * (1 - row / (height - 1)):5.2f} |" for row in range(height)]
    lines = [label + "".join(row).rstrip() for label, row in zip(labels, canvas, strict=True)]
    axis = "      +" + "-" * width
    ticks = "       1e-4" + "1e-3".rjust(width // 4) + "1e-2".rjust(width // 4)
    return "\n".join([*lines, axis, ticks + "1e-1".rjust(width // 4) + "1".rjust(width // 4 - 4)])


def describe_schedules() -> str:
    """Every named schedule: its steps, its band, its drawing."""
    parts = []
    for name in POLYNOMIAL_NAMES:
        steps = resolve_schedule(name)
        bands = [band(name, lower) for lower in (1e-2, 1e-3)]
        parts.append(
            f"{name}: {len(steps)} steps; output for σ ≥ 1e-2 in [{bands[0][0]:.3f}, "
            f"{bands[0][1]:.3f}], for σ ≥ 1e-3 in [{bands[1][0]:.3f}, {bands[1][1]:.3f}]"
        )
        parts.extend(f"  {a:9.4f} {b:9.4f} {c:9.4f}" for a, b, c in steps)
        parts.append(draw(name))
    return "\n".join(parts)


def _evaluate(step: Coefficients, x: float) -> float:
    a, b, c = step
    return x * (a + x * x * (b + c * x * x))
