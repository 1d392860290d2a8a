"""`muonlab inspect`: what a recipe is and costs, from its config alone."""

import json as json_format
import math
import warnings
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from muonlab.cli.configs import chosen_config
from muonlab.cli.options import CacheDir, Data, Overrides, RecipeName

if TYPE_CHECKING:
    from muonlab.config import RunConfig
    from muonlab.custom_optimizer import AnyOptimizer
    from muonlab.model.accounting import Accounting


def inspect_recipe(
    recipe_name: Annotated[
        RecipeName,
        tyro.conf.arg(metavar="RECIPE", help_behavior_hint="(default: list all)"),
    ] = "",
    overrides: Overrides = (),
    *,
    data: Data = (),
    config: Annotated[
        bool, tyro.conf.arg(help="print the complete config as JSON instead")
    ] = False,
    json: Annotated[bool, tyro.conf.arg(help="print the numbers as JSON instead")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Print a recipe's parameters, FLOPs, bytes, and the optimizer of every parameter.

    Without a recipe, list all recipes.
    """
    from muonlab.config import to_json
    from muonlab.optim import Muon, describe_groups, format_groups
    from muonlab.recipes import describe_recipes

    console = Console()
    if not recipe_name:
        table = Table("recipe", "what it is")
        for name, purpose in describe_recipes().items():
            table.add_row(name, purpose)
        console.print(table)
        return
    chosen = chosen_config(recipe_name, data, overrides, cache_dir)
    if config:
        print(to_json(chosen), end="")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # printed below
        model = chosen.model.build(0, "meta")
    optimizer = chosen.optimizer.build(model)
    if json:
        _print_json(chosen, optimizer)
        return
    _print_costs(console, chosen, optimizer)
    if isinstance(optimizer, Muon):
        print(format_groups(describe_groups(model, optimizer.param_groups)))
    for warning in chosen.model.attention.warnings:
        console.print(f"warning: {warning}", style="bold red")


def _print_json(config: "RunConfig", optimizer: "AnyOptimizer") -> None:
    from muonlab.model.accounting import account

    settings = config.train
    micro_batch = settings.micro_batch_size or settings.batch_size
    costs = account(
        config.model, batch=micro_batch, length=settings.sequence_length, bytes_per_value=2
    )
    tokens = settings.batch_size * settings.sequence_length
    flops = optimizer.step_flops()
    values = {
        "parameters": costs.parameters,
        "active_parameters": costs.active_parameters,
        "muon_parameters": _muon_parameters(optimizer),
        "forward_flops_per_token": costs.forward_flops,
        "backward_flops_per_token": costs.backward_flops,
        "tokens_per_update": tokens,
        "model_flops_per_update": 3 * costs.forward_flops * tokens,
        "optimizer_flops_per_update": None if math.isnan(flops) else flops,
        "weight_bytes": costs.weight_bytes,
        "gradient_bytes": costs.gradient_bytes,
        "optimizer_bytes": _optimizer_bytes(costs, optimizer),
        "activation_bytes": costs.activation_bytes,
        "decoding_state_bytes": costs.state_bytes,
        "parts": [
            {
                "name": part.name,
                "parameters": part.parameters,
                "active_parameters": part.active_parameters,
                "forward_flops_per_token": part.forward_flops,
            }
            for part in costs.parts
        ],
    }
    print(json_format.dumps(values, indent=2))


def _optimizer_bytes(costs: "Accounting", optimizer: "AnyOptimizer") -> int | None:
    """Of its state; None for one that is not muonlab's: only training tells."""
    from muonlab.optim import Muon

    if not isinstance(optimizer, Muon):
        return None
    return costs.optimizer_bytes(_muon_parameters(optimizer))


def _muon_parameters(optimizer: "AnyOptimizer") -> int:
    return sum(
        parameter.numel()
        for group in optimizer.param_groups
        for parameter in group["params"]
        if group.get("algorithm") == "muon"
    )


def _print_costs(console: Console, config: "RunConfig", optimizer: "AnyOptimizer") -> None:
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
    tokens = settings.batch_size * settings.sequence_length
    update_flops = 3 * costs.forward_flops * tokens
    memory = Table("memory", title=f"bf16, {micro_batch} × {settings.sequence_length} tokens")
    memory.add_column("MB", justify="right")
    for name, num_bytes in (
        ("weights (fp32)", costs.weight_bytes),
        ("gradients (fp32)", costs.gradient_bytes),
        ("optimizer state (fp32)", _optimizer_bytes(costs, optimizer)),
        ("activations (bf16, about)", costs.activation_bytes),
        ("decoding state (bf16)", costs.state_bytes),
    ):
        memory.add_row(name, "unknown" if num_bytes is None else f"{num_bytes / 1e6:,.1f}")
    console.print(memory)
    flops = optimizer.step_flops()
    console.print(
        f"backward {costs.backward_flops / 1e6:,.3f} MFLOP/token; one update of {tokens:,} tokens: "
        f"model {update_flops / 1e9:,.1f} GFLOP, optimizer "
        + (
            "unknown (its factory has no step_flops)"
            if math.isnan(flops)
            else f"{flops / 1e9:,.1f} GFLOP ({flops / update_flops:.1%})"
        )
    )
