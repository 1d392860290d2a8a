"""The ledger: every claim of the two papers, its number there, and the experiment that judges it.

P1 is arXiv 2509.24406; P2 is Rosić and Umar's study of Muon and latent attention. A paper's values
are facts to compare with, never results to tune to.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A claim and what settles it: the names of studies and measurements.

    The verdict is that of the first experiment that has one; no experiment: none is written yet.
    """

    id: str
    paper: Literal["P1", "P2"]
    text: str
    value: str
    experiments: tuple[str, ...] = ()


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="P1-compute",
        paper="P1",
        text="Muon reaches AdamW's target loss with about half of the training compute",
        value="48 to 52 % of the compute, same or better perplexity",
        experiments=("p1-compute",),
    ),
    Claim(
        id="P1-batch",
        paper="P1",
        text="Muon keeps its data efficiency at large batch sizes and widens the Pareto frontier",
        value="no number given",
        experiments=("p1-batch",),
    ),
    Claim(
        id="P1-mla-moe-mem",
        paper="P1",
        text="MLA, MoE and Muon together reduce memory",
        value="68 % less",
        experiments=("p1-memory",),
    ),
    Claim(
        id="P1-mla-moe-speed",
        paper="P1",
        text="MLA, MoE and Muon together speed up inference",
        value="3.2 times",
        experiments=("p1-inference",),
    ),
    Claim(
        id="P1-mla-moe-ppl",
        paper="P1",
        text="MLA, MoE and Muon together improve perplexity",
        value="8 to 12 % better",
        experiments=("p1-factorial",),
    ),
    Claim(
        id="P1-multiplicative",
        paper="P1",
        text="The gains of MLA, MoE and Muon multiply",
        value="no interaction",
        experiments=("p1-factorial",),
    ),
    Claim(
        id="P1-15",
        paper="P1",
        text="Detailed procedures for 15 architectural and optimizer components",
        value="15 components",
        experiments=("p1-components",),
    ),
    Claim(
        id="P1-stability",
        paper="P1",
        text="Training with Muon is stable over more than 100 runs",
        value="100+ runs",
        experiments=("p1-stability",),
    ),
    Claim(
        id="P1-ns",
        paper="P1",
        text="Newton-Schulz with its coefficients orthogonalises the update",
        value="3.4445, -4.7750, 2.0315",
        experiments=("p1-polynomials",),
    ),
    Claim(
        id="P1-rate",
        paper="P1",
        text="Muon converges under standard assumptions",
        value="O(1/√T)",
        experiments=("theory-rate",),
    ),
    Claim(
        id="P1-spectral",
        paper="P1",
        text="Spectral regularisation prevents gradient explosion",
        value="no number given",
        experiments=("theory-spectral",),
    ),
    Claim(
        id="P1-stiefel",
        paper="P1",
        text="Muon is connected to natural gradient on the Stiefel manifold",
        value="no number given",
        experiments=("theory-stiefel",),
    ),
    Claim(
        id="P1-steepest",
        paper="P1",
        text="Muon is steepest descent under the spectral norm",
        value="equality",
        experiments=("theory-steepest",),
    ),
    Claim(
        id="P1-scale",
        paper="P1",
        text="Decoder-only models of 30M to 200M parameters",
        value="30M to 200M",
        experiments=("p1-sizes",),
    ),
    Claim(
        id="P1-guide",
        paper="P1",
        text="Practical guidelines for an implementation",
        value="a guide",
    ),
    Claim(
        id="P2-T1",
        paper="P2",
        text="Muon beats AdamW in loss, and takes longer (Table 1)",
        value="loss 0.0476 against 0.0547, -13.2 %; time +12.7 %",
        experiments=("p2-table1",),
    ),
    Claim(
        id="P2-T2",
        paper="P2",
        text="Momentum and Newton-Schulz act together, momentum most (Table 2)",
        value="loss: both 2.5347, momentum 5.4336, Newton-Schulz 3.8273, neither 5.2608",
        experiments=("p2-table2",),
    ),
    Claim(
        id="P2-T3",
        paper="P2",
        text="Best learning rate, momentum and Newton-Schulz steps (Table 3)",
        value="0.05, 0.95 and 7; 18.6 times as sensitive to the learning rate",
        experiments=("p2-table3",),
    ),
    Claim(
        id="P2-T4",
        paper="P2",
        text="MHSA and ReLU have the lowest loss of two attentions and four activations (Table 4)",
        value="MHSA 4.6883 to 4.8262, MHLA 4.7078 to 4.85 (the last estimated)",
        experiments=("p2-table4",),
    ),
    Claim(
        id="P2-leak",
        paper="P2",
        text="Validation loss and accuracy of a held-out split",
        value="0.0476 nats at 99 % accuracy",
        experiments=("p2-leak",),
    ),
    Claim(
        id="P2-flops",
        paper="P2",
        text="Latent attention needs less operations",
        value="4 times less at 512 tokens, 16 times at 2048",
        experiments=("p2-attention-cost",),
    ),
    Claim(
        id="P2-mem",
        paper="P2",
        text="Latent attention needs less memory",
        value="75 to 97 % less beyond 512 tokens",
        experiments=("p2-attention-cost",),
    ),
    Claim(
        id="P2-state",
        paper="P2",
        text="Muon's optimizer state is smaller than AdamW's",
        value="up to 50 % less",
        experiments=("p2-state",),
    ),
    Claim(
        id="P2-crossover",
        paper="P2",
        text="MHLA overtakes MHSA after 800 steps (a projection)",
        value="5 to 10 % lower loss",
        experiments=("p2-crossover",),
    ),
    Claim(
        id="P2-latents",
        paper="P2",
        text="The number of latents against the sequence length (future work)",
        value="none given",
        experiments=("p2-latents",),
    ),
    Claim(
        id="P2-ntk",
        paper="P2",
        text="Bounds for Muon and MHLA through the neural tangent kernel (future work)",
        value="none given",
        experiments=("theory-ntk",),
    ),
    Claim(
        id="P2-multimodal",
        paper="P2",
        text="Other data than text (future work)",
        value="none given",
    ),
    Claim(
        id="P2-profile",
        paper="P2",
        text="The overhead of Newton-Schulz, and integration with FSDP (future work)",
        value="none given",
        experiments=("p2-overhead",),
    ),
    Claim(
        id="P2-params",
        paper="P2",
        text="Parameters of the models with MHSA and MHLA",
        value="79.06M and 81.86M",
        experiments=("p2-params",),
    ),
)
