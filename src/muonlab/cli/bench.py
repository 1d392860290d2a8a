"""`muonlab bench …`: measurements on this machine, printed as tables."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.extras import SubcommandApp

from muonlab.cli.options import Native

application = SubcommandApp()
Rounds = Annotated[int, tyro.conf.arg(help="how often to time each, in turns")]


@application.command
def optimizer(
    *,
    sets: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="SET [SET ...]", help="sets of parameters")
    ] = (
        "p2",
        "moe",
        "dense",
    ),
    rounds: Rounds = 5,
) -> None:
    """Time a Muon step, against torch.optim.Muon and the least time that its FLOPs need."""
    from muonlab.bench import optimizer as optimizer_bench

    for name in sets:
        found = optimizer_bench.bench_optimizer(
            name, rounds=rounds, report=lambda line: print(line, file=sys.stderr, flush=True)
        )
        print(found.text(), flush=True)


@application.command
def attention(
    *,
    lengths: Annotated[
        tuple[int, ...], tyro.conf.arg(metavar="N [N ...]", help="sequence lengths in tokens")
    ] = (512, 1024, 2048, 4096),
    rounds: Rounds = 5,
    plot: Annotated[
        Path | None,
        tyro.conf.arg(help="also draw the curves into this PNG file", help_behavior_hint=""),
    ] = None,
) -> None:
    """Measure time and memory of every kind of attention over the sequence length."""
    from muonlab.bench import attention as attention_bench

    costs = attention_bench.measure_attention(
        attention_bench.default_kinds(), lengths=lengths, rounds=rounds
    )
    console = Console()
    console.print(attention_bench.attention_table(costs))
    if sum(length >= 2048 for length in set(lengths)) >= 2:
        console.print(attention_bench.exponent_table(costs))
    if plot is not None:
        attention_bench.plot_attention(costs, plot)


@application.command
def decode(
    *,
    size: Annotated[str, tyro.conf.arg(help="60m or 200m parameters")] = "60m",
    batches: Annotated[
        tuple[int, ...], tyro.conf.arg(metavar="N [N ...]", help="sequences decoded together")
    ] = (1, 8),
    contexts: Annotated[
        tuple[int, ...],
        tyro.conf.arg(metavar="N [N ...]", help="tokens before the first decoded one"),
    ] = (256, 1024),
    dtype: Annotated[
        Literal["auto", "bf16", "fp32"], tyro.conf.arg(help="auto: what this processor suits")
    ] = "auto",
    rounds: Rounds = 5,
    native_kernels: Native = False,
) -> None:
    """Measure decoding: latent attention with experts against dense attention of equal size."""
    import torch

    from muonlab import machine
    from muonlab.bench import decode as decode_bench
    from muonlab.model import native

    if native_kernels:
        native.enable()
    for batch in batches:
        for context in contexts:
            report = decode_bench.bench_decode(
                size,
                batch=batch,
                context=context,
                dtype=machine.resolve_dtype(dtype, torch.device("cpu")),
                rounds=rounds,
            )
            print(report.text(), flush=True)
