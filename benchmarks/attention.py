"""Time and memory of every attention kind over the length; writes a table and a log-log plot.

python -m benchmarks.attention --lengths 512 1024 2048 --rounds 20
"""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import tyro
from rich.console import Console

from muonlab import allocator
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
    allocator.keep_freed_memory()
    kinds = attention.default_kinds()
    kinds = {name: kinds[name] for name in options.only or kinds}
    costs = attention.measure_attention(
        kinds, lengths=options.lengths, dim=options.dim, rounds=options.rounds
    )
    options.out.mkdir(parents=True, exist_ok=True)
    costs = _add_to(options.out / "attention.csv", costs)
    console = Console()
    console.print(attention.attention_table(costs))
    if sum(length >= 2048 for length in {cost.length for cost in costs}) >= 2:
        console.print(attention.exponent_table(costs))
    attention.plot_attention(costs, options.out / "attention.png")


def _add_to(path: Path, costs: list[attention.AttentionCost]) -> list[attention.AttentionCost]:
    """Write ``costs`` and the earlier ones of other kinds and lengths; return them all."""
    rows = pd.DataFrame([asdict(cost) for cost in costs])
    if path.exists():
        rows = pd.concat((pd.read_csv(path), rows))
    rows = rows.drop_duplicates(["kind", "length"], keep="last")
    rows = rows.sort_values("length", kind="stable")
    rows.to_csv(path, index=False, float_format="%.6g")
    return [attention.AttentionCost(**row) for row in rows.to_dict("records")]


if __name__ == "__main__":
    main(tyro.cli(Options))
