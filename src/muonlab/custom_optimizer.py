"""``optimizer.kind=custom``: any `torch.optim.Optimizer`, made by a function that the user names.

Reading such a config executes nothing: only `CustomConfig.build` runs the factory.
"""

import contextlib
import inspect
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from muonlab import user_code
from muonlab.optim import Muon
from muonlab.user_code import UserCodeError

PLAIN = (Tensor, str, bool, int, float, type(None))  # what a checkpoint may hold


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomConfig:
    """Your own optimizer: ``make(model, **options)`` returns any torch.optim.Optimizer.

    ``factory`` is ``package.module:make`` or ``path/to/file.py:make``. An optimizer's class serves
    as well; it is given all trainable parameters as one group. ``options`` are passed on: their
    names and values are the factory's. ``sha256`` is the hash of the factory's source, which the
    run's fingerprint contains: null takes the source as it is now.
    ``make.step_flops``, if there is one, is called with the model and returns the FLOPs of a step.
    """

    qk_clip: ClassVar[None] = None  # is an option of Muon

    kind: Literal["custom"] = "custom"
    factory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None

    def __post_init__(self) -> None:
        place, colon, name = self.factory.rpartition(":")
        module = all(part.isidentifier() for part in place.split("."))
        if not (colon and name.isidentifier() and (module or place.endswith(".py"))):
            raise ValueError(
                f"factory is {self.factory!r}; it must be package.module:make or "
                f"path/to/file.py:make"
            )
        if self.sha256 is None:
            object.__setattr__(self, "sha256", user_code.source_hash(place))

    @property
    def lr(self) -> float:
        """The learning rate among the options; NaN where the factory's own is taken."""
        return float(self.options.get("lr", math.nan))

    @property
    def label(self) -> str:
        """What its runs are called: the factory's name, or its file's if that is ``make``."""
        place, _, name = self.factory.rpartition(":")
        if name == "make":
            name = place.removesuffix(".py").replace("\\", "/").rpartition("/")[2]
            name = name.rpartition(".")[2]
        return re.sub(r"[^A-Za-z0-9_-]", "_", name).lstrip("-") or "custom"

    def identity(self) -> dict[str, Any]:
        """What decides the optimizer: the same source elsewhere is the same optimizer."""
        name = self.factory.rpartition(":")[2]
        return {"kind": self.kind, "factory": name, "sha256": self.sha256} | {
            "options": dict(self.options)
        }

    def build(self, model: nn.Module) -> "CustomOptimizer":
        """Execute the factory; raises UserCodeError where it or its optimizer cannot serve."""
        place, _, name = self.factory.rpartition(":")
        if user_code.source_hash(place) != self.sha256:
            raise UserCodeError(
                f"the source of optimizer.factory {self.factory} is no longer the one of this "
                f"config; optimizer.sha256=null takes it as it is now, for a new run"
            )
        module = user_code.load(place)
        make = user_code.attribute_of(module, name, place)
        optimizer = self._call(make, model, module.__file__)
        try:
            _check(optimizer, model)
        except ValueError as error:
            raise UserCodeError(f"optimizer.factory {self.factory}: {error}") from None
        count: Any = getattr(make, "step_flops", lambda model: math.nan)
        return CustomOptimizer(optimizer, count(model))

    def _call(self, make: Any, model: nn.Module, file: str | None) -> Any:
        if not callable(make):
            raise UserCodeError(
                f"optimizer.factory {self.factory} is {type(make).__name__}; it must be a function"
            )
        target: Any = model
        if inspect.isclass(make) and issubclass(make, Optimizer):
            target = [p for p in model.parameters() if p.requires_grad]
        signature = inspect.signature(make)
        try:
            signature.bind(target, **self.options)
        except TypeError as error:
            legal = list(signature.parameters)[1:]
            raise UserCodeError(
                f"optimizer.factory {self.factory}: {error}; its options: "
                f"{', '.join(legal) or 'none'}"
            ) from None
        with user_code.one_line_errors(self.factory, file):
            made: Any = make  # a class or a function: both are called the same
            return made(target, **self.options)


class CustomOptimizer:
    """A torch.optim.Optimizer with what the training loop asks of Muon."""

    def __init__(self, optimizer: Optimizer, flops: float) -> None:
        self.optimizer = optimizer
        self.diagnostics: dict[str, float] = {}
        self._flops = flops

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def state(self) -> dict[Tensor, Any]:
        return self.optimizer.state

    def step_flops(self) -> float:
        """FLOPs of one step as the factory states them; NaN where it does not."""
        return self._flops

    def state_bytes(self) -> int:
        """Bytes of all tensors that the optimizer holds beside the parameters."""
        return sum(tensor.nbytes for tensor in _tensors(list(self.optimizer.state.values())))

    @torch.no_grad()
    def clip_(self, max_norm: float | None) -> dict[str, Tensor]:
        """As `Muon.clip_`; ``norm`` and ``scale``."""
        found = (p.grad for group in self.param_groups for p in group["params"])
        gradients = [gradient for gradient in found if gradient is not None]
        norm = nn.utils.get_total_norm(gradients)
        scale = torch.ones_like(norm)
        if max_norm is not None:
            too_large = norm.isfinite() & (norm > max_norm)
            scale = torch.where(too_large, max_norm / (norm + 1e-6), scale)
            for gradient in gradients:
                gradient.mul_(scale.to(gradient.device))
        return {"norm": norm, "scale": scale}

    def step(
        self, *, diagnostics: bool = False, read: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """As `Muon.step`: one update if all that is ``read`` is finite; it has no diagnostics."""
        tensors = dict(read or {})
        numbers = torch.stack(list(tensors.values())).tolist() if tensors else []
        if all(map(math.isfinite, numbers)):
            self.optimizer.step()
        return dict(zip(tensors, numbers, strict=True))

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Raises UserCodeError where a checkpoint could not be read back safely."""
        state = self.optimizer.state_dict()
        if kind := _not_plain(state):
            raise UserCodeError(
                f"{type(self.optimizer).__name__}.state_dict() holds a {kind}; a checkpoint can "
                f"hold tensors, numbers, text, and lists, tuples and dicts of them"
            )
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)

    def switch(self, mode: Literal["eval", "train"]) -> None:
        """Put the weights to evaluate or to train into the model, where these are not the same.

        Schedule-free optimizers have ``eval()`` and ``train()`` for it.
        """
        if callable(switch := getattr(self.optimizer, mode, None)):
            switch()


AnyOptimizer = Muon | CustomOptimizer


@contextlib.contextmanager
def weights_to_evaluate(optimizer: AnyOptimizer) -> Iterator[None]:
    """Within, the model has the weights that the optimizer would have it judged and kept by."""
    if isinstance(optimizer, CustomOptimizer):
        optimizer.switch("eval")
    try:
        yield
    finally:
        weights_to_train(optimizer)


def weights_to_train(optimizer: AnyOptimizer) -> None:
    """Give the model the weights that the optimizer computes gradients with."""
    if isinstance(optimizer, CustomOptimizer):
        optimizer.switch("train")


def _check(optimizer: Any, model: nn.Module) -> None:
    """Raise ValueError unless the loop can train all of ``model`` by it."""
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"it returned {type(optimizer).__name__}; it must be a torch.optim one")
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    wanted = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if missing := [name for key, name in wanted.items() if key not in trained]:
        raise ValueError(
            f"its optimizer lacks {missing[0]} ({len(missing)} of {len(wanted)} parameters); "
            f"it must train all"
        )
    if len(trained) > len(wanted):
        raise ValueError("its optimizer has parameters that the model does not train")
    for index, group in enumerate(optimizer.param_groups):
        if "lr" not in group:
            raise ValueError(f"group {index} of its optimizer has no lr, which the schedule sets")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError("its optimizer's step needs a closure, which the training loop has not")


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _not_plain(values: Any) -> str | None:
    """The type of the first value that is no plain data."""
    if isinstance(values, dict | list | tuple):
        parts = [*values, *values.values()] if isinstance(values, dict) else values
        return next(filter(None, map(_not_plain, parts)), None)
    return None if type(values) in PLAIN or isinstance(values, Tensor) else type(values).__name__
