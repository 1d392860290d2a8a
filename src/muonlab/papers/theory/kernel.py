"""Networks at any width, and how far training moves their tangent kernel: for `ntk`.

A network's weights are standard normal and of one shape rule; what scales is a constant in front.
``ntk`` scaling reads out with 1/√width (1806.07572), ``spectral`` with 1/width: the mean-field
limit, in which features move, and the one that spectral norms of √(fan-out/fan-in) amount to
(2310.17813).

Shapes: P examples, D inputs, N width, parameters flat.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from muonlab.model.attention.causal_mhla import CausalMHLAConfig
from muonlab.model.attention.mhsa import MHSAConfig
from muonlab.optim import Muon
from muonlab.optim.groups import place_parameters

NetworkName = Literal["two layers", "mhsa", "causal_mhla", "causal_mhla, 4 heads"]
Scaling = Literal["ntk", "spectral"]
Algorithm = Literal["gd", "adamw", "muon"]
INPUTS = 16
EXAMPLES = 8
TOKENS = 16
HEAD_DIM = 8
MAX_UPDATES = 300


class TwoLayers(nn.Module):
    """W₂·tanh(W₁x/√D), without its output scale: (P, D) -> (P, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(INPUTS, width, bias=False)
        self.readout = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.tanh(self.hidden(x) / math.sqrt(INPUTS)))


class AttentionReadout(nn.Module):
    """Attention and a linear readout of its last token: (P, T, N) -> (P, 1).

    Hidden matrices are standard normal over √N, which the module's own Linear layers cannot say:
    `forward` divides them. The number of heads grows with the width, as the limit of attention
    needs (2006.10540), or is fixed.
    """

    def __init__(self, kind: NetworkName, width: int) -> None:
        super().__init__()
        heads = 4 if kind.endswith("4 heads") else width // HEAD_DIM
        config: MHSAConfig | CausalMHLAConfig = MHSAConfig(num_heads=heads)
        if kind != "mhsa":
            config = CausalMHLAConfig(num_heads=heads, num_latents=8, chunk=4)
        self.attention = config.build(width, TOKENS, 1e-6, 0.0)
        self.readout = nn.Linear(width, 1, bias=False)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        scaled = {
            name: value / math.sqrt(self.width) if value.ndim == 2 else value
            for name, value in self.attention.named_parameters()
        }
        return self.readout(functional_call(self.attention, scaled, (x,))[:, -1])


@dataclass(frozen=True, slots=True)
class Drift:
    """What training to half the loss did to the kernel K."""

    drift: float  # ‖K_T − K_0‖_F/‖K_0‖_F
    updates: int
    loss_ratio: float  # last over first


def build_network(kind: NetworkName, width: int, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with its inputs and targets (P, 1), all drawn from ``seed``, fp64.

    Inputs and targets of one seed are the same at every width; attention reads the inputs through a
    random isometry, so that widths differ in the network alone.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(EXAMPLES, 1, generator=generator, dtype=torch.float64)
    inputs = torch.randn(EXAMPLES, TOKENS, INPUTS, generator=generator, dtype=torch.float64)
    module: nn.Module
    if kind == "two layers":
        inputs = inputs[:, 0]
        module = TwoLayers(width)
    else:
        random = torch.randn(width, INPUTS, generator=generator, dtype=torch.float64)
        inputs = inputs @ torch.linalg.qr(random).Q.T * math.sqrt(width / INPUTS)
        module = AttentionReadout(kind, width)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:  # of a norm: stays as it is
                parameter.fill_(1.0).requires_grad_(False)
            else:
                parameter.normal_(generator=generator)
    return module, inputs, targets


def output(module: nn.Module, inputs: Tensor, scaling: Scaling, width: int) -> Tensor:
    """The network's outputs (P, 1) with the scale of its readout."""
    return module(inputs) / (math.sqrt(width) if scaling == "ntk" else width)


def tangent_kernel(module: nn.Module, outputs: Tensor) -> Tensor:
    """The empirical tangent kernel JJᵀ (P, P), one backward pass an example.

    `torch.func` cannot differentiate the attention's own backward passes, plain autograd can.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rows = []
    for value in outputs.flatten():
        gradients = torch.autograd.grad(value, parameters, retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def make_optimizer(module: nn.Module, algorithm: Algorithm, lr: float) -> Muon:
    """`muonlab.optim.Muon` over the module's trained matrices, each split as the module declares.

    Gradient descent is Muon without momentum and orthogonalisation.
    """
    places = [place for place in place_parameters(module) if place.parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [place.parameter], "layout": place.layout} for place in places
    ]
    for group in groups:
        if algorithm == "adamw":
            group["algorithm"] = "adamw"
        else:
            group["schedule"] = "keller5" if algorithm == "muon" else "none"
    return Muon(groups, lr=lr, weight_decay=0.0, momentum=0.0, scale="none", betas=(0.9, 0.95))


def train_to_half(
    kind: NetworkName, scaling: Scaling, algorithm: Algorithm, width: int, seed: int
) -> Drift:
    """Train on ½·mean (f − y)² until the loss has halved, at most 300 updates.

    The learning rate makes the first update lower the loss by 5 %, to first order: so widths,
    scalings and algorithms are compared at equal progress.
    """
    module, inputs, targets = build_network(kind, width, seed)

    def loss() -> Tensor:
        return 0.5 * (output(module, inputs, scaling, width) - targets).square().mean()

    first_kernel = tangent_kernel(module, output(module, inputs, scaling, width))
    first = loss()
    lr = 0.05 * first.item() / descent_rate(module, algorithm, first)
    optimizer = make_optimizer(module, algorithm, lr)
    current, updates = loss(), 0
    while current.item() > first.item() / 2 and updates < MAX_UPDATES:
        current.backward()
        optimizer.step()
        optimizer.zero_grad()
        current = loss()
        updates += 1
    last_kernel = tangent_kernel(module, output(module, inputs, scaling, width))
    drift = torch.linalg.matrix_norm(last_kernel - first_kernel)
    return Drift(
        drift=(drift / torch.linalg.matrix_norm(first_kernel)).item(),
        updates=updates,
        loss_ratio=(current / first).item(),
    )


def descent_rate(module: nn.Module, algorithm: Algorithm, loss: Tensor) -> float:
    """⟨G, step⟩ of one update at learning rate 1, the weights left as they were."""
    loss.backward(retain_graph=True)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    make_optimizer(module, algorithm, 1.0).step()
    rate = 0.0
    with torch.no_grad():
        for parameter, start in zip(parameters, before, strict=True):
            assert parameter.grad is not None
            rate += ((start - parameter) * parameter.grad).sum().item()
            parameter.copy_(start)
            parameter.grad = None
    return rate


def first_update(algorithm: Algorithm, residual_scale: float, width: int = 128) -> Tensor:
    """The first update of a two-layer network, flat, when the residual f − y is scaled."""
    module, inputs, _ = build_network("two layers", width, 0)
    outputs = output(module, inputs, "ntk", width)
    (residual_scale * outputs.detach() * outputs).mean().backward()
    before = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    make_optimizer(module, algorithm, 1.0).step()
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]) - before
