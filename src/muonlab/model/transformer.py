"""The language model: embedding, pre-norm blocks, head; and all of its initialisation.

Shapes: B batch, T tokens, D model width, V vocabulary.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from muonlab.model.attention import AttentionConfig, MHSAConfig
from muonlab.model.attention.mla import MLA
from muonlab.model.attention.rotary import Rotary
from muonlab.model.cache import Chunk, DecodingState
from muonlab.model.dropout import Dropout
from muonlab.model.ffn import DenseConfig
from muonlab.model.layers import Linear, RMSNorm
from muonlab.model.loss import TokenScores, cross_entropy, score_tokens
from muonlab.model.moe import MoE, MoEConfig, RouterOutput

FeedForwardConfig = Annotated[DenseConfig | MoEConfig, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A decoder-only transformer. ``vocab_size`` must be that of the tokenizer.

    ``scale_embedding`` multiplies embeddings by √dim; ``scale_residual_init`` divides the
    initial std of the matrices that write to the residual stream by √(2·num_layers) (GPT-2).
    """

    vocab_size: int = 4096
    dim: int = 128
    num_layers: int = 4
    max_length: int = 256
    attention: AttentionConfig = field(default_factory=MHSAConfig)
    ffn: FeedForwardConfig = field(default_factory=MoEConfig)
    tie_head: bool = True
    scale_embedding: bool = False
    dropout: float = 0.0
    norm_eps: float = 1e-6
    init_std: float = 0.02
    scale_residual_init: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "num_layers", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
        for name in ("norm_eps", "init_std"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        self.attention.num_parameters(self.dim)  # raises if the heads do not fit the width

    def build(self, seed: int, device: torch.device | str = "cpu") -> "LanguageModel":
        """The model with weights initialised from ``seed`` (none on the meta device)."""
        # init_weights overwrites torch's own random values: they leave the global stream alone
        with torch.device(device), torch.random.fork_rng(devices=[]):
            model = LanguageModel(self)
        if torch.device(device).type != "meta":
            init_weights(model, seed)
        return model


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)); (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention: Any = config.attention.build(  # a member of the union, or its running form
            config.dim, config.max_length, config.norm_eps, config.dropout
        )
        self.ffn_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn = config.ffn.build(config.dim, config.dropout, layer)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, noise: torch.Generator | None
    ) -> tuple[Tensor, RouterOutput | None]:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return self._feed_forward(x, noise)

    def decode(self, x: Tensor, state: Any, chunk: Chunk) -> Tensor:
        x = x + self.attention.decode(self.attention_norm(x), state, chunk)
        normed = self.ffn_norm(x)
        return x + (self.ffn.decode(normed) if isinstance(self.ffn, MoE) else self.ffn(normed))

    def _feed_forward(
        self, x: Tensor, noise: torch.Generator | None
    ) -> tuple[Tensor, RouterOutput | None]:
        if isinstance(self.ffn, MoE):
            out, report = self.ffn(self.ffn_norm(x), noise)
        else:
            out, report = self.ffn(self.ffn_norm(x)), None
        return x + self.dropout(out), report


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What a training forward pass returns."""

    loss: Tensor  # () what is minimised: cross-entropy plus balancing losses
    cross_entropy: Tensor  # () nats per token
    routers: list[RouterOutput]  # one a MoE layer


class LanguageModel(nn.Module):
    """Decoder-only transformer. Weights are fp32; ``compute_dtype`` is that of the activations."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.head = Linear(config.dim, config.vocab_size)
        if config.tie_head:
            self.head.weight = self.embedding.weight

    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return [cast(Block, block) for block in self.blocks]

    def forward(
        self, tokens: Tensor, targets: Tensor, noise: torch.Generator | None = None
    ) -> ModelOutput:
        """Mean loss over the targets that count; ``tokens`` and ``targets`` (B, T) int64.

        ``noise`` is the stream of the router's noise; dropout draws from torch's global one.
        """
        hidden, routers = self._hidden(tokens, noise)
        loss = cross_entropy(hidden.flatten(0, 1), self.head.weight, targets.flatten())
        balancing = [router.loss for router in routers]
        return ModelOutput(loss + sum(balancing) if balancing else loss, loss, routers)

    @torch.no_grad()
    def score(self, tokens: Tensor, targets: Tensor) -> tuple[TokenScores, list[RouterOutput]]:
        """Loss and correctness of every token, (B·T,), and the routers' reports."""
        hidden, routers = self._hidden(tokens, None)
        return score_tokens(hidden.flatten(0, 1), self.head.weight, targets.flatten()), routers

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, V) in fp32; for tests and export, not for training."""
        return self.head(self._hidden(tokens, None)[0]).float()

    def for_inference(self, dtype: torch.dtype) -> "LanguageModel":
        """Hold the matrices as they are multiplied; this model then only runs.

        They are in ``dtype``, and those of latent attention absorbed where that is faster: train
        and export before. Norms and routers keep their fp32 weights: they compute in fp32 always.
        """
        self.eval().requires_grad_(False)
        self.compute_dtype = dtype
        for block in self.layers():
            if isinstance(block.attention, MLA):
                block.attention = block.attention.for_inference(dtype)
        routers = {id(m.router.weight) for m in self.modules() if isinstance(m, MoE)}
        for parameter in self.parameters():
            if parameter.ndim > 1 and id(parameter) not in routers:
                parameter.data = parameter.data.to(dtype)
        return self

    def extend_positions(self, max_length: int) -> None:
        """Allow sequences of ``max_length`` tokens, beyond what the model was trained for."""
        with self.norm.weight.device:
            for module in self.modules():
                if isinstance(module, Rotary):
                    module.extend(max_length)

    def new_state(self, batch: int, capacity: int) -> DecodingState:
        """Preallocated decoding state for ``batch`` rows of up to ``capacity`` tokens."""
        like = self.norm.weight.new_empty(0, dtype=self.compute_dtype)
        layers = [block.attention.new_state(batch, capacity, like) for block in self.layers()]
        return DecodingState(layers, [0] * batch, capacity)

    @torch.inference_mode()
    def decode(
        self, tokens: Tensor, state: DecodingState, num_valid: list[int] | None = None
    ) -> Tensor:
        """Read the next tokens (B, S) into ``state``; logits (B, V) after each row's last one.

        ``num_valid``: how many of the S tokens of each row count (right-padded prompts).
        Raises ValueError if the state has no room.
        """
        num_new = tokens.shape[1]
        chunk = Chunk.after(state.lengths, num_new, tokens.device, num_valid)
        if chunk.end > state.capacity:
            raise ValueError(
                f"{chunk.end} tokens do not fit the decoding state of {state.capacity}"
            )
        x = self._embed(tokens)
        for block, layer_state in zip(self.layers(), state.layers, strict=True):
            x = block.decode(x, layer_state, chunk)
        valid = chunk.num_valid
        state.lengths = [length + new for length, new in zip(state.lengths, valid, strict=True)]
        if num_new > 1:
            rows = torch.arange(tokens.shape[0], device=tokens.device)
            x = x[rows, torch.tensor(valid, device=tokens.device) - 1].unsqueeze(1)
        last = x.squeeze(1)  # (B, D)
        return self.head(self.norm(last)).float()

    def update_balance(self, *, skipped: bool = False) -> None:
        """Let every MoE layer adapt its balancing; call once after each optimizer step.

        After a ``skipped`` step nothing adapts and the step's expert loads are forgotten.
        """
        for module in self.modules():
            if isinstance(module, MoE):
                module.update_balance(skipped=skipped)

    def _embed(self, tokens: Tensor) -> Tensor:
        # looked up in fp32 so that the gradients of repeated tokens add up in fp32
        x = self.embedding(tokens)
        if self.config.scale_embedding:
            x = x * self.config.dim**0.5
        return self.dropout(x).to(self.compute_dtype)

    def _hidden(
        self, tokens: Tensor, noise: torch.Generator | None
    ) -> tuple[Tensor, list[RouterOutput]]:
        """(B, T) -> normalised final hidden state (B, T, D), and the routers' reports."""
        x = self._embed(tokens)
        reports = []
        for block in self.layers():
            x, report = block(x, noise)
            if report is not None:
                reports.append(report)
        return self.norm(x), reports


@torch.no_grad()
def init_weights(model: LanguageModel, seed: int) -> None:
    """All initialisation: norms 1, everything else normal(0, init_std).

    Every parameter draws from its own stream, keyed by ``seed`` and its name, so that models that
    share a part start with the same values in it: arms of a comparison are paired.
    """
    config = model.config
    residual_std = config.init_std
    if config.scale_residual_init:
        residual_std /= (2 * config.num_layers) ** 0.5
    norms = {id(m.weight) for m in model.modules() if isinstance(m, nn.RMSNorm)}
    for name, parameter in model.named_parameters():
        if id(parameter) in norms:
            parameter.fill_(1.0)
            continue
        writes_to_residual = "out" in name.split(".")
        std = residual_std if writes_to_residual else config.init_std
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(std))
