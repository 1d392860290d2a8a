"""What latents carry in a language model: equal tokens, paired seeds, and the control without them.

    python -m benchmarks.latents_quality --seeds 3

Recipe `small` on sequences of 1024 tokens with full attention, with block-causal latents, and with
attention inside the chunks alone. Writes runs.csv (validation loss over training), positions.csv
(final validation loss by place in the sequence: latents can help beyond the first chunk only) and
curves.png; prints paired differences. Finished runs are not trained again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import tyro
from scipy import stats

from muonlab import allocator
from muonlab.checkpoints import load_weights
from muonlab.config import RunConfig
from muonlab.data import TokenData
from muonlab.model import LanguageModel
from muonlab.model.attention import AttentionConfig, CausalMHLAConfig, MHSAConfig
from muonlab.optim.config import MuonConfig
from muonlab.recipes import small
from muonlab.runs import RunDirectory
from muonlab.train import train


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Which runs; each arm sees the same tokens in the same order for a seed."""

    seeds: int = 3
    steps: int = 300
    sequence_length: int = 1024
    chunk: int = 128
    latents: tuple[int, ...] = (64,)
    cache: Path = Path("cache")
    runs: Path = Path("runs")
    out: Path = Path("results/latents-quality")

    def arms(self) -> dict[str, AttentionConfig]:
        latent = CausalMHLAConfig(num_heads=4, chunk=self.chunk)
        return {
            "mhsa": MHSAConfig(num_heads=4),
            "chunk only": replace(latent, num_latents=0),
            **{f"{count} latents": replace(latent, num_latents=count) for count in self.latents},
        }

    def config(self, arm: str, attention: AttentionConfig, seed: int) -> RunConfig:
        base = small()
        tokens = base.train.batch_size * base.train.sequence_length
        return replace(
            base,
            name="latents-quality",
            variant=arm.replace(" ", "-"),
            seed=seed,
            model=replace(base.model, max_length=self.sequence_length, attention=attention),
            optimizer=MuonConfig(lr=0.012),  # results/small-learning-rate
            train=replace(
                base.train,
                steps=self.steps,
                batch_size=tokens // self.sequence_length,
                sequence_length=self.sequence_length,
                checkpoint_every=100,
                keep_checkpoints=1,
            ),
        )


def loss_by_chunk(model: LanguageModel, data: TokenData, length: int, chunk: int) -> Iterator[dict]:
    """Validation loss of the tokens in the first, second, … chunk of their sequence."""
    losses = torch.zeros(length, dtype=torch.float64)
    counted = torch.zeros(length, dtype=torch.float64)
    for tokens, targets in data.evaluation_batches("validation", 4, length):
        scores, _ = model.score(tokens, targets)
        losses += scores.losses.view(-1, length).double().sum(0)
        counted += scores.counted.view(-1, length).double().sum(0)
    for start in range(0, length, chunk):
        part = slice(start, start + chunk)
        yield {"position": start, "loss": (losses[part].sum() / counted[part].sum()).item()}


def difference(finals: pd.DataFrame, arm: str, control: str) -> str:
    """Mean paired difference of final losses and its 95 % interval."""
    paired = (finals[arm] - finals[control]).to_numpy()
    half = stats.t.ppf(0.975, len(paired) - 1) * stats.sem(paired) if len(paired) > 1 else np.nan
    return f"{arm} - {control}: {paired.mean():+.4f} ± {half:.4f} nats/token, {len(paired)} seeds"


def draw(curves: pd.DataFrame, positions: pd.DataFrame, path: Path) -> None:
    """Means over seeds: loss over tokens, and final loss by position against chunk only."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    losses = curves.pivot_table(index="tokens", columns="arm", values="loss", sort=False).iloc[1:]
    places = positions.pivot_table(index="position", columns="arm", values="loss", sort=False)
    gains = places.sub(places["chunk only"], axis=0)
    losses.plot(ax=left, xlabel="training tokens", ylabel="validation loss (nats/token)")
    gains.plot(
        ax=right,
        marker="o",
        xlabel="first of 128 positions in the sequence",
        ylabel="validation loss minus chunk only (nats/token)",
    )
    seeds = sorted(curves["seed"].unique().tolist())
    figure.suptitle(f"recipe small, 1024 tokens: mean of n = {len(seeds)}, seeds {seeds}")
    figure.savefig(path, dpi=120)


def main(options: Options) -> None:
    allocator.keep_freed_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    data = small().data.prepare(options.cache)
    curves, positions = [], []
    for seed, (arm, attention) in product(range(options.seeds), options.arms().items()):
        config = options.config(arm, attention, seed)
        run = RunDirectory.place(options.runs, config)
        if run.status() != "finished":
            train(config, run, data, progress=False)
        label = {"arm": arm, "seed": seed}
        rows = [row for row in run.metrics() if "val/loss" in row]
        curves += [
            label | {"step": row["step"], "tokens": row["tokens"], "loss": row["val/loss"]}
            for row in rows
        ]
        model = config.model.build(0)
        load_weights(model, run.load_checkpoint().model, run.path)
        parts = loss_by_chunk(model.eval(), data, options.sequence_length, options.chunk)
        positions += [label | part for part in parts]
        print(f"{arm}, seed {seed}: {rows[-1]['val/loss']:.4f}", flush=True)
    curves, positions = pd.DataFrame(curves), pd.DataFrame(positions)
    curves.to_csv(options.out / "runs.csv", index=False, float_format="%.5f")
    positions.to_csv(options.out / "positions.csv", index=False, float_format="%.5f")
    draw(curves, positions, options.out / "curves.png")
    finals = curves[curves["step"] == options.steps].pivot_table(
        index="seed", columns="arm", values="loss"
    )
    for arm, control in product(options.arms(), ("chunk only", "mhsa")):
        if arm != control:
            print(difference(finals, arm, control))


if __name__ == "__main__":
    main(tyro.cli(Options))
