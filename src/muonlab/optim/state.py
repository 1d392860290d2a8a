"""What Muon keeps for each parameter, and how a saved state is brought to these parameters.

`fitted_state` changes nothing: a state that does not fit is refused before anything moves.
"""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.layout import MatrixSpec
from muonlab.optim.options import GROUP_DATA, check_group

Group = dict[str, Any]


def new_muon_state(
    parameter: Tensor, spec: MatrixSpec, second_moment: str, device: torch.device | None = None
) -> dict[str, Tensor]:
    place = device or parameter.device
    state = {"momentum": torch.zeros(parameter.shape, dtype=parameter.dtype, device=place)}
    if second_moment != "none":
        columns = 1 if second_moment == "normuon" else spec.columns
        state["second_moment"] = torch.zeros(
            (spec.stack, spec.rows, columns),
            dtype=torch.promote_types(parameter.dtype, torch.float32),
            device=place,
        )
    return state


def new_adamw_state(parameter: Tensor, device: torch.device | None = None) -> dict[str, Tensor]:
    place = device or parameter.device
    return {
        "step": torch.zeros((), dtype=torch.float32, device=place),
        "exp_avg": torch.zeros_like(parameter, device=place),
        "exp_avg_sq": torch.zeros_like(parameter, device=place),
    }


def names_of(group: Group) -> list[str]:
    if "param_names" in group:
        return group["param_names"]
    return [f"parameter {index} {tuple(p.shape)}" for index, p in enumerate(group["params"])]


def fitted_state(
    saved: dict[str, Any], groups: list[Group], defaults: Group
) -> tuple[list[Group], dict[Tensor, dict[str, Tensor]]]:
    """The groups and the state that ``saved`` means for the parameters of ``groups``.

    Parameters are matched by name where both sides have names for all of them, else by position.
    Options of the saved groups count, also keys that schedulers put there; options that they lack
    keep their value. Raises ValueError naming the first thing that does not fit.
    """
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= set(saved):
        raise ValueError("the loaded state is no optimizer's: it has no 'state' or 'param_groups'")
    saved_groups = [part for group in saved["param_groups"] for part in _by_layout(group)]
    sources = _by_name(saved_groups, groups) or _by_position(saved_groups, groups)
    fitted, state = [], {}
    for number, (group, source) in enumerate(zip(groups, sources, strict=True)):
        origin = saved_groups[source[0][0]]
        algorithm = origin.get("algorithm")
        if algorithm != group["algorithm"]:
            raise ValueError(
                f"group {number} of the loaded state has algorithm {algorithm!r}, "
                f"this optimizer's has {group['algorithm']!r}"
            )
        options = {k: copy.deepcopy(v) for k, v in origin.items() if k not in GROUP_DATA}
        fitted.append(group | {"layout": origin.get("layout")} | options)
        check_group(fitted[-1], defaults)
        for name, parameter, (_, key) in zip(names_of(group), group["params"], source, strict=True):
            if key in saved["state"]:
                loaded, expected = saved["state"][key], _expected(name, parameter, fitted[-1])
                _check_state(name, loaded, expected)
                state[parameter] = {
                    part: torch.empty_like(like, device=parameter.device).copy_(loaded[part])
                    for part, like in expected.items()
                }
    return fitted, state


_Sources = list[list[tuple[int, Any]]]  # of each parameter of each group: saved group, state's key


def _by_name(saved_groups: list[Group], groups: list[Group]) -> _Sources | None:
    """None where a side lacks names, or uses one twice."""
    places: dict[str, tuple[int, Any]] = {}
    for number, group in enumerate(saved_groups):
        for name, key in zip(group.get("param_names", ()), group["params"], strict=False):
            places[_bare(name)] = (number, key)
    own = Counter(_bare(name) for group in groups for name in group.get("param_names", ()))
    if len(places) != sum(len(group["params"]) for group in saved_groups):
        return None
    if len(own) != sum(len(group["params"]) for group in groups):
        return None
    strangers = sorted(places.keys() ^ own.keys())
    if strangers:
        name = strangers[0]
        where = "the loaded state" if name in places else "this optimizer"
        raise ValueError(
            f"{name} is a parameter of {where} only (the loaded state has {len(places)}, this "
            f"optimizer {len(own)}); a state without 'param_names' is matched by position"
        )
    sources = [[places[_bare(name)] for name in group["param_names"]] for group in groups]
    for group, found in zip(groups, sources, strict=True):
        for name, (number, _) in zip(group["param_names"], found, strict=True):
            if number != found[0][0]:
                raise ValueError(
                    f"{name} and {group['param_names'][0]} are in one group here, in groups with "
                    f"other options or layouts in the loaded state; build the groups as they were"
                )
    return sources


def _by_position(saved_groups: list[Group], groups: list[Group]) -> _Sources:
    if len(saved_groups) != len(groups):
        raise ValueError(
            f"the loaded state has {len(saved_groups)} groups, this optimizer has {len(groups)}"
        )
    sources = []
    for number, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        if len(saved["params"]) != len(group["params"]):
            raise ValueError(
                f"group {number} of the loaded state has {len(saved['params'])} parameters, "
                f"this optimizer's has {len(group['params'])}"
            )
        sources.append([(number, key) for key in saved["params"]])
    return sources


def _bare(name: str) -> str:
    """Without what torch.compile and DistributedDataParallel put into names."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _by_layout(group: Group) -> list[Group]:
    """An older state's group, with a list ``layouts``, as one group for each layout."""
    if "layouts" not in group:
        return [group]
    shared = {k: v for k, v in group.items() if k not in ("params", "param_names", "layouts")}
    names = group.get("param_names")
    parts: list[Group] = []
    for index, (key, layout) in enumerate(zip(group["params"], group["layouts"], strict=True)):
        part = next((part for part in parts if part["layout"] == layout), None)
        if part is None:
            part = (
                shared | {"layout": layout, "params": []} | ({"param_names": []} if names else {})
            )
            parts.append(part)
        part["params"].append(key)
        if names:
            part["param_names"].append(names[index])
    return parts


def _expected(name: str, parameter: Tensor, group: Group) -> dict[str, Tensor]:
    meta = torch.device("meta")
    if group["algorithm"] == "adamw":
        return new_adamw_state(parameter, meta)
    try:
        spec = MatrixSpec.from_layout(parameter.shape, group["layout"])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return new_muon_state(parameter, spec, group["second_moment"], meta)


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
