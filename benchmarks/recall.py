"""Multi-query associative recall (2312.04927) with every pair further back than a chunk.

    python -m benchmarks.recall --seeds 3

A sequence is key-value pairs, filler as long as a chunk, and the keys again in another order: at
each of them the model must name its value. Values are not shown a second time, so nothing in the
chunk of a question helps: attention within chunks is the control that must stay at chance.

The number of pairs grows during training, because no kind of attention finds the two steps of this
task (mark each value with the key before it, then look the key up) among 16 pairs in reasonable
time. All arms of a seed see the same sequences. Writes recall.csv and recall.png: accuracy on fresh
sequences. Runs that recall.csv already holds are not repeated.
"""

import time
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import pandas as pd
import torch
import tyro
from matplotlib.ticker import PercentFormatter, ScalarFormatter
from torch import Tensor

from muonlab import allocator
from muonlab.model import ModelConfig
from muonlab.model.attention import AttentionConfig, CausalMHLAConfig, MHSAConfig
from muonlab.model.ffn import DenseConfig
from muonlab.model.loss import IGNORED
from muonlab.optim import Muon, build_groups


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallTask:
    """Pairs of ``num_symbols`` keys and as many values, each key once; ``gap`` tokens of filler."""

    num_pairs: int = 16
    num_symbols: int = 64
    gap: int = 16

    @property
    def length(self) -> int:
        return 3 * self.num_pairs + self.gap

    @property
    def vocab_size(self) -> int:
        return 2 * self.num_symbols + 1  # keys, values, filler

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and targets, (B, T) each; the targets of the questions are their values."""
        P, S = self.num_pairs, self.num_symbols
        keys = torch.rand(size, S, generator=generator).argsort(1)[:, :P]
        values = torch.randint(S, 2 * S, (size, P), generator=generator)
        order = torch.rand(size, P, generator=generator).argsort(1)
        pairs = torch.stack((keys, values), dim=2).flatten(1)  # (B, 2·P)
        filler = torch.full((size, self.gap), 2 * S)
        tokens = torch.cat((pairs, filler, keys.gather(1, order)), dim=1)
        targets = torch.full_like(tokens, IGNORED)
        targets[:, -P:] = values.gather(1, order)
        return tokens, targets


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What to train: the two controls, and block-causal latents of every count asked for.

    Training begins with ``first_pairs`` pairs for ``hold`` of its steps; then their number grows
    evenly, and is that of the task from ``full`` of the steps on.
    """

    task: RecallTask = field(default_factory=RecallTask)
    latents: tuple[int, ...] = (4, 8, 16, 32, 64)
    chunk: int = 16
    seeds: int = 3
    dim: int = 64
    num_heads: int = 2
    num_layers: int = 2
    batch: int = 32
    steps: int = 1000
    first_pairs: int = 4
    hold: float = 0.4
    full: float = 0.7
    learning_rate: float = 1e-2
    out: Path = Path("results/recall")

    def arms(self) -> dict[str, AttentionConfig]:
        latent = CausalMHLAConfig(num_heads=self.num_heads, chunk=self.chunk)
        return {
            "mhsa": MHSAConfig(num_heads=self.num_heads),
            "chunk only": replace(latent, num_latents=0),
            **{f"{count} latents": replace(latent, num_latents=count) for count in self.latents},
        }

    def task_at(self, step: int) -> RecallTask:
        """The task of a training step."""
        grown = (step / self.steps - self.hold) / (self.full - self.hold)
        more = (self.task.num_pairs - self.first_pairs) * min(1.0, max(0.0, grown))
        return replace(self.task, num_pairs=self.first_pairs + round(more))


def train(attention: AttentionConfig, options: Options, seed: int) -> float:
    """Accuracy on 1024 fresh sequences after training."""
    config = ModelConfig(
        vocab_size=options.task.vocab_size,
        dim=options.dim,
        num_layers=options.num_layers,
        max_length=options.task.length,
        attention=attention,
        ffn=DenseConfig(hidden_dim=2 * options.dim),
        tie_head=False,
        init_std=0.05,
    )
    model = config.build(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = Muon(build_groups(model), lr=options.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50, 2 - 2 * step / options.steps)
    )
    for step in range(options.steps):
        model(*options.task_at(step).batch(options.batch, generator)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    scores, _ = model.eval().score(*options.task.batch(1024, generator))
    return (scores.correct.sum() / scores.counted.sum()).item()


def draw(accuracies: dict[str, list[float]], options: Options, path: Path) -> None:
    """Accuracy over the number of latents, one dot a seed, with both controls."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for arm, color in (("mhsa", "tab:blue"), ("chunk only", "tab:gray")):
        axes.axhline(mean(accuracies[arm]), color=color, linestyle="--", label=arm)
    of_latents = [accuracies[f"{count} latents"] for count in options.latents]
    axes.plot(options.latents, [mean(a) for a in of_latents], color="tab:orange", label="latents")
    for count, dots in zip(options.latents, of_latents, strict=True):
        axes.plot([count] * len(dots), dots, "o", color="tab:orange", alpha=0.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set(
        xlabel="latents a head, k",
        ylabel=f"accuracy, {options.task.num_pairs} pairs beyond the chunk",
        ylim=(0, 1.03),
    )
    axes.set_title(f"a dot a seed, n = {options.seeds}; line: mean")
    axes.legend()
    figure.savefig(path, dpi=120)


def main(options: Options) -> None:
    allocator.keep_freed_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "recall.csv"
    results = pd.read_csv(table).to_dict("records") if table.exists() else []
    done = {(row["arm"], row["seed"]) for row in results}
    for seed, (arm, attention) in product(range(options.seeds), options.arms().items()):
        if (arm, seed) in done:
            continue
        start = time.perf_counter()
        accuracy = train(attention, options, seed)
        print(
            f"{arm}, seed {seed}: {accuracy:.4f}  {time.perf_counter() - start:.0f} s", flush=True
        )
        results.append({"arm": arm, "seed": seed, "accuracy": accuracy})
        pd.DataFrame(results).to_csv(table, index=False, float_format="%.4f")
    accuracies = {
        arm: [row["accuracy"] for row in results if row["arm"] == arm] for arm in options.arms()
    }
    draw(accuracies, options, options.out / "recall.png")
    for arm, found in accuracies.items():
        print(f"{arm:12} mean {mean(found):.3f}, least {min(found):.3f}, {len(found)} seeds")


if __name__ == "__main__":
    main(tyro.cli(Options))
