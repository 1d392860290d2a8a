"""Decoding speed: latent attention with experts against dense attention of equal total size.

Random weights, full caches; every candidate continues every row of a batch greedily by a few tokens
a call. They take turns in one process, so that a drifting machine slows all alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from muonlab.bench.interleave import Timing, interleave, paired_ratio
from muonlab.machine import default_device, measure_rates
from muonlab.model import LanguageModel, ModelConfig
from muonlab.model.accounting import account
from muonlab.model.attention import MHSAConfig, MLAConfig
from muonlab.model.cache import DecodingState
from muonlab.model.ffn import DenseConfig
from muonlab.model.moe import MoE, MoEConfig

TOKENS = 4  # of every row, a call
LATENT = "mla + moe"
DENSE = "mhsa + dense"


def latent_config(size: str, max_length: int) -> ModelConfig:
    """MLA and top-2 of 8 experts with a shared one; raises ValueError for an unknown size."""
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
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
    timings: Mapping[str, Timing]
    floor_seconds: dict[str, float]  # the bytes that one step must read, over the bandwidth

    @property
    def speedup(self) -> float:
        """How many times faster than the dense twin."""
        return paired_ratio(self.timings[DENSE], self.timings[LATENT])

    @property
    def state_saving(self) -> float:
        """The share of the dense twin's cache that is not there."""
        return 1 - self.state_bytes[LATENT] / self.state_bytes[DENSE]

    def text(self) -> str:
        """A few lines to print."""
        lines = [
            f"{self.size} {self.dtype}, batch {self.batch}, context {self.context}: "
            f"{self.speedup:.2f} x, cache {self.state_saving:.1%} smaller"
        ]
        for name, timing in self.timings.items():
            line = (
                f"  {name:<24} {self.batch * TOKENS / timing.median:9.1f} tokens/s, "
                f"{timing.median / TOKENS * 1e3:8.2f} ms a step (spread {timing.spread:.0%})"
            )
            if name in self.floor_seconds:
                share = self.floor_seconds[name] * TOKENS / timing.median
                line += (
                    f", {share:.0%} of the floor's speed, {self.parameters[name] / 1e6:.1f}M "
                    f"parameters, cache {self.state_bytes[name] / 1e6:.1f} MB"
                )
            else:
                line += f", {paired_ratio(timing, self.timings[LATENT]):.2f} x as long as ours"
            lines.append(line)
        return "\n".join(lines)


PeerFactory = Callable[[LanguageModel, int, int], Callable[[], object]]


def bench_decode(
    size: str,
    *,
    batch: int,
    context: int,
    dtype: torch.dtype,
    rounds: int = 20,
    peers: Mapping[str, PeerFactory] | None = None,
) -> DecodeReport:
    """Time both models; a peer of (model, batch, context) is a call that makes as many tokens."""
    latent = latent_config(size, context + TOKENS)
    configs = {LATENT: latent, DENSE: dense_twin(latent)}
    models = {name: config.build(seed=0).for_inference(dtype) for name, config in configs.items()}
    states = {name: filled_state(model, batch, context) for name, model in models.items()}
    calls: dict[str, Callable[[], object]] = {
        name: _continue(models[name], states[name], context) for name in models
    }
    for name, peer in (peers or {}).items():
        calls[name] = peer(latent.build(seed=0).to(dtype), batch, context)
    bandwidth = measure_rates(default_device()).memory_bytes_per_second
    state_bytes = {name: state.num_bytes() for name, state in states.items()}
    return DecodeReport(
        size=size,
        dtype=str(dtype).removeprefix("torch."),
        batch=batch,
        context=context,
        parameters={name: account(config).parameters for name, config in configs.items()},
        state_bytes=state_bytes,
        timings=interleave(calls, rounds=rounds, warmup=3),
        floor_seconds={
            name: (weight_bytes_read(model, batch) + state_bytes[name]) / bandwidth
            for name, model in models.items()
        },
    )


def filled_state(model: LanguageModel, batch: int, context: int) -> DecodingState:
    """The state of rows that have read ``context`` random tokens, with room for one call."""
    state = model.new_state(batch, context + TOKENS)
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


def _continue(model: LanguageModel, state: DecodingState, context: int) -> Callable[[], object]:
    first = torch.randint(model.config.vocab_size, (len(state.lengths), 1))

    def call() -> None:
        tokens = first
        for _ in range(TOKENS):
            tokens = model.decode(tokens, state).argmax(-1, keepdim=True)
        state.lengths = [context] * len(state.lengths)

    return call
