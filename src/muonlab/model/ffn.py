"""Dense feed-forward layers and the activations that dense and expert layers share.

Shapes: B batch, T tokens, D model width, F hidden width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from muonlab.model.dropout import Dropout
from muonlab.model.layers import Linear

Activation = Literal["relu", "gelu", "silu", "tanh", "relu2"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": F.tanh,
    "relu2": lambda x: F.relu(x).square(),  # 2109.08668
}


def activate(hidden: Tensor, activation: Activation, gated: bool) -> Tensor:
    """``act(h)``, or ``act(gate) * up`` for a fused (…, 2F) ``hidden`` (GLU family, 2002.05202)."""
    if not gated:
        return ACTIVATIONS[activation](hidden)
    gate, up = hidden.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


def check_activation(activation: str, hidden_dim: int) -> None:
    """Raise ValueError unless both values are legal."""
    if activation not in get_args(Activation):
        legal = ", ".join(get_args(Activation))
        raise ValueError(f"activation is {activation!r}; it must be one of {legal}")
    if hidden_dim < 1:
        raise ValueError(f"hidden_dim is {hidden_dim}; it must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseConfig:
    """Two-matrix feed-forward; ``gated`` adds the third matrix (silu + gated = SwiGLU)."""

    kind: Literal["dense"] = "dense"
    hidden_dim: int = 512
    activation: Activation = "silu"
    gated: bool = False

    def __post_init__(self) -> None:
        check_activation(self.activation, self.hidden_dim)

    def build(self, dim: int, dropout: float, layer: int) -> "FeedForward":
        return FeedForward(dim, self.hidden_dim, self.activation, self.gated, dropout)

    def num_parameters(self, dim: int, layer: int) -> int:
        return dim * self.hidden_dim * (3 if self.gated else 2)

    def num_active_parameters(self, dim: int, layer: int) -> int:
        return self.num_parameters(dim, layer)

    def flops_per_token(self, dim: int, layer: int) -> int:
        """Forward FLOPs of the matrix products."""
        return 2 * self.num_parameters(dim, layer)

    def kept_weights(self, dim: int, layer: int) -> int:
        """Weights of which the backward pass keeps a copy in the compute precision."""
        return self.num_parameters(dim, layer)

    def kept_values(self, dim: int, num_tokens: int, layer: int) -> int:
        """Values that the backward pass keeps of one layer."""
        return num_tokens * (dim + self.hidden_dim * (4 if self.gated else 2))


class FeedForward(nn.Module):
    """(…, D) -> (…, D)."""

    def __init__(
        self, dim: int, hidden_dim: int, activation: Activation, gated: bool, dropout: float
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.activation: Activation = activation
        self.gated = gated
        self.expand = Linear(dim, hidden_dim * (2 if gated else 1))
        self.out = Linear(hidden_dim, dim)
        self.dropout = Dropout(dropout)

    def muon_layout(self) -> dict[str, dict]:
        """The fused gate and up projections are two matrices to an optimizer that cares."""
        blocks = (self.hidden_dim, self.hidden_dim) if self.gated else None
        return {"expand.weight": {"role": "hidden", "row_blocks": blocks}}

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(activate(self.expand(x), self.activation, self.gated)))
