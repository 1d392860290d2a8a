"""Decoding speed: latent attention with experts against dense attention of equal total size.

Random weights, full caches; every candidate continues every row of a batch greedily by a few tokens
a call. They take turns in one process, so that a drifting machine slows all alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from muonlab.bench.interleave import Timing, interleave, paired_ratio
from muonlab.errors import UserError
from muonlab.machine import memory_bandwidth
from muonlab.model import LanguageModel, ModelConfig, native
from muonlab.model.accounting import account
from muonlab.model.attention import MHSAConfig, MLAConfig
from muonlab.model.cache import DecodingState
from muonlab.model.ffn import DenseConfig
from muonlab.model.moe import MoE, MoEConfig

LATENT = "mla + moe"
LATENT_TORCH = "mla + moe, torch's kernels"
DENSE = "mhsa + dense"


def latent_config(size: str, max_length: int) -> ModelConfig:
    """MLA and top-2 of 8 experts with a shared one; raises UserError for an unknown size."""
    if size not in SIZES:
        raise UserError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
    dim, num_layers, hidden_dim = SIZES[size]
    return ModelConfig(
        dim=dim,
        num_layers=num_layers,
        max_length=max_length,
        attention=MLAConfig(num_heads=8, kv_rank=dim // 8, rope_dim=dim // 24),
        ffn=MoEConfig(
            hidden_dim=hidden_dim,
            gated=True,
            num_shared_experts=1,
            gate="sigmoid",
            balancing="bias",
        ),
    )


# width, layers, hidden width of an expert
SIZES = {"60m": (384, 6, 896), "200m": (768, 10, 960)}


def dense_twin(config: ModelConfig) -> ModelConfig:
    """Multi-head attention and a dense feed-forward, of the same total size to within a row."""

    def twin(hidden_dim: int) -> ModelConfig:
        return ModelConfig(
            dim=config.dim,
            num_layers=config.num_layers,
            max_length=config.max_length,
            attention=MHSAConfig(num_heads=8),
            ffn=DenseConfig(hidden_dim=hidden_dim, gated=True),
        )

    missing = account(config).parameters - account(twin(1)).parameters
    return twin(1 + round(missing / (3 * config.dim * config.num_layers)))


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeReport:
    """What one size, batch and context measured."""

    size: str
    dtype: str
    batch: int
    context: int
    parameters: dict[str, int]
    state_bytes: dict[str, int]  # from the tensors, at this context
    tokens: int  # of every row, a call
    timings: Mapping[str, Timing]
    bytes_read: dict[str, int]  # of weights and state, that one step must read
    bandwidth: float  # bytes/s

    @property
    def speedup(self) -> float:
        """How many times faster than the dense twin."""
        return paired_ratio(self.timings[DENSE], self.timings[LATENT])

    @property
    def state_saving(self) -> float:
        """The share of the dense twin's cache that is not there."""
        return 1 - self.state_bytes[LATENT] / self.state_bytes[DENSE]

    @property
    def floor_ratio(self) -> float:
        """How many times faster it could be, if both models ran at memory bandwidth."""
        return self.bytes_read[DENSE] / self.bytes_read[LATENT]

    def tokens_per_second(self, name: str) -> float:
        """Of all rows together."""
        return self.batch * self.tokens / self.timings[name].median

    def floor_share(self, name: str) -> float:
        """The speed as a share of what memory bandwidth alone would allow."""
        return self.bytes_read[name] / self.bandwidth * self.tokens / self.timings[name].median

    def text(self) -> str:
        """A few lines to print."""
        lines = [
            f"{self.size} {self.dtype}, batch {self.batch}, context {self.context}: "
            f"{self.speedup:.2f} x (floor ratio {self.floor_ratio:.2f}), "
            f"cache {self.state_saving:.1%} smaller"
        ]
        for name, timing in self.timings.items():
            line = (
                f"  {name:<26} {self.tokens_per_second(name):9.1f} tokens/s, "
                f"{timing.median / self.tokens * 1e3:8.2f} ms a step (spread {timing.spread:.0%})"
            )
            if name in self.bytes_read:
                line += (
                    f", {self.floor_share(name):.0%} of the floor's speed, "
                    f"{self.parameters[name] / 1e6:.1f}M parameters, "
                    f"cache {self.state_bytes[name] / 1e6:.1f} MB"
                )
            else:
                line += f", {paired_ratio(timing, self.timings[LATENT]):.2f} x as long as ours"
            lines.append(line)
        return "\n".join(lines)


PeerFactory = Callable[[LanguageModel, int, int, int], Callable[[], object]]


def bench_decode(
    size: str,
    *,
    batch: int,
    context: int,
    dtype: torch.dtype,
    tokens: int = 4,
    rounds: int = 20,
    peers: Mapping[str, PeerFactory] | None = None,
    device: torch.device | None = None,
) -> DecodeReport:
    """Time both models; a peer of (model, batch, context, tokens) is a call that makes as many.

    Both use the native kernels if those are enabled; ours is then timed without them, too.
    """
    device = device or torch.device("cpu")
    latent = latent_config(size, context + tokens)
    configs = {LATENT: latent, DENSE: dense_twin(latent)}
    models = {
        name: config.build(seed=0, device=device).for_inference(dtype)
        for name, config in configs.items()
    }
    states = {name: filled_state(model, batch, context, tokens) for name, model in models.items()}
    calls: dict[str, Callable[[], object]] = {
        name: _continue(models[name], states[name], context, tokens) for name in models
    }
    if native.enabled():
        calls[LATENT_TORCH] = _without_native(calls[LATENT])
    for name, peer in (peers or {}).items():
        calls[name] = peer(latent.build(seed=0, device=device).to(dtype), batch, context, tokens)
    state_bytes = {name: state.num_bytes() for name, state in states.items()}
    return DecodeReport(
        size=size,
        dtype=str(dtype).removeprefix("torch."),
        batch=batch,
        context=context,
        parameters={name: account(config).parameters for name, config in configs.items()},
        state_bytes=state_bytes,
        tokens=tokens,
        timings=interleave(calls, rounds=rounds, warmup=3, device=device),
        bytes_read={
            name: weight_bytes_read(model, batch) + state_bytes[name]
            for name, model in models.items()
        },
        bandwidth=memory_bandwidth(device),
    )


def filled_state(model: LanguageModel, batch: int, context: int, tokens: int) -> DecodingState:
    """The state of rows that have read ``context`` random tokens, with room for ``tokens``."""
    state = model.new_state(batch, context + tokens)
    for layer in state.layers:
        for name in ("latents", "keys", "values"):
            if hasattr(layer, name):
                getattr(layer, name).normal_()
    state.lengths = [context] * batch
    return state


def weight_bytes_read(model: LanguageModel, batch: int) -> int:
    """Bytes of the weights that one step multiplies; of the experts, as many as can be chosen."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, MoE):
            num_experts = module.config.num_experts
            idle = num_experts - min(num_experts, batch * module.config.top_k)
            total -= idle * (module.expand[0].nbytes + module.out[0].nbytes)
    return total


def _continue(
    model: LanguageModel, state: DecodingState, context: int, num_tokens: int
) -> Callable[[], object]:
    first = torch.randint(
        model.config.vocab_size, (len(state.lengths), 1), device=model.norm.weight.device
    )

    def call() -> None:
        tokens = first
        for _ in range(num_tokens):
            tokens = model.decode(tokens, state).argmax(-1, keepdim=True)
        state.lengths = [context] * len(state.lengths)

    return call


def _without_native(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        native.enable(False)
        call()
        native.enable()

    return run
