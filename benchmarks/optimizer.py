"""Time muonlab's Muon against torch's, Keller Jordan's, pytorch-optimizer's and heavyball's.

python -m benchmarks.optimizer p2 moe dense
"""

import argparse
import sys
from collections.abc import Callable

import torch

from benchmarks import peers_optimizer
from muonlab.allocator import keep_freed_memory
from muonlab.bench.optimizer import SETS, bench_optimizer, our_optimizer, torch_optimizer
from muonlab.machine import describe
from muonlab.optim import bf16_is_native, polar_express

# A narrower σ band than keller5's for σ ≥ 1e-2, in a step less: .976-1.013 against .682-1.134.
FOUR_STEPS = polar_express(4, lower_bound=1e-2)


def torch_in_fp32(name: str) -> Callable[[], None]:
    """torch.optim.Muon with its cast to bf16 left out: what it would be without bf16 units."""
    step = torch_optimizer(name)
    cast = torch.Tensor.bfloat16

    def fp32_step() -> None:
        torch.Tensor.bfloat16 = torch.Tensor.clone  # type: ignore[method-assign]
        try:
            step()
        finally:
            torch.Tensor.bfloat16 = cast  # type: ignore[method-assign]

    return fp32_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pytorch-optimizer", action="store_true", help="where it is installed")
    parser.add_argument("--heavyball", action="store_true", help="minutes to compile")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(describe())
    for name in arguments.sets:
        peers = {
            "muonlab, 4 minimax steps": our_optimizer(name, schedule=FOUR_STEPS).step,
            "torch.optim.Muon in fp32": torch_in_fp32(name),
        }
        if bf16_is_native(torch.device("cpu")):  # else it takes minutes a step
            peers["Keller Jordan"] = peers_optimizer.keller_jordan(name)
        if arguments.pytorch_optimizer:
            peers["pytorch-optimizer"] = peers_optimizer.pytorch_optimizer_muon(name)
        if arguments.heavyball:
            peers["heavyball"] = peers_optimizer.heavyball_muon(name)
        found = bench_optimizer(name, rounds=arguments.rounds, peers=peers, report=progress)
        print(found.text(), flush=True)


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
