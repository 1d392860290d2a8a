"""Mixture of experts: router, balancing, stacked experts; no token is ever dropped.

Shapes: B batch, T tokens, N = B·T, D width, E experts, K experts a token, F expert hidden width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from muonlab.model.dropout import Dropout
from muonlab.model.ffn import Activation, FeedForward, activate, check_activation
from muonlab.model.grouped import (
    Slots,
    assign_slots,
    combine,
    dispatch,
    expected_slots,
    grouped_linear,
)
from muonlab.model.layers import Linear, add_product

# Up to here every expert's products take as long as reading its weights: the tokens that are not
# its own cost nothing, sorting would (measured on a CPU: 3.0 x faster in bf16, even in fp32).
READING_BOUND_TOKENS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class MoEConfig:
    """Token-choice mixture of experts.

    ``hidden_dim`` is each expert's; fine-grained experts are more and narrower ones.
    ``gate``: scores by softmax over the experts, or by sigmoid each (2412.19437);
    ``normalize_gates`` makes the chosen gates sum to one.
    ``balancing``: "auxiliary" adds ``auxiliary_coefficient · E · Σ f_e p_e`` (2101.03961) to the
    loss; "bias" nudges a selection bias by ``bias_rate`` after each step instead (2408.15664).
    ``every``: layers every, 2·every, … are MoE, the others dense with the active width.
    """

    kind: Literal["moe"] = "moe"
    hidden_dim: int = 512
    activation: Activation = "silu"
    gated: bool = False
    num_experts: int = 8
    top_k: int = 2
    num_shared_experts: int = 0
    gate: Literal["softmax", "sigmoid"] = "softmax"
    normalize_gates: bool = True
    routed_scale: float = 1.0
    balancing: Literal["none", "auxiliary", "bias"] = "auxiliary"
    auxiliary_coefficient: float = 0.01
    bias_rate: float = 0.001
    z_loss_coefficient: float = 0.0
    router_noise: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        check_activation(self.activation, self.hidden_dim)
        if self.num_experts < 1:
            raise ValueError(f"num_experts is {self.num_experts}; it must be at least 1")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(
                f"top_k is {self.top_k}; it must be from 1 to num_experts {self.num_experts}"
            )
        if self.top_k == 1 and self.normalize_gates and self.num_experts > 1:
            raise ValueError(
                "normalize_gates is True; with top_k 1 it must be False "
                "(the one gate would always be 1 and the router would not learn)"
            )
        if self.every < 1:
            raise ValueError(f"every is {self.every}; it must be at least 1")
        for name in (
            "num_shared_experts",
            "auxiliary_coefficient",
            "bias_rate",
            "z_loss_coefficient",
            "router_noise",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.routed_scale <= 0:
            raise ValueError(f"routed_scale is {self.routed_scale}; it must be positive")

    def is_moe_layer(self, layer: int) -> bool:
        return (layer + 1) % self.every == 0

    def dense_hidden_dim(self) -> int:
        """Hidden width of the dense layers in between: what a token uses of a MoE layer."""
        return self.hidden_dim * (self.top_k + self.num_shared_experts)

    def build(self, dim: int, dropout: float, layer: int) -> "MoE | FeedForward":
        if self.is_moe_layer(layer):
            return MoE(self, dim, dropout)
        return FeedForward(dim, self.dense_hidden_dim(), self.activation, self.gated, dropout)

    def _expert_parameters(self, dim: int) -> int:
        return dim * self.hidden_dim * (3 if self.gated else 2)

    def num_parameters(self, dim: int, layer: int) -> int:
        if not self.is_moe_layer(layer):
            return self.num_active_parameters(dim, layer)
        experts = self.num_experts + self.num_shared_experts
        return dim * self.num_experts + experts * self._expert_parameters(dim)

    def num_active_parameters(self, dim: int, layer: int) -> int:
        """What one token uses: the router, its experts and the shared ones."""
        router = dim * self.num_experts if self.is_moe_layer(layer) else 0
        return router + (self.top_k + self.num_shared_experts) * self._expert_parameters(dim)

    def flops_per_token(self, dim: int, layer: int) -> int:
        """Forward FLOPs of the matrix products."""
        return 2 * self.num_active_parameters(dim, layer)

    def kept_weights(self, dim: int, layer: int) -> int:
        """Weights of which a copy in the compute precision is kept: not those of routed experts."""
        if not self.is_moe_layer(layer):
            return self.num_parameters(dim, layer)
        return self.num_shared_experts * self._expert_parameters(dim)

    def kept_values(self, dim: int, num_tokens: int, layer: int) -> int:
        """Values that the backward pass keeps of one layer, at even expert load."""
        hidden = self.hidden_dim * (4 if self.gated else 2)
        shared = self.num_shared_experts * hidden
        if not self.is_moe_layer(layer):
            return num_tokens * (dim + shared + self.top_k * hidden)
        slots = expected_slots(num_tokens, self.top_k, self.num_experts)
        return slots * (2 * dim + hidden) + num_tokens * (dim + shared)


@dataclass(frozen=True, slots=True)
class RouterOutput:
    """What one MoE layer reports of one forward pass."""

    loss: Tensor  # () balancing and z losses, already multiplied by their coefficients
    tokens_per_expert: Tensor  # (E,) assignments
    entropy: Tensor | None  # () mean entropy of the routing distribution, nats; not in training


class MoE(nn.Module):
    """(…, D) -> (…, D) and the router's report."""

    selection_bias: Tensor
    pending_load: Tensor

    def __init__(self, config: MoEConfig, dim: int, dropout: float) -> None:
        super().__init__()
        self.config = config
        self.router = Linear(dim, config.num_experts)
        expanded = config.hidden_dim * (2 if config.gated else 1)
        self.expand = nn.Parameter(torch.empty(config.num_experts, expanded, dim))
        self.out = nn.Parameter(torch.empty(config.num_experts, dim, config.hidden_dim))
        shared_dim = config.num_shared_experts * config.hidden_dim
        self.shared = (
            FeedForward(dim, shared_dim, config.activation, config.gated, dropout)
            if shared_dim
            else None
        )
        self.dropout = Dropout(dropout)
        self.register_buffer("selection_bias", torch.zeros(config.num_experts))
        self.register_buffer("pending_load", torch.zeros(config.num_experts), persistent=False)

    def muon_layout(self) -> dict[str, dict]:
        """Stacks of expert matrices, gate and up apart; the router is no hidden matrix."""
        F = self.config.hidden_dim
        return {
            "router.weight": {"role": "router"},
            "expand": {"role": "hidden", "row_blocks": (F, F) if self.config.gated else None},
            "out": {"role": "hidden"},
        }

    def forward(
        self, x: Tensor, noise: torch.Generator | None = None
    ) -> tuple[Tensor, RouterOutput]:
        tokens = x.flatten(0, -2)  # (N, D)
        logits = self._logits(tokens)
        if self.training and self.config.router_noise:
            sample = torch.randn(
                logits.shape, generator=noise, device=logits.device, dtype=logits.dtype
            )
            logits = logits + self.config.router_noise * sample
        gates, experts, scores = self._route(logits)
        slots = assign_slots(experts, self.config.num_experts)
        out = self._mix(tokens, gates, slots)
        return out.view_as(x), self._report(logits, slots.tokens_per_expert, scores)

    def decode(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, D) without the report; one token reads only its own experts' weights."""
        tokens = x.flatten(0, -2)  # (N, D)
        gates, experts, _ = self._route(self._logits(tokens))
        N, K = gates.shape
        if N == 1 and not x.is_cuda:  # which experts they are is read on the host
            out = self._mix_one(tokens, gates, experts)
        elif N <= READING_BOUND_TOKENS and self.config.num_experts <= N * K:
            out = self._mix_everywhere(tokens, gates, experts)
        else:
            out = self._mix(tokens, gates, assign_slots(experts, self.config.num_experts))
        return out.view_as(x)

    def _mix(self, tokens: Tensor, gates: Tensor, slots: Slots) -> Tensor:
        """The experts' outputs (N, D), weighted by ``gates`` (N, K), and the shared ones'."""
        config = self.config
        hidden = grouped_linear(dispatch(tokens, slots), self.expand, slots)  # (S, F)
        hidden = self.dropout(activate(hidden, config.activation, config.gated))
        out = combine(grouped_linear(hidden, self.out, slots), gates, slots)
        return out if self.shared is None else out + self.shared(tokens)

    def _mix_everywhere(self, tokens: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
        """`_mix` with every token sent to every expert, and gates of zero: nothing is sorted."""
        config = self.config
        gate_of = gates.new_zeros(len(tokens), config.num_experts).scatter_(1, experts, gates)
        columns = tokens.T.contiguous()  # 1.1 x as fast
        hidden = torch.mm(self.expand.to(tokens.dtype).flatten(0, 1), columns)  # (E·F, N)
        hidden = hidden.unflatten(0, (config.num_experts, -1)).mT  # (E, N, F)
        hidden = activate(hidden, config.activation, config.gated)
        out = torch.bmm(self.out.to(tokens.dtype), hidden.mT)  # (E, D, N)
        out = (out * gate_of.to(out.dtype).T.unsqueeze(1)).sum(0).T
        return out if self.shared is None else out + self.shared(tokens)

    def _mix_one(self, tokens: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
        """`_mix` of one token (1, D) without the cost of grouping."""
        config, dtype = self.config, tokens.dtype
        expand, project, token = self.expand, self.out, tokens[0]
        chosen = experts[0].tolist()
        hidden = token.new_zeros(len(chosen), expand.shape[1])
        for expert, row in zip(chosen, hidden.unbind(), strict=True):
            add_product(row, expand[expert].to(dtype), token)
        hidden = activate(hidden, config.activation, config.gated).unbind()
        out = torch.zeros_like(token) if self.shared is None else self.shared(tokens)[0]
        for expert, gate, row in zip(chosen, gates[0].tolist(), hidden, strict=True):
            add_product(out, project[expert].to(dtype), row, gate)
        return out.unsqueeze(0)

    def _logits(self, tokens: Tensor) -> Tensor:
        """Router logits (N, E), in fp32 whatever the compute dtype, also under autocast."""
        tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
        device = tokens.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return self.router(tokens)
        with torch.autocast(device, enabled=False):
            return self.router(tokens)

    def _route(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gates (N, K), experts (N, K) and the scores of all experts (N, E)."""
        config = self.config
        scores = logits.softmax(-1) if config.gate == "softmax" else logits.sigmoid()
        biased = scores + self.selection_bias if config.balancing == "bias" else scores
        experts = biased.topk(config.top_k, dim=-1).indices
        gates = scores.gather(-1, experts)
        if config.normalize_gates:
            gates = gates / gates.sum(-1, keepdim=True).clamp_min(1e-20)
        if config.routed_scale != 1:
            gates = gates * config.routed_scale
        return gates, experts, scores

    def _report(self, logits: Tensor, load: Tensor, scores: Tensor) -> RouterOutput:
        config = self.config
        probabilities = scores
        if config.gate == "sigmoid":
            probabilities = scores / scores.sum(-1, keepdim=True)
        loss = logits.new_zeros(())
        if config.balancing == "auxiliary":
            fraction = load / load.sum()
            loss = (fraction * probabilities.mean(0)).sum() * config.num_experts
            loss = loss * config.auxiliary_coefficient
        if config.z_loss_coefficient:
            loss = loss + config.z_loss_coefficient * logits.logsumexp(-1).square().mean()
        entropy = None
        if self.training:
            self.pending_load += load
        else:
            entropy = torch.special.entr(probabilities.detach()).sum(-1).mean()
        return RouterOutput(loss, load, entropy)

    @torch.no_grad()
    def update_balance(self, *, skipped: bool = False) -> None:
        """Nudge the selection bias towards even load after an optimizer step; forget the load."""
        if self.config.balancing == "bias" and not skipped:
            error = self.pending_load.mean() - self.pending_load
            self.selection_bias += self.config.bias_rate * error.sign()
        self.pending_load.zero_()


def router_statistics(loads: list[Tensor], entropies: list[float]) -> dict[str, float]:
    """Metrics over layers from each layer's assignment counts (E,) and mean routing entropy.

    ``moe/load_cv``: coefficient of variation of the load, mean over layers;
    ``moe/max_load``: largest share of one expert times E (1 = even);
    ``moe/dead_experts``: share of experts that got no token;
    ``moe/router_entropy``: nats.
    """
    if not loads:
        return {}
    load = torch.stack(loads).double()
    share = load / load.sum(-1, keepdim=True) * load.shape[-1]
    return {
        "moe/load_cv": share.std(-1, correction=0).mean().item(),
        "moe/max_load": share.amax().item(),
        "moe/dead_experts": (load == 0).double().mean().item(),
        "moe/router_entropy": sum(entropies) / len(entropies),
    }
