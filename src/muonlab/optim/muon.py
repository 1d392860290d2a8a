"""Muon: one optimizer for a whole model.

Matrices get momentum and an orthogonalised update; everything else gets AdamW, inside the same
optimizer, with one state dict. Groups say which: ``{"params": […], "algorithm": "muon"}``.
"""

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer, ParamsT

from muonlab.optim.diagnostics import Collector
from muonlab.optim.layout import MatrixSpec
from muonlab.optim.options import check_options
from muonlab.optim.polar import Workspace, step_flops
from muonlab.optim.state import check_state_dict, names_of, new_adamw_state, new_muon_state
from muonlab.optim.update import Piece, batches, num_workers, update_batch
from muonlab.optim.workers import parallel_map

_GROUP_DATA = {"params", "param_names", "layouts", "initial_lr"}


class NonfiniteGradientError(RuntimeError):
    """A gradient holds NaN or infinity; nothing was changed."""


class Muon(Optimizer):
    """Muon for matrices and stacks of matrices, AdamW for the rest.

    ``Muon(build_groups(model), lr=…)`` serves a whole model; ``Muon([p, q], lr=…)`` takes bare
    matrices [m, n] or stacks [E, m, n] and by default does what torch.optim.Muon does. Every option
    but ``nonfinite`` and ``batch_bytes`` may also stand in a group.

    Args:
        lr: learning rate; a one-element tensor is used without being read.
        weight_decay: decoupled, multiplied by ``lr`` and not by the scale.
        momentum, nesterov: M ← μM + (1 − μ)G; the update is G + μ(M − G), or M.
        schedule: a name of `SCHEDULE_NAMES` or a tuple of (a, b, c); ``"none"`` leaves the momentum
            as it is, ``"svd"`` is the exact polar factor.
        scale: ``keller`` √max(1, m/n), ``match_rms_adamw`` 0.2·√max(m, n), ``spectral`` √(m/n), or
            ``none``.
        dtype: of the matrix products: ``auto``, ``fp32``, ``bf16``, ``fp16``.
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
        self.diagnostics: dict[str, float] = {}
        self.block_update_rms: dict[str, Tensor] = {}
        self.num_skipped_steps = 0
        self._workspaces: list[Workspace] = []
        self._specs: dict[Tensor, MatrixSpec] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; raises ValueError naming the parameter or option that is not legal."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
        except ValueError:
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        unknown = set(group) - set(self.defaults) - _GROUP_DATA
        if unknown:
            raise ValueError(
                f"group option {sorted(unknown)[0]!r} is unknown: legal are {sorted(self.defaults)}"
            )
        check_options(group)
        if not group["params"]:
            raise ValueError(f"a group with algorithm {group['algorithm']!r} has no parameters")
        layouts = group.setdefault("layouts", [None] * len(group["params"]))
        if len(layouts) != len(group["params"]):
            raise ValueError(f"{len(layouts)} layouts for {len(group['params'])} parameters")
        for name, parameter, layout in zip(names_of(group), group["params"], layouts, strict=True):
            if parameter.is_complex() or not parameter.is_floating_point():
                raise ValueError(f"{name}: dtype {parameter.dtype} must be real floating point")
            if group["algorithm"] == "adamw":
                continue
            if not parameter.is_contiguous():
                raise ValueError(f"{name}: Muon needs a contiguous parameter")
            try:
                self._specs[parameter] = MatrixSpec.from_layout(parameter.shape, layout)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    # Opaque to torch.compile, as torch's own optimizers are where they read values on the host;
    # torch.compiler.disable would import the compiler here.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, *, diagnostics: bool = False
    ) -> Any:
        """Update every parameter that has a gradient; returns the closure's loss.

        ``diagnostics=True`` fills `diagnostics` (flat metrics) and `block_update_rms` (per matrix).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        norms = self._gradient_norms()
        bad = self._first_nonfinite(norms)
        if bad is not None:
            if self.nonfinite == "raise":
                raise NonfiniteGradientError(
                    f"{bad}: the gradient is not finite; nothing was changed"
                )
            self.num_skipped_steps += 1
            return loss
        for group in self.param_groups:
            if group["algorithm"] == "adamw":
                self._step_adamw(group)
        collected = self._step_muon(norms, diagnostics=diagnostics)
        if diagnostics:
            self.diagnostics = collected.summary()
            self.block_update_rms = collected.block_update_rms()
        return loss

    def _step_muon(self, norms: dict[Tensor, list[Tensor]], *, diagnostics: bool) -> Collector:
        """Every batch of every Muon group, side by side where cores and workspace allow it."""
        found = [
            (list(self._pieces(group, norms)), group)
            for group in self.param_groups
            if group["algorithm"] == "muon"
        ]
        workers = min((num_workers(*each, self.batch_bytes) for each in found), default=1)
        if len(self._workspaces) != workers:
            self._workspaces = [Workspace() for _ in range(workers)]
        free: SimpleQueue[Workspace] = SimpleQueue()
        for workspace in self._workspaces:
            free.put(workspace)
        work = []
        shapes = set()
        for pieces, group in found:
            for batch in batches(pieces, group, self.batch_bytes // workers, workers):
                shape = batch[0].parameter.shape[1:]
                collector = Collector(sample=shape not in shapes) if diagnostics else None
                shapes.add(shape)
                work.append((batch, group, collector))

        def update(task: tuple[list[Piece], dict[str, Any], Collector | None]) -> None:
            workspace = free.get()
            try:
                update_batch(*task, workspace)
            finally:
                free.put(workspace)

        parallel_map(update, work, workers)
        return Collector.joined(collector for *_, collector in work if collector is not None)

    def _gradient_norms(self) -> dict[Tensor, list[Tensor]]:
        """Of every parameter with a gradient; one norm a matrix for stacks under Muon."""
        found = []
        for name, parameter in self._named_parameters():
            if parameter.grad is not None:
                if parameter.grad.is_sparse:
                    raise ValueError(f"{name}: sparse gradients are not supported")
                found.append(parameter)
        on_cpu = all(parameter.device.type == "cpu" for parameter in found)
        workers = torch.get_num_threads() if on_cpu else 1
        found.sort(key=torch.numel, reverse=True)  # none begins a long one when others are done
        norms = parallel_map(self._gradient_norm, found, workers)
        return dict(zip(found, norms, strict=True))

    def _gradient_norm(self, parameter: Tensor) -> list[Tensor]:
        gradient = parameter.grad
        assert gradient is not None
        spec = self._specs.get(parameter)
        if spec is not None and spec.is_stack:
            return [torch.linalg.vector_norm(block, dim=(1, 2)) for block in spec.blocks(gradient)]
        flat = gradient.flatten()
        return [torch.dot(flat, flat).view(1)]  # at memory bandwidth; norm is a third as fast

    def _first_nonfinite(self, norms: dict[Tensor, list[Tensor]]) -> str | None:
        if not norms or bool(torch.cat([n for ns in norms.values() for n in ns]).isfinite().all()):
            return None
        for name, parameter in self._named_parameters():  # a norm may overflow where values do not
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return name
        return None

    def _pieces(self, group: dict[str, Any], norms: dict[Tensor, list[Tensor]]) -> Iterator[Piece]:
        normuon = group["second_moment"] == "normuon"
        for name, parameter in zip(names_of(group), group["params"], strict=True):
            if parameter.grad is None:
                continue
            spec, state = self._specs[parameter], self.state[parameter]
            if not state:
                state.update(new_muon_state(parameter, spec, group["second_moment"]))
            parameters = spec.blocks(parameter)
            gradients = spec.blocks(parameter.grad)
            momenta = spec.blocks(state["momentum"])
            moments = [None] * len(parameters)
            if group["second_moment"] != "none":
                moments = spec.blocks(state["second_moment"], 1 if normuon else None)
            for index, gradient in enumerate(gradients):
                active = _active(gradient, norms[parameter][index]) if spec.is_stack else None
                yield Piece(
                    name, parameters[index], gradient, momenta[index], moments[index], active
                )

    def _step_adamw(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(new_adamw_state(parameter))
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=fused,
            foreach=not fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict`; raises ValueError naming the first parameter that does not fit."""
        check_state_dict(state_dict, self.param_groups)
        super().load_state_dict(state_dict)
        # The base class casts to the parameter's dtype; the fp32 moments of half-precision
        # parameters must come back as they were.
        for index, parameter in enumerate(_flat_parameters(self.param_groups)):
            for key, value in state_dict["state"].get(index, {}).items():
                own = self.state[parameter]
                device = value.device if key == "step" else parameter.device
                own[key] = value.detach().to(device, copy=True)
        self._specs.clear()
        for group in self.param_groups:
            self._check_group(group)

    def state_bytes(self) -> int:
        """Bytes of all state tensors."""
        return sum(
            value.numel() * value.element_size()
            for state in self.state.values()
            for value in state.values()
        )

    def workspace_bytes(self) -> int:
        """Bytes of the buffers that steps reuse."""
        return sum(workspace.num_bytes for workspace in self._workspaces)

    def step_flops(self) -> int:
        """FLOPs of the matrix products of one step."""
        return sum(
            step_flops(self._specs[parameter].block_shapes, group["schedule"])
            for group in self.param_groups
            if group["algorithm"] == "muon"
            for parameter in group["params"]
        )

    def _named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for group in self.param_groups:
            yield from zip(names_of(group), group["params"], strict=True)


def _flat_parameters(groups: list[dict[str, Any]]) -> Iterator[Tensor]:
    for group in groups:
        yield from group["params"]


def _active(gradient: Tensor, norms: Tensor) -> Tensor | None:
    """Per matrix of (B, m, n), 1.0 or 0.0 as (B, 1, 1); None if every gradient is nonzero."""
    idle = norms == 0
    if not bool(idle.any()):
        return None
    idle &= gradient.abs().amax(dim=(1, 2)) == 0  # tiny values have a norm of 0 too
    return (~idle).to(torch.float32).view(-1, 1, 1)
