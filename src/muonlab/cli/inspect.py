"""`muonlab inspect`: what a recipe is and costs, from its config alone."""

import warnings
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from muonlab.cli.options import Overrides, RecipeName

if TYPE_CHECKING:
    from muonlab.config import RunConfig
    from muonlab.optim import Muon


def inspect_recipe(
    recipe_name: RecipeName = "", overrides: Overrides = (), *, config: bool = False
) -> None:
    """Print a recipe's parameters, FLOPs, bytes, and the optimizer of every parameter.

    Without a recipe: the list of recipes. With --config: the complete config as JSON.
    """
    from muonlab.config import override, to_json
    from muonlab.optim import describe_groups, format_groups
    from muonlab.recipes import describe_recipes, recipe

    console = Console()
    if not recipe_name:
        table = Table("recipe", "what it is")
        for name, purpose in describe_recipes().items():
            table.add_row(name, purpose)
        console.print(table)
        return
    chosen = override(recipe(recipe_name), list(overrides))
    if config:
        print(to_json(chosen), end="")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # printed below
        model = chosen.model.build(0, "meta")
    optimizer = chosen.optimizer.build(model)
    _print_costs(console, chosen, optimizer)
    print(format_groups(describe_groups(model, optimizer.param_groups)))
    for warning in chosen.model.attention.warnings:
        console.print(f"warning: {warning}", style="bold red")


def _print_costs(console: Console, config: "RunConfig", optimizer: "Muon") -> None:
    from muonlab.model.accounting import account

    settings = config.train
    micro_batch = settings.micro_batch_size or settings.batch_size
    costs = account(
        config.model, batch=micro_batch, length=settings.sequence_length, bytes_per_value=2
    )
    parts = Table("part", title=f"{config.name}/{config.label}")
    for column in ("parameters", "active", "forward MFLOP/token"):
        parts.add_column(column, justify="right")
    for part in costs.parts:
        parts.add_row(
            part.name,
            f"{part.parameters:,}",
            f"{part.active_parameters:,}",
            f"{part.forward_flops / 1e6:.3f}",
        )
    parts.add_section()
    parts.add_row(
        "total",
        f"{costs.parameters:,}",
        f"{costs.active_parameters:,}",
        f"{costs.forward_flops / 1e6:.3f}",
    )
    console.print(parts)
    muon_parameters = sum(
        parameter.numel()
        for group in optimizer.param_groups
        for parameter in group["params"]
        if group["algorithm"] == "muon"
    )
    tokens = settings.batch_size * settings.sequence_length
    update_flops = 3 * costs.forward_flops * tokens
    memory = Table("memory", title=f"bf16, {micro_batch} × {settings.sequence_length} tokens")
    memory.add_column("MB", justify="right")
    for name, num_bytes in (
        ("weights (fp32)", costs.weight_bytes),
        ("gradients (fp32)", costs.gradient_bytes),
        ("optimizer state (fp32)", costs.optimizer_bytes(muon_parameters)),
        ("activations (bf16, about)", costs.activation_bytes),
        ("decoding state (bf16)", costs.state_bytes),
    ):
        memory.add_row(name, f"{num_bytes / 1e6:,.1f}")
    console.print(memory)
    console.print(
        f"backward {costs.backward_flops / 1e6:,.3f} MFLOP/token; one update of {tokens:,} tokens: "
        f"model {update_flops / 1e9:,.1f} GFLOP, optimizer {optimizer.step_flops() / 1e9:,.1f} "
        f"GFLOP ({optimizer.step_flops() / update_flops:.1%})"
    )
