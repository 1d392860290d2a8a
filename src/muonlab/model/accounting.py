"""What a model costs, from its config alone: parameters, FLOPs and bytes.

FLOPs count matrix products, two per multiply-add; norms, softmax and activations are left out.
"""

from dataclasses import dataclass

from muonlab.model.moe import MoEConfig
from muonlab.model.transformer import ModelConfig

MASTER_BYTES = 4  # weights, gradients and optimizer state are fp32


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One kind of layer, summed over the depth of the model."""

    name: str
    parameters: int
    active_parameters: int  # what one token uses; the embedding counts whole
    forward_flops: int  # per token, mean over the sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class Accounting:
    """Costs of one model at one batch, sequence length and compute precision."""

    parts: tuple[Part, ...]
    activation_bytes: int  # kept between forward and backward, weight copies included
    state_bytes: int  # decoding state for the batch at full length; 0 if it cannot decode

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def active_parameters(self) -> int:
        return sum(part.active_parameters for part in self.parts)

    @property
    def forward_flops(self) -> int:
        """Per token."""
        return sum(part.forward_flops for part in self.parts)

    @property
    def backward_flops(self) -> int:
        """Per token: each product of the forward pass has two in the backward pass."""
        return 2 * self.forward_flops

    @property
    def weight_bytes(self) -> int:
        return MASTER_BYTES * self.parameters

    @property
    def gradient_bytes(self) -> int:
        return MASTER_BYTES * self.parameters

    def optimizer_bytes(self, muon_parameters: int) -> int:
        """One momentum buffer for what Muon updates, two moments for what AdamW does."""
        return MASTER_BYTES * (2 * self.parameters - muon_parameters)


def account(
    config: ModelConfig, *, batch: int = 1, length: int | None = None, bytes_per_value: int = 4
) -> Accounting:
    """Costs of ``batch`` sequences of ``length`` tokens (default: the longest).

    ``bytes_per_value`` is the compute precision: 4 for fp32, 2 for bf16. Parameters, FLOPs and
    decoding state are exact; activations are what the CPU path keeps, within about a tenth
    (expert loads decide the padding).
    """
    length = length or config.max_length
    state_bytes = 0
    if config.attention.causal:
        state_bytes = config.num_layers * config.attention.state_bytes(
            config.dim, batch, length, bytes_per_value
        )
    return Accounting(
        parts=_parts(config, length),
        activation_bytes=_activation_bytes(config, batch, length, bytes_per_value),
        state_bytes=state_bytes,
    )


def _parts(config: ModelConfig, length: int) -> tuple[Part, ...]:
    dim, attention, ffn = config.dim, config.attention, config.ffn
    layers = range(config.num_layers)
    vocabulary = config.vocab_size * dim
    router = 0
    if isinstance(ffn, MoEConfig):
        router = sum(dim * ffn.num_experts for layer in layers if ffn.is_moe_layer(layer))
    weights = config.num_layers * attention.num_parameters(dim)
    projections = config.num_layers * attention.projection_flops(dim)
    mixing = config.num_layers * attention.mixing_flops(dim, length)
    experts = sum(ffn.num_parameters(dim, layer) for layer in layers) - router
    active = sum(ffn.num_active_parameters(dim, layer) for layer in layers) - router
    return (
        _part("embedding", vocabulary, 0),
        _part("attention projections", weights, projections),
        _part("attention mixing", 0, mixing),
        _part("router", router, 2 * router),
        Part(
            name="feed-forward",
            parameters=experts,
            active_parameters=active,
            forward_flops=2 * active,
        ),
        _part("norms", dim * (2 * config.num_layers + 1), 0),
        _part("head", 0 if config.tie_head else vocabulary, 2 * vocabulary),
    )


def _part(name: str, parameters: int, flops: int) -> Part:
    return Part(name=name, parameters=parameters, active_parameters=parameters, forward_flops=flops)


def _activation_bytes(config: ModelConfig, batch: int, length: int, bytes_per_value: int) -> int:
    dim, num_tokens = config.dim, batch * length
    values = 2 * num_tokens * dim  # the last norm's input; the gradient of its output
    copies = 0
    for layer in range(config.num_layers):
        values += 3 * num_tokens * dim  # both norms' inputs, attention's input
        values += config.attention.kept_values(dim, batch, length)
        values += config.ffn.kept_values(dim, num_tokens, layer)
        copies += config.attention.num_parameters(dim) + config.ffn.kept_weights(dim, layer)
    if bytes_per_value < MASTER_BYTES:
        values += copies  # the weights in the compute precision
    head_gradient = MASTER_BYTES * config.vocab_size * dim
    return bytes_per_value * values + head_gradient
