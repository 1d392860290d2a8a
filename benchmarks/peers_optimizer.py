"""Other Muons as callables that make one step over a benchmark's parameter set."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from muonlab.bench.optimizer import SETS, make_parameters, separate_matrices


def keller_jordan(name: str) -> Callable[[], None]:
    """The algorithm as published (kellerjordan.github.io/posts/muon), matrix by matrix."""
    matrices, rest = (make_parameters(shapes) for shapes in SETS[name])
    separate = separate_matrices(matrices)
    momenta = [torch.zeros_like(p) for p in separate]
    adamw = torch.optim.AdamW(rest, lr=1e-3, fused=True)

    @torch.no_grad()
    def step() -> None:
        for parameter, momentum in zip(separate, momenta, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            momentum.lerp_(gradient, 0.05)
            update = _newton_schulz(gradient.lerp(momentum, 0.95))
            rows, columns = parameter.shape
            parameter.add_(update, alpha=-1e-3 * max(1.0, rows / columns) ** 0.5)
        adamw.step()

    return step


def _newton_schulz(gradient: Tensor) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.mT
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def pytorch_optimizer_muon(name: str) -> Callable[[], object]:
    """pytorch-optimizer's, with its fastest settings: foreach and the Gram form."""
    from pytorch_optimizer import Muon  # pyright: ignore[reportMissingImports]

    matrices, rest = (make_parameters(shapes) for shapes in SETS[name])
    groups: list[dict[str, Any]] = [
        {"params": separate_matrices(matrices), "use_muon": True},
        {"params": rest, "use_muon": False},
    ]
    optimizer = Muon(groups, lr=1e-3, foreach=True, ns_method="gram_newton_schulz")
    return optimizer.step


def heavyball_muon(name: str) -> Callable[[], object]:
    """heavyball's; it compiles parts of its step, which takes minutes on a CPU."""
    import heavyball  # pyright: ignore[reportMissingImports]

    matrices, rest = (make_parameters(shapes) for shapes in SETS[name])
    separate: list[nn.Parameter] = separate_matrices(matrices)
    optimizer = heavyball.Muon(separate, lr=1e-3, compile_step=False)
    adamw = torch.optim.AdamW(rest, lr=1e-3, fused=True)
    gradients = [p.grad for p in separate]

    def step() -> None:
        for parameter, gradient in zip(separate, gradients, strict=True):
            parameter.grad = gradient  # heavyball clears gradients after its step
        optimizer.step()
        adamw.step()

    return step
