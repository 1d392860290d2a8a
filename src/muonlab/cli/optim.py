"""`muonlab optim …`: the optimizer's polynomial schedules."""

from pathlib import Path
from typing import Annotated

import tyro
from tyro.extras import SubcommandApp

application = SubcommandApp()


@application.command
def schedules(
    *,
    plot: Annotated[
        Path | None,
        tyro.conf.arg(help="also draw all curves into this PNG file", help_behavior_hint=""),
    ] = None,
) -> None:
    """Print every named schedule: its coefficients, and where it takes singular values."""
    from muonlab.optim.schedules import describe_schedules

    print(describe_schedules())
    if plot is not None:
        plot_schedules(plot)
        print(f"drawn to {plot}")


def plot_schedules(path: Path) -> None:
    """Draw what every named schedule makes of a singular value in [1e-4, 1]."""
    import torch
    from matplotlib.figure import Figure

    from muonlab.optim.schedules import POLYNOMIAL_NAMES, scalar_map

    sigma = torch.logspace(-4, 0, 2000, dtype=torch.float64)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in POLYNOMIAL_NAMES:
        axes.semilogx(sigma.tolist(), scalar_map(name, sigma).tolist(), label=name, linewidth=1.2)
    axes.axhline(1.0, color="#999999", linewidth=0.6)
    axes.set_xlabel("singular value σ of the matrix over its Frobenius norm")
    axes.set_ylabel("singular value of the update")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
