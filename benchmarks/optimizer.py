"""Time muonlab's Muon against torch's, Keller Jordan's, pytorch-optimizer's and heavyball's.

python -m benchmarks.optimizer p2 moe dense
"""

import argparse

from benchmarks import peers_optimizer
from muonlab.allocator import keep_freed_memory
from muonlab.bench.optimizer import SETS, bench_optimizer, our_optimizer
from muonlab.machine import describe
from muonlab.optim import polar_express

# A narrower σ band than keller5's for σ ≥ 1e-2, in a step less: .976-1.013 against .682-1.134.
FOUR_STEPS = polar_express(4, lower_bound=1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heavyball", action="store_true", help="minutes to compile")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(describe())
    for name in arguments.sets:
        peers = {
            "muonlab, 4 minimax steps": our_optimizer(name, schedule=FOUR_STEPS).step,
            "Keller Jordan": peers_optimizer.keller_jordan(name),
            "pytorch-optimizer": peers_optimizer.pytorch_optimizer_muon(name),
        }
        if arguments.heavyball:
            peers["heavyball"] = peers_optimizer.heavyball_muon(name)
        print(bench_optimizer(name, rounds=arguments.rounds, peers=peers).text(), flush=True)


if __name__ == "__main__":
    main()
