"""Time and memory of every attention kind over the length; writes a table and a log-log plot.

python -m benchmarks.attention --lengths 512 1024 2048 --rounds 20
"""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console

from muonlab import machine
from muonlab.bench import attention


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """``only`` names kinds of `default_kinds`; results are added to those in ``out``."""

    lengths: tuple[int, ...] = attention.LENGTHS
    rounds: int = 20
    dim: int = 384
    only: tuple[str, ...] = ()
    out: Path = Path("results/attention")


def main(options: Options) -> None:
    warnings.filterwarnings("ignore", message="attention kind mhla is not causal")
    machine.keep_freed_memory()
    kinds = attention.default_kinds()
    kinds = {name: kinds[name] for name in options.only or kinds}
    costs = attention.measure_attention(
        kinds, lengths=options.lengths, dim=options.dim, rounds=options.rounds
    )
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "costs.jsonl"
    old = record.read_text().splitlines() if record.exists() else []
    merged = {
        (c.kind, c.length): c for c in (attention.AttentionCost(**json.loads(r)) for r in old)
    }
    merged |= {(cost.kind, cost.length): cost for cost in costs}
    costs = sorted(merged.values(), key=lambda cost: cost.length)
    record.write_text("".join(json.dumps(asdict(cost)) + "\n" for cost in costs))
    console = Console()
    console.print(attention.attention_table(costs))
    if sum(length >= 2048 for length in {cost.length for cost in costs}) >= 2:
        console.print(attention.exponent_table(costs))
    attention.plot_attention(costs, options.out / "attention.png")


if __name__ == "__main__":
    main(tyro.cli(Options))
