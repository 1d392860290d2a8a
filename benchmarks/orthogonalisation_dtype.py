"""Does the dtype of the orthogonalisation change what a small mixture of experts learns?

    python -m benchmarks.orthogonalisation_dtype --seeds 3

Recipe `small` with 32 fine-grained experts and 32 tokens an expert and update, trained with the
matrix products in fp32, in bf16, and in bf16 without the fp32 path for matrices lost in rounding.
Prints validation losses by seed, seconds of the optimizer, and what the gradients were like.
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

from muonlab.config import RunConfig
from muonlab.data import TokenData
from muonlab.model.moe import MoEConfig
from muonlab.optim import polar, update
from muonlab.optim.config import MuonConfig
from muonlab.recipes import small
from muonlab.runs import RunDirectory
from muonlab.train import train

ARMS = {  # name: (dtype, the threshold under which fp32 takes over)
    "fp32": ("fp32", polar.RESOLVED),
    "bf16": ("bf16", polar.RESOLVED),
    "bf16-alone": ("bf16", 0.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Which runs; each arm sees the same tokens in the same order for a seed."""

    seeds: int = 3
    steps: int = 200
    cache: Path = Path("cache")
    runs: Path = Path("runs/orthogonalisation-dtype")

    def config(self, arm: str, seed: int) -> RunConfig:
        base = small()
        experts = MoEConfig(hidden_dim=88, num_experts=32, top_k=2, gated=True)
        return replace(
            base,
            name="orthogonalisation-dtype",
            variant=arm,
            seed=seed,
            model=replace(base.model, ffn=experts),
            optimizer=MuonConfig(lr=0.012, dtype=ARMS[arm][0]),  # type: ignore[arg-type]
            train=replace(
                base.train,
                steps=self.steps,
                batch_size=4,
                sequence_length=128,
                evaluate_every=self.steps,
                evaluate_batches=100,
                checkpoint_every=self.steps,
            ),
        )


@contextmanager
def watched(resolved: float) -> Iterator[dict[str, list[Tensor]]]:
    """Of the matrices of all steps within, effective ranks (Σσ²)² / Σσ⁴ and which were unreliable.

    With another threshold of `polar`.
    """
    found: dict[str, list[Tensor]] = {"ranks": [], "unreliable": []}
    iterate, normalise, threshold = update.polar_iterations, polar._normalise_gram_, polar.RESOLVED

    def iterations(x: Tensor, *arguments) -> tuple[Tensor, Tensor]:
        out, reliable = iterate(x, *arguments)
        found["unreliable"].append(~reliable)
        return out, reliable

    def gram(r: Tensor) -> tuple[Tensor, Tensor]:
        results = normalise(r)  # now of trace 1
        found["ranks"].append(1 / r.float().square().sum(dim=(1, 2)))
        return results

    update.polar_iterations, polar._normalise_gram_, polar.RESOLVED = iterations, gram, resolved
    try:
        yield found
    finally:
        update.polar_iterations, polar._normalise_gram_ = iterate, normalise
        polar.RESOLVED = threshold


def report(run: RunDirectory, ranks: Tensor, unreliable: Tensor) -> str:
    seconds = [row["train/optimizer_seconds"] for row in run.metrics() if "train/loss" in row]
    low, middle = ranks.quantile(torch.tensor([0.01, 0.5])).tolist()
    return (
        f"validation loss {run.summary()['val/loss']:.4f}  "
        f"optimizer {statistics.median(seconds):.4f} s a step  "
        f"effective rank: 1 % {low:.2f}, median {middle:.2f}  "
        f"again in fp32: {unreliable.double().mean():.2%} of {len(unreliable)}"
    )


def main(options: Options) -> None:
    data: TokenData = small().data.prepare(options.cache)
    for seed in range(options.seeds):
        for arm, (_, resolved) in ARMS.items():
            run = RunDirectory.place(options.runs, options.config(arm, seed))
            with watched(resolved) as found:
                train(options.config(arm, seed), run, data, progress=False)
            ranks, unreliable = (torch.cat(values) for values in found.values())
            print(f"seed {seed}  {arm:<22} {report(run, ranks, unreliable)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
