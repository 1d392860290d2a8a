"""Time muonlab's Muon against torch's, Keller Jordan's, pytorch-optimizer's and heavyball's.

python -m benchmarks.optimizer p2 moe dense
"""

import argparse

from benchmarks import peers_optimizer
from muonlab.bench.optimizer import SETS, bench_optimizer, our_optimizer
from muonlab.machine import describe, keep_freed_memory

# Equal or narrower σ band than keller5's, in as many or fewer steps.
BEST_SCHEDULE = "polar_express"


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
            f"muonlab {BEST_SCHEDULE}": our_optimizer(name, schedule=BEST_SCHEDULE).step,
            "Keller Jordan": peers_optimizer.keller_jordan(name),
            "pytorch-optimizer": peers_optimizer.pytorch_optimizer_muon(name),
        }
        if arguments.heavyball:
            peers["heavyball"] = peers_optimizer.heavyball_muon(name)
        print(bench_optimizer(name, rounds=arguments.rounds, peers=peers).text(), flush=True)


if __name__ == "__main__":
    main()
