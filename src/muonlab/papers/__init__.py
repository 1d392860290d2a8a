"""The papers' experiments as data: every name makes its experiment at a scale."""

from collections.abc import Callable

from muonlab.lab.experiment import Experiment, Scale
from muonlab.papers import p1_measured, p2_measured
from muonlab.papers.p1_batch import batch
from muonlab.papers.p1_components import components
from muonlab.papers.p1_compute import compute
from muonlab.papers.p1_factorial import factorial
from muonlab.papers.p1_stability import stability
from muonlab.papers.p2_attention import crossover, latents, leak, table4
from muonlab.papers.p2_optimizer import table1, table2, table3
from muonlab.papers.theory import CHECKS

EXPERIMENTS: dict[str, Callable[[Scale], Experiment]] = {
    "p1-compute": compute,
    "p1-batch": batch,
    "p1-components": components,
    "p1-factorial": factorial,
    "p1-stability": stability,
    "p2-table1": table1,
    "p2-table2": table2,
    "p2-table3": table3,
    "p2-table4": table4,
    "p2-leak": leak,
    "p2-crossover": crossover,
    "p2-latents": latents,
    **p1_measured.MEASUREMENTS,
    **p2_measured.MEASUREMENTS,
    **CHECKS,
}
