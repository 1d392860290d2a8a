"""The options of a parameter group: their legal values, checked at the border."""

import difflib
import math
from numbers import Real
from typing import Any, Literal

from torch import Tensor

from muonlab.optim.polar import DTYPES
from muonlab.optim.schedules import SCHEDULE_NAMES, resolve_schedule

Algorithm = Literal["muon", "adamw"]
Scale = Literal["keller", "match_rms_adamw", "spectral", "none"]
SecondMoment = Literal["none", "normuon", "adamuon"]

_CHOICES = {
    "algorithm": ("muon", "adamw"),
    "scale": ("keller", "match_rms_adamw", "spectral", "none"),
    "second_moment": ("none", "normuon", "adamuon"),
    "dtype": ("auto", *DTYPES),
}
_FLAGS = ("nesterov", "cautious", "row_equilibration")
_AT_LEAST_ZERO = ("lr", "weight_decay")
_BELOW_ONE = ("momentum", "beta2")
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
    """Raise ValueError, naming the option, its value and what is legal, on the first bad one."""
    for name, legal in _CHOICES.items():
        if options[name] not in legal:
            raise ValueError(f"{name} {options[name]!r} is unknown: legal are {', '.join(legal)}")
    for name in _FLAGS:
        if not isinstance(options[name], bool):
            raise ValueError(f"{name} {options[name]!r} must be True or False")
    for name in _AT_LEAST_ZERO:
        _check_range(name, options[name], high=math.inf)
    for name in _BELOW_ONE:
        _check_range(name, options[name], high=1.0)
    betas = options["betas"]
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"betas {betas!r} must be two numbers in [0, 1)")
    for beta in betas:
        _check_range("betas", beta, high=1.0)
    if not options["eps"] > 0:
        raise ValueError(f"eps {options['eps']!r} must be positive")
    if options["schedule"] not in SCHEDULE_NAMES:
        resolve_schedule(options["schedule"])


def _check_range(name: str, value: Any, *, high: float) -> None:
    if isinstance(value, Tensor):
        if value.numel() != 1 or name != "lr":
            raise ValueError(f"{name} must be a number, not a tensor of shape {tuple(value.shape)}")
        return  # reading it would synchronise with the device
    legal = "a finite number of at least 0" if math.isinf(high) else f"in [0, {high:g})"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} {value!r} must be {legal}")
    if not 0 <= float(value) < high:
        raise ValueError(f"{name} {value!r} must be {legal}")


def update_scale(scale: str, m: int, n: int) -> float:
    """The factor of an orthogonalised m × n update."""
    if scale == "keller":  # github.com/KellerJordan/Muon
        return max(1.0, m / n) ** 0.5
    if scale == "match_rms_adamw":  # 2502.16982 (Moonlight): RMS 0.2, as AdamW's updates have
        return 0.2 * max(m, n) ** 0.5
    if scale == "spectral":  # 2310.17813: spectral norm sqrt(fan-out / fan-in)
        return (m / n) ** 0.5
    return 1.0
