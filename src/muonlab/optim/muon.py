"""Muon: one optimizer for a whole model.

Matrices get momentum and an orthogonalised update; everything else gets AdamW, inside the same
optimizer, with one state dict. Groups say which: ``{"params": […], "algorithm": "muon"}``.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from muonlab.optim.adamw import step_adamw
from muonlab.optim.batches import pieces_of
from muonlab.optim.gradients import NonfiniteGradientError, Sweep, refuse_sharded
from muonlab.optim.layout import MatrixSpec
from muonlab.optim.options import check_group, check_options
from muonlab.optim.polar import Workspace, resolve_dtype, step_flops
from muonlab.optim.processor import bf16_is_native, full_fp32
from muonlab.optim.state import fitted_state, names_of
from muonlab.optim.update import Update, read_together


class SlowDtypeWarning(UserWarning):
    """The matrix products are in a dtype that this processor does not multiply in hardware."""


class Muon(Optimizer):
    """Muon for matrices and stacks of matrices, AdamW for the rest.

    ``Muon(build_groups(model), lr=…)`` serves a whole model; ``Muon([p, q], lr=…)`` takes bare
    matrices [m, n] or stacks [E, m, n] and by default does what torch.optim.Muon does. Every option
    but ``nonfinite`` and ``batch_bytes`` may also stand in a group, and a group may say by
    ``layout`` how its parameters split into matrices (`MatrixSpec`).

    Args:
        lr: learning rate; a one-element tensor is used without being read.
        weight_decay: decoupled, multiplied by ``lr`` and not by the scale.
        momentum, nesterov: M ← μM + (1 − μ)G; the update is G + μ(M − G), or M.
        schedule: a name of `SCHEDULE_NAMES` or a tuple of (a, b, c); ``"none"`` leaves the momentum
            as it is, ``"svd"`` is the exact polar factor.
        scale: ``keller`` √max(1, m/n), ``match_rms_adamw`` 0.2·√max(m, n), ``spectral`` √(m/n), or
            ``none``.
        dtype: of the matrix products: ``fp32``, ``bf16``, ``fp16``, or ``bf16_large``: bf16 for
            matrices with at least 64 rows and columns, fp32 for smaller ones. ``auto`` becomes
            ``bf16_large`` where the processor multiplies bf16 in hardware (`bf16_is_native`), else
            ``fp32``, at the first step; the state dict keeps that choice.
        cautious: weight decay only where it agrees with the update (2510.12402).
        second_moment: ``none``, ``normuon`` (2510.05491), ``adamuon`` (2507.11005), with ``beta2``.
        row_equilibration: normalise the rows before orthogonalisation (MuonEq, 2603.28254).
        betas, eps: of AdamW; ``eps`` also of the second moments.
        nonfinite: at a NaN or infinite gradient ``"raise"``, or ``"skip"`` the whole step.
        batch_bytes: bound of the workspace that all steps share.

    In a stack of matrices, one whose gradient is exactly zero does not move at all: no update, no
    weight decay, momentum untouched. Parameters whose ``grad`` is None are left alone.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        schedule: str | tuple[tuple[float, float, float], ...] = "keller5",
        scale: str = "keller",
        dtype: str = "auto",
        cautious: bool = False,
        second_moment: str = "none",
        beta2: float = 0.95,
        row_equilibration: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        nonfinite: Literal["raise", "skip"] = "raise",
        batch_bytes: int = 256 << 20,
    ) -> None:
        if nonfinite not in ("raise", "skip"):
            raise ValueError(f"nonfinite {nonfinite!r} is unknown: legal are raise, skip")
        if batch_bytes < 1:
            raise ValueError(f"batch_bytes {batch_bytes} must be positive")
        defaults = {
            "algorithm": "muon",
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "schedule": schedule,
            "scale": scale,
            "dtype": dtype,
            "cautious": cautious,
            "second_moment": second_moment,
            "beta2": beta2,
            "row_equilibration": row_equilibration,
            "betas": betas,
            "eps": eps,
        }
        check_options(defaults)
        self.nonfinite = nonfinite
        self.batch_bytes = batch_bytes
        self.num_skipped_steps = 0
        self.diagnostics: dict[str, float] = {}
        self.block_update_rms: dict[str, Tensor] = {}
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("nonfinite", "batch_bytes", "num_skipped_steps", "diagnostics", "block_update_rms")
        return super().__getstate__() | {name: getattr(self, name) for name in kept}

    # What is made anew when it is missing, after a copy or in a new process.
    _workspaces: list[Workspace]
    _sweep: Sweep | None = None
    _dtypes_are_resolved = False
    _has_warned_of_no_gradients = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; raises ValueError naming the parameter or option that is not legal."""
        param_group["params"] = _as_list(param_group["params"])
        check_group(param_group, self.defaults)
        self._name_all_or_none(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_parameters(group)
        except ValueError:
            self.param_groups.pop()
            raise
        self._dtypes_are_resolved = False

    def _name_all_or_none(self, new: dict[str, Any]) -> None:
        """torch wants names in every group or in none: fill in those that are missing."""
        named = "param_names" in new or any(isinstance(each, tuple) for each in new["params"])
        groups_are_named = any("param_names" in group for group in self.param_groups)
        if named:
            missing = [group for group in self.param_groups if "param_names" not in group]
        else:
            missing = [new] if groups_are_named else []
        for group in missing:
            number = next(
                (n for n, old in enumerate(self.param_groups) if old is group),
                len(self.param_groups),
            )
            group["param_names"] = [f"group{number}.{i}" for i in range(len(group["params"]))]

    # Opaque to torch.compile, as torch's own optimizers are where they read values on the host;
    # torch.compiler.disable would import the compiler here.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def clip_(self, max_norm: float | None = None) -> dict[str, Tensor]:
        """Scale all gradients together to a global norm of at most ``max_norm``; None: only look.

        One sweep over the gradients that the next `step` uses again, as long as they stay as they
        are. Returns 0-d tensors on the gradients' device, without waiting for it: ``norm`` before
        clipping, ``norm_muon`` and ``norm_adamw`` of each algorithm's parameters (clipping acts on
        AdamW's step only: Muon's does not see the scale), and ``scale``, the factor applied.

        ``norm`` is finite exactly if all gradients are, as long as their squares stay in the range
        of fp32; where it is not, nothing is scaled. A training loop lets the step read it together
        with its loss, so that it waits for the device once:

            norms = optimizer.clip_(1.0)
            found = optimizer.step(read={"loss": loss, **norms})  # {"loss": 5.3, "norm": 0.9, …}
        """
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm {max_norm!r} must be positive, or None")
        self._sweep = Sweep(self.param_groups)
        norms = self._sweep.norms
        norm = norms["norm"]
        scale = torch.ones_like(norm)
        if max_norm is not None:
            too_large = norm.isfinite() & (norm > max_norm)
            scale = torch.where(too_large, max_norm / (norm + 1e-6), scale)
            self._sweep.scale_(scale)
        return norms | {"scale": scale}

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        diagnostics: bool = False,
        read: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Update every parameter that has a gradient; returns the closure's loss.

        ``diagnostics=True`` fills `diagnostics` (flat metrics) and `block_update_rms` (per matrix).
        ``read``: 0-d tensors that the step returns as numbers, in place of the loss. Where one of
        them is not finite, nothing moves, and what follows is left to the caller.

        A step waits for a GPU once: these values, whether the gradients are finite, and which
        matrices half precision could not resolve are one read. There is one more for each further
        half of ``batch_bytes`` that the directions of all matrices take.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sweep, self._sweep = self._sweep, None
        if sweep is None or not sweep.is_current():
            sweep = Sweep(self.param_groups)
        if not sweep.gradients:
            self._warn_of_no_gradients()
        elif not self._dtypes_are_resolved:
            self._resolve_dtypes()
        if "_workspaces" not in self.__dict__:
            self._workspaces = []
        copies: list[tuple[Tensor, Tensor]] = []
        found = pieces_of(self.param_groups, self.defaults, self.state, sweep, copies)
        with full_fp32():
            update = Update(found, self._workspaces, self.batch_bytes, diagnostics=diagnostics)
        read_too = read or {}
        norm, *answers = read_together([sweep.norms["norm"], *read_too.values(), *update.questions])
        numbers = dict(zip(read_too, answers, strict=False))
        result = loss if read is None else numbers
        if not all(map(math.isfinite, numbers.values())):
            self.num_skipped_steps += 1
            return result
        if not math.isfinite(norm) and (bad := sweep.first_nonfinite()) is not None:
            if self.nonfinite == "raise":
                raise NonfiniteGradientError(
                    f"{bad}: the gradient is not finite; nothing was changed"
                )
            self.num_skipped_steps += 1
            return result
        for group in self.param_groups:
            if group["algorithm"] == "adamw":
                step_adamw(group, self.state)
        with full_fp32():
            collected = update.finish(answers[len(numbers) :])
        for parameter, moved in copies:
            parameter.copy_(moved)
        if diagnostics:
            self.diagnostics = collected.summary()
            self.block_update_rms = collected.block_update_rms()
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in every optimizer of torch."""
        self._sweep = None  # it holds the gradients
        super().zero_grad(set_to_none)

    def _resolve_dtypes(self) -> None:
        """Settle ``auto``, and say so where a choice, perhaps of a loaded state, is slow here."""
        for group in self.param_groups:
            if group["algorithm"] != "muon":
                continue
            device = group["params"][0].device
            group["dtype"] = dtype = resolve_dtype(group["dtype"], device)
            slow = dtype.startswith("bf16") and not bf16_is_native(device)
            if slow or (dtype == "fp16" and device.type == "cpu"):
                warnings.warn(
                    f"dtype {dtype!r}, given or loaded: this {device.type} does not multiply it in "
                    f"hardware, so that a step may take many times as long as in fp32; to change "
                    f"it, set group['dtype'] = 'fp32'",
                    SlowDtypeWarning,
                    stacklevel=3,
                )
        self._dtypes_are_resolved = True

    def _warn_of_no_gradients(self) -> None:
        if not self._has_warned_of_no_gradients:
            self._has_warned_of_no_gradients = True
            warnings.warn(
                "Muon.step(): no parameter has a gradient, so nothing moved. If the model was "
                "trained, its parameters were replaced after the optimizer was built (by "
                "fully_shard, for example): build the optimizer afterwards",
                stacklevel=3,
            )

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict`; raises ValueError, naming what does not fit, before any change.

        Parameters are matched by name where both sides have names, else by position. Groups keep
        their options where the state has none, and take over what schedulers put into the state's.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            if changed is not None:
                state_dict = changed
        groups, state = fitted_state(state_dict, self.param_groups, self.defaults)
        self.state.clear()
        self.state.update(state)
        for group, fitted in zip(self.param_groups, groups, strict=True):
            group.update(fitted)
        self._dtypes_are_resolved = False
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def state_bytes(self) -> int:
        """Bytes of all state tensors."""
        return sum(
            value.numel() * value.element_size()
            for state in self.state.values()
            for value in state.values()
        )

    def workspace_bytes(self) -> int:
        """Bytes of the buffers that steps reuse."""
        return sum(workspace.num_bytes for workspace in self.__dict__.get("_workspaces", []))

    def step_flops(self) -> int:
        """FLOPs of the matrix products of one step."""
        return sum(
            step_flops(
                MatrixSpec.from_layout(parameter.shape, group["layout"]).block_shapes,
                group["schedule"],
            )
            for group in self.param_groups
            if group["algorithm"] == "muon"
            for parameter in group["params"]
        )

    def __repr__(self) -> str:
        return "\n".join(["Muon(", *map(_described, self.param_groups), ")"])


def _as_list(params: Any) -> list[Any]:
    if isinstance(params, set):
        raise TypeError("parameters must be an ordered collection, such as a list, not a set")
    return [params] if isinstance(params, Tensor) else list(params)


def _check_parameters(group: dict[str, Any]) -> None:
    """Raise ValueError, naming it, on a parameter that the group's algorithm cannot move."""
    if not group["params"]:
        raise ValueError(f"a group with algorithm {group['algorithm']!r} has no parameters")
    group.setdefault("layout", None)
    for name, parameter in zip(names_of(group), group["params"], strict=True):
        refuse_sharded(name, parameter)
        if parameter.is_complex() or not parameter.is_floating_point():
            raise ValueError(f"{name}: dtype {parameter.dtype} must be real floating point")
        if group["algorithm"] == "muon":
            try:
                MatrixSpec.from_layout(parameter.shape, group["layout"])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def _described(group: dict[str, Any]) -> str:
    count = sum(parameter.numel() for parameter in group["params"])
    names = ["lr", "weight_decay"]
    if group["algorithm"] == "muon":
        names += ["momentum", "schedule", "scale", "dtype"]
        names += [n for n in ("second_moment",) if group[n] != "none"]
        names += [n for n in ("cautious", "row_equilibration", "layout") if group[n]]
    else:
        names += ["betas"]
    options = ", ".join(f"{name} {group[name]}" for name in names)
    return (
        f"  {group['algorithm']}: {len(group['params'])} tensors, {count:,} parameters, {options}"
    )
