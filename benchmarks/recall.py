"""Multi-query associative recall (2312.04927) with every pair further back than a chunk.

    python benchmarks/recall.py --latents 16 64 --seeds 3

A sequence is three stretches of C tokens: key-value pairs; filler; the keys again in another order,
each followed by its value, which the model must predict. Attention that stays within chunks of C
tokens cannot know any value: it is the control. Prints accuracy on fresh sequences.
"""

import statistics
import time
from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor

from muonlab import machine
from muonlab.model import ModelConfig
from muonlab.model.attention import CausalMHLAConfig, MHSAConfig
from muonlab.model.ffn import DenseConfig
from muonlab.model.loss import IGNORED
from muonlab.optim import Muon, build_groups


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallTask:
    """``num_pairs`` pairs of ``num_symbols`` keys and as many values, one use of a key each."""

    num_pairs: int = 16
    num_symbols: int = 64

    @property
    def chunk(self) -> int:
        return 2 * self.num_pairs

    @property
    def length(self) -> int:
        return 3 * self.chunk

    @property
    def vocab_size(self) -> int:
        return 2 * self.num_symbols + 1  # keys, values, filler

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and targets, (B, T) each; targets at the second showing of a key only."""
        P, S = self.num_pairs, self.num_symbols
        keys = torch.rand(size, S, generator=generator).argsort(1)[:, :P]
        values = torch.randint(S, 2 * S, (size, P), generator=generator)
        order = torch.rand(size, P, generator=generator).argsort(1)
        pairs = torch.stack((keys, values), dim=2)  # (B, P, 2)
        again = pairs.gather(1, order.unsqueeze(2).expand_as(pairs))
        filler = torch.full((size, self.chunk), 2 * S)
        tokens = torch.cat((pairs.flatten(1), filler, again.flatten(1)), dim=1)
        targets = torch.full_like(tokens, IGNORED)
        targets[:, 2 * self.chunk :: 2] = again[:, :, 1]
        return tokens, targets


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What to train: the two controls, and block-causal latents of every count asked for."""

    task: RecallTask = RecallTask()
    latents: tuple[int, ...] = (16, 32, 64)
    seeds: int = 1
    dim: int = 64
    num_heads: int = 2
    num_layers: int = 2
    batch: int = 64
    steps: int = 900
    learning_rate: float = 1e-2


def train(config: ModelConfig, options: Options, seed: int) -> float:
    """Accuracy on 1024 fresh sequences after training."""
    model = config.build(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = Muon(build_groups(model), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100, 2 - 2 * step / options.steps)
    )
    for _ in range(options.steps):
        model(*options.task.batch(options.batch, generator)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    scores, _ = model.eval().score(*options.task.batch(1024, generator))
    return (scores.correct.sum() / scores.counted.sum()).item()


def main(options: Options) -> None:
    machine.keep_freed_memory()
    task, heads = options.task, options.num_heads
    latent = CausalMHLAConfig(num_heads=heads, chunk=task.chunk)
    arms = {"mhsa": MHSAConfig(num_heads=heads)}
    arms |= {
        f"causal_mhla, {k} latents": replace(latent, num_latents=k) for k in (0, *options.latents)
    }
    for name, attention in arms.items():
        config = ModelConfig(
            vocab_size=task.vocab_size,
            dim=options.dim,
            num_layers=options.num_layers,
            max_length=task.length,
            attention=attention,
            ffn=DenseConfig(hidden_dim=2 * options.dim),
            tie_head=False,
            init_std=0.05,
        )
        start = time.perf_counter()
        accuracies = [train(config, options, seed) for seed in range(options.seeds)]
        shown = " ".join(f"{accuracy:.3f}" for accuracy in accuracies)
        seconds = time.perf_counter() - start
        print(f"{name:24} mean {statistics.mean(accuracies):.3f}  ({shown})  {seconds:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Options))
