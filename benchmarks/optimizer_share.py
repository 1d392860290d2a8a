"""What Muon's step adds to P2's training step of 12 micro-batches of 8 × 512 tokens.

python -m benchmarks.optimizer_share --vocab 49152
"""

import argparse
import dataclasses

import torch

from benchmarks.train_step import SHAPES
from muonlab.allocator import keep_freed_memory
from muonlab.bench.interleave import interleave
from muonlab.machine import describe, resolve_dtype
from muonlab.optim.config import P2_MUON

MICRO_BATCHES = 12  # 49,152 tokens an update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    print(describe())
    shape = dataclasses.replace(SHAPES["p2"], vocab=arguments.vocab)
    model = shape.config(gated=False).build(seed=0)
    model.compute_dtype = resolve_dtype("auto", torch.device("cpu"))
    optimizer = P2_MUON.build(model)
    tokens = torch.randint(shape.vocab, (shape.batch, shape.length))

    def micro_batch() -> None:
        model(tokens, tokens).loss.backward()

    timings = interleave(
        {
            "forward and backward of a micro-batch": micro_batch,
            "optimizer step": optimizer.step,
            "optimizer step with diagnostics": lambda: optimizer.step(diagnostics=True),
        },
        rounds=arguments.rounds,
    )
    training, step, diagnosed = (timing.median for timing in timings.values())
    update = MICRO_BATCHES * training + step
    for name, timing in timings.items():
        print(f"{name:<40} {timing.median:.3f} s (spread {timing.spread:.2f})")
    print(f"Muon is {step / update:.1%} of an update of {MICRO_BATCHES} micro-batches")
    print(f"diagnostics add {(diagnosed - step) / update:.1%} to it")


if __name__ == "__main__":
    main()
