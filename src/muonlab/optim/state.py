"""What Muon keeps for each parameter, and whether a saved state fits these parameters."""

from typing import Any

import torch
from torch import Tensor

from muonlab.optim.layout import MatrixSpec


def new_muon_state(
    parameter: Tensor, spec: MatrixSpec, second_moment: str, device: str | None = None
) -> dict[str, Tensor]:
    place = device or parameter.device
    state = {"momentum": torch.zeros(parameter.shape, dtype=parameter.dtype, device=place)}
    if second_moment != "none":
        master = torch.promote_types(parameter.dtype, torch.float32)
        columns = 1 if second_moment == "normuon" else spec.columns
        stack = parameter.numel() // (spec.rows * spec.columns)
        state["second_moment"] = torch.zeros(
            (stack, spec.rows, columns), dtype=master, device=place
        )
    return state


def new_adamw_state(parameter: Tensor, device: str | None = None) -> dict[str, Tensor]:
    return {
        "step": torch.zeros((), dtype=torch.float32),
        "exp_avg": torch.zeros_like(parameter, device=device),
        "exp_avg_sq": torch.zeros_like(parameter, device=device),
    }


def names_of(group: dict[str, Any]) -> list[str]:
    if "param_names" in group:
        return group["param_names"]
    return [f"parameter {index} {tuple(p.shape)}" for index, p in enumerate(group["params"])]


def check_state_dict(state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Raise ValueError, naming the first group or parameter that a saved state does not fit."""
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(groups):
        raise ValueError(
            f"the loaded state has {len(saved_groups)} groups, this optimizer has {len(groups)}"
        )
    for number, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        if len(saved["params"]) != len(group["params"]):
            raise ValueError(
                f"group {number} of the loaded state has {len(saved['params'])} parameters, "
                f"this optimizer's has {len(group['params'])}"
            )
        if saved.get("algorithm") != group["algorithm"]:
            raise ValueError(
                f"group {number} of the loaded state has algorithm "
                f"{saved.get('algorithm')!r}, this optimizer's has {group['algorithm']!r}"
            )
        for name, parameter, index, layout in zip(
            names_of(group), group["params"], saved["params"], saved["layouts"], strict=True
        ):
            if index not in state_dict["state"]:
                continue
            loaded = state_dict["state"][index]
            if group["algorithm"] == "adamw":
                expected = new_adamw_state(parameter, device="meta")
            else:
                spec = MatrixSpec.from_layout(parameter.shape, layout)
                moment = saved["second_moment"]
                expected = new_muon_state(parameter, spec, moment, device="meta")
            _check_state(name, loaded, expected)


def _check_state(name: str, loaded: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    if set(loaded) != set(expected):
        raise ValueError(f"{name}: loaded state {sorted(loaded)} must be {sorted(expected)}")
    for key, value in expected.items():
        got = loaded[key]
        if got.shape != value.shape or got.dtype != value.dtype:
            raise ValueError(
                f"{name}: loaded {key} is {tuple(got.shape)} {got.dtype}, "
                f"must be {tuple(value.shape)} {value.dtype}"
            )
