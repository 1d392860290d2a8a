"""The options of a parameter group: each with its legal values, checked at the border."""

import difflib
import functools
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal, get_args

from torch import Tensor

from muonlab.optim.polar import Dtype
from muonlab.optim.schedules import SCHEDULE_NAMES, resolve_schedule

Algorithm = Literal["muon", "adamw"]
Scale = Literal["keller", "match_rms_adamw", "spectral", "none"]
SecondMoment = Literal["none", "normuon", "adamuon"]


def _one_of(choices: Any) -> Callable[[str, Any], None]:
    legal = get_args(choices)

    def check(name: str, value: Any) -> None:
        if value not in legal:
            raise ValueError(f"{name} {value!r} is unknown: legal are {', '.join(legal)}")

    return check


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} {value!r} must be True or False")


def _number(name: str, value: Any, *, below: float = math.inf) -> None:
    legal = "a finite number of at least 0" if math.isinf(below) else f"in [0, {below:g})"
    if isinstance(value, Tensor):
        raise ValueError(f"{name} must be a number, not a tensor of shape {tuple(value.shape)}")
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < below:
        raise ValueError(f"{name} {value!r} must be {legal}")


_below_one = functools.partial(_number, below=1.0)


def _learning_rate(name: str, value: Any) -> None:
    if not (isinstance(value, Tensor) and value.numel() == 1):  # to read it would wait for a device
        _number(name, value)


def _betas(name: str, value: Any) -> None:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} {value!r} must be two numbers in [0, 1)")
    for beta in value:
        _below_one(name, beta)


def _positive(name: str, value: Any) -> None:
    if not value > 0:
        raise ValueError(f"{name} {value!r} must be positive")


def _schedule(name: str, value: Any) -> None:
    if value not in SCHEDULE_NAMES:
        resolve_schedule(value)


OPTIONS: dict[str, Callable[[str, Any], None]] = {
    "algorithm": _one_of(Algorithm),
    "lr": _learning_rate,
    "weight_decay": _number,
    "momentum": _below_one,
    "nesterov": _flag,
    "schedule": _schedule,
    "scale": _one_of(Scale),
    "dtype": _one_of(Dtype),
    "cautious": _flag,
    "second_moment": _one_of(SecondMoment),
    "beta2": _below_one,
    "row_equilibration": _flag,
    "betas": _betas,
    "eps": _positive,
}
# What a group carries beside its options.
GROUP_DATA = ("params", "param_names", "layout")
# Of other optimizers, with no effect here: better refused than silently without effect.
_OTHERS = {
    "layouts": "each group has one 'layout': build_groups(model) makes one group for each",
    "ns_steps": "'schedule' sets the steps",
    "ns_coefficients": "'schedule' sets the coefficients",
    "adjust_lr_fn": "'scale' is the option",
    "maximize": "change the sign of the loss",
    "amsgrad": "AdamW here has no such variant",
}
# Keys of schedulers and other libraries that resemble our options, and are kept.
_KEPT = ("initial_lr", "max_lr", "min_lr", "swa_lr", "lr_scale", "base_momentum", "max_momentum")


def check_group(group: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raise ValueError unless the options of ``group`` are legal; make its numbers plain ones.

    ``use_muon``, which other Muons know, sets the algorithm. Keys that nobody here knows are kept,
    as schedulers and other libraries put some into groups; only what looks like a misspelt option,
    or is an option of another optimizer, is refused.
    """
    if "use_muon" in group:
        algorithm = "muon" if group["use_muon"] else "adamw"
        if group.setdefault("algorithm", algorithm) != algorithm:
            raise ValueError(
                f"use_muon {group['use_muon']!r} contradicts algorithm {group['algorithm']!r}"
            )
    for name in set(group) - set(defaults) - set(GROUP_DATA) - set(_KEPT):
        if name in _OTHERS:
            raise ValueError(f"group option {name!r} has no effect here: {_OTHERS[name]}")
        close = difflib.get_close_matches(name, [*defaults, *GROUP_DATA], n=1, cutoff=0.75)
        if close:
            raise ValueError(
                f"group option {name!r} is unknown; did you mean {close[0]!r}? "
                f"legal are {', '.join(sorted(defaults))}"
            )
    options = defaults | group
    check_options(options)
    group.update({name: _plain(options[name]) for name in defaults})


def _plain(value: Any) -> Any:
    """Numbers of NumPy as Python's, so that a state dict holds plain data."""
    if isinstance(value, tuple | list):
        return type(value)(_plain(part) for part in value)
    if isinstance(value, Real) and not isinstance(value, Tensor | bool | int):
        return float(value)
    return value


def check_options(options: dict[str, Any]) -> None:
    """Raise ValueError, naming the option, its value and what is legal, on the first bad one.

    Keys that are no options are left alone.
    """
    for name, check in OPTIONS.items():
        if name in options:
            check(name, options[name])


def update_scale(scale: str, m: int, n: int) -> float:
    """The factor of an orthogonalised m × n update."""
    if scale == "keller":  # github.com/KellerJordan/Muon
        return max(1.0, m / n) ** 0.5
    if scale == "match_rms_adamw":  # 2502.16982 (Moonlight): RMS 0.2, as AdamW's updates have
        return 0.2 * max(m, n) ** 0.5
    if scale == "spectral":  # 2310.17813: spectral norm sqrt(fan-out / fan-in)
        return (m / n) ** 0.5
    return 1.0
