"""AdamW for the parameters that Muon does not move, with torch's own kernels."""

from collections import defaultdict
from typing import Any

from torch import Tensor
from torch.optim.adamw import adamw

from muonlab.optim.state import new_adamw_state

_FUSED_DEVICES = ("cpu", "cuda")


def step_adamw(group: dict[str, Any], state: dict[Tensor, dict[str, Tensor]]) -> None:
    """One AdamW step of every parameter of ``group`` that has a gradient."""
    kinds: dict[tuple[str, bool], list[Tensor]] = defaultdict(list)
    for parameter in group["params"]:
        if parameter.grad is None:
            continue
        if not state[parameter]:
            state[parameter].update(new_adamw_state(parameter))
        device = parameter.device.type
        fused = device in _FUSED_DEVICES and _equal_strides(parameter, state[parameter])
        kinds[device, fused].append(parameter)
    for (device, fused), parameters in kinds.items():
        states = [state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [own["exp_avg"] for own in states],
            [own["exp_avg_sq"] for own in states],
            [],
            [own["step"] for own in states],
            fused=fused,
            foreach=False if not fused else None,
            capturable=device == "cuda" and not fused,  # else it would read the step on the host
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _equal_strides(parameter: Tensor, state: dict[str, Tensor]) -> bool:
    """The fused kernel walks through memory, so it is right only where all tensors agree."""
    gradient = parameter.grad
    assert gradient is not None
    others = (gradient, state["exp_avg"], state["exp_avg_sq"])
    return all(tensor.stride() == parameter.stride() for tensor in others)
