"""Training throughput: one optimizer step of muonlab against two peers, taking turns.

Each candidate has a process of its own, because how memory is allocated is a property of a process
and part of what is compared.

(a) `PlainModel`: what one writes first. Eager, autocast, experts sorted and looped over, full fp32
    logits, torch's default AdamW, glibc's default allocator.
(b) transformers' Mixtral of the same shapes under autocast, default AdamW, default allocator.

    python -m benchmarks.train_step [--size small|p2] [--rounds 20]
"""

import dataclasses
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from muonlab import allocator, machine
from muonlab.bench.interleave import interleave, paired_ratio
from muonlab.manifest import peak_memory_bytes
from muonlab.model import ModelConfig
from muonlab.model.accounting import account
from muonlab.model.attention import MHSAConfig
from muonlab.model.moe import MoEConfig
from muonlab.optim.config import AdamWConfig

LEARNING_RATE = 1e-3
WARMUP = 6  # rounds until expert loads, and so the kernels built for their shapes, settle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A model shape and the tokens of one step; ``gated_dim`` gives equal expert parameters."""

    dim: int
    layers: int
    heads: int
    hidden_dim: int
    gated_dim: int
    batch: int
    length: int
    vocab: int = 4096
    experts: int = 8
    top_k: int = 2

    def config(self, gated: bool) -> ModelConfig:
        return ModelConfig(
            vocab_size=self.vocab,
            dim=self.dim,
            num_layers=self.layers,
            max_length=self.length,
            attention=MHSAConfig(num_heads=self.heads),
            ffn=MoEConfig(
                hidden_dim=self.gated_dim if gated else self.hidden_dim,
                gated=gated,
                num_experts=self.experts,
                top_k=self.top_k,
            ),
        )


SHAPES = {
    "small": Shape(dim=128, layers=4, heads=4, hidden_dim=512, gated_dim=352, batch=16, length=256),
    "p2": Shape(dim=384, layers=6, heads=8, hidden_dim=1536, gated_dim=1024, batch=8, length=512),
}


class PlainModel(nn.Module):
    """The same function as `muonlab.model` (plain SiLU or SwiGLU experts), written plainly."""

    def __init__(self, shape: Shape, gated: bool) -> None:
        super().__init__()
        self.shape = shape
        self.gated = gated
        self.embedding = nn.Embedding(shape.vocab, shape.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(PlainLayer(shape, gated) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        auxiliary = x.new_zeros(())
        for layer in self.layers:
            x, loss = layer(x)
            auxiliary = auxiliary + loss
        logits = F.linear(self.norm(x), self.embedding.weight).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + auxiliary


class PlainLayer(nn.Module):
    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: Shape, gated: bool) -> None:
        super().__init__()
        self.shape = shape
        self.gated = gated
        dim, hidden = shape.dim, shape.gated_dim if gated else shape.hidden_dim
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.router = nn.Linear(dim, shape.experts, bias=False)
        expanded = 2 * hidden if gated else hidden
        self.expand = nn.ModuleList(
            nn.Linear(dim, expanded, bias=False) for _ in range(shape.experts)
        )
        self.contract = nn.ModuleList(
            nn.Linear(hidden, dim, bias=False) for _ in range(shape.experts)
        )
        angle = torch.outer(
            torch.arange(shape.length), 10000 ** -(torch.arange(0, dim // shape.heads, 2) / 48)
        )
        self.register_buffer("cosine", angle.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sine", angle.sin().repeat(1, 2), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cosine + torch.cat((-second, first), -1) * self.sine

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        B, T, D = x.shape
        q, k, v = (
            part.view(B, T, self.shape.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        out = F.scaled_dot_product_attention(
            self.rotate(q).to(v.dtype), self.rotate(k).to(v.dtype), v, is_causal=True
        )
        x = x + self.out(out.transpose(1, 2).reshape(B, T, D))

        tokens = self.norm2(x).flatten(0, 1)
        probabilities = self.router(tokens).float().softmax(-1)
        gates, chosen = probabilities.topk(self.shape.top_k, -1)
        gates = gates / gates.sum(-1, keepdim=True)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        counts = flat.bincount(minlength=self.shape.experts)
        result = torch.zeros_like(tokens)
        groups = order.split(counts.tolist())
        for rows, expand, contract in zip(groups, self.expand, self.contract, strict=True):
            token = rows // self.shape.top_k
            hidden = expand(tokens[token])
            if self.gated:
                gate, up = hidden.chunk(2, -1)
                hidden = F.silu(gate) * up
            else:
                hidden = F.silu(hidden)
            weighted = contract(hidden) * gates.flatten()[rows, None]
            result.index_add_(0, token, weighted.to(result.dtype))
        load = counts / counts.sum()
        auxiliary = 0.01 * self.shape.experts * (load * probabilities.mean(0)).sum()
        return x + result.view(B, T, D), auxiliary


def mixtral(shape: Shape) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.dim,
            intermediate_size=shape.gated_dim,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=shape.length,
            num_local_experts=shape.experts,
            num_experts_per_tok=shape.top_k,
            output_router_logits=True,
            tie_word_embeddings=True,
        )
    )


def batch_of(shape: Shape) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T). Zipf-like: router and embedding see realistic repetition."""
    torch.manual_seed(0)
    frequency = 1 / torch.arange(1, shape.vocab + 1)
    batch = frequency.expand(shape.batch, -1).multinomial(shape.length + 1, replacement=True)
    return batch[:, :-1].contiguous(), batch[:, 1:].contiguous()


def our_step(shape: Shape, gated: bool) -> Callable[[], None]:
    allocator.keep_freed_memory()
    tokens, targets = batch_of(shape)
    model = shape.config(gated).build(seed=0, device=tokens.device)
    model.compute_dtype = machine.resolve_dtype("auto", tokens.device)
    optimizer = AdamWConfig(lr=LEARNING_RATE).build(model)

    def step() -> None:
        model(tokens, targets).loss.backward()
        optimizer.clip_(1.0)
        optimizer.step()
        model.update_balance()
        optimizer.zero_grad()

    return step


def peer_step(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def step() -> None:
        with torch.autocast(torch.get_default_device().type, torch.bfloat16):
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_step(shape: Shape, *, compiled: bool = False) -> Callable[[], None]:
    tokens, targets = batch_of(shape)
    model = PlainModel(shape, gated=False)
    if compiled:
        model.compile()
    return peer_step(model, lambda: model(tokens, targets))


def mixtral_step(shape: Shape) -> Callable[[], None]:
    tokens, _ = batch_of(shape)
    model = mixtral(shape)
    # transformers shifts the labels itself
    return peer_step(model, lambda: model(input_ids=tokens, labels=tokens).loss)


CANDIDATES: dict[str, Callable[[Shape], Callable[[], None]]] = {
    "muonlab": lambda shape: our_step(shape, gated=False),
    "(a) plain": plain_step,
    "muonlab, SwiGLU": lambda shape: our_step(shape, gated=True),
    "(b) Mixtral": mixtral_step,
}
OURS = {"(a) plain": "muonlab", "(b) Mixtral": "muonlab, SwiGLU"}


class Worker:
    """One candidate in a process of its own, since the allocator's settings are a process's.

    Calling it takes one step; the others wait meanwhile.
    """

    def __init__(self, size: str, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(size, name, other), daemon=True)
        self.process.start()
        self.pipe.recv()  # built

    def __call__(self) -> int:
        """Returns the peak resident bytes so far."""
        self.pipe.send(None)
        return self.pipe.recv()


def _serve(size: str, name: str, pipe: Connection) -> None:
    step = CANDIDATES[name](SHAPES[size])
    pipe.send(0)
    while True:
        pipe.recv()
        step()
        pipe.send(peak_memory_bytes(torch.device("cpu")))


def report(size: str, shape: Shape, rounds: int) -> None:
    rates = machine.measure_rates()
    workers = {name: Worker(size, name) for name in CANDIDATES}
    timings = interleave(workers, rounds=rounds, warmup=WARMUP)
    peaks = {name: worker() for name, worker in workers.items()}
    for worker in workers.values():
        worker.process.terminate()
    num_tokens = shape.batch * shape.length
    costs = account(shape.config(gated=False), length=shape.length)
    flops = costs.forward_flops + costs.backward_flops
    title = f"{size}: {num_tokens} tokens a step, AdamW, {rounds} interleaved rounds"
    table = Table("candidate", title=title)
    for column in ("ms/step", "tokens/s", "of GEMM rate", "peak memory, MB", "ours is faster"):
        table.add_column(column, justify="right")
    for name, timing in timings.items():
        share = flops * num_tokens / timing.median / rates.bf16_flops
        ratio = f"{paired_ratio(timing, timings[OURS[name]]):.2f} x" if name in OURS else ""
        table.add_row(
            name,
            f"{1e3 * timing.median:.0f}",
            f"{num_tokens / timing.median:,.0f}",
            f"{share:.0%}",
            f"{peaks[name] / 1e6:,.0f}",
            ratio,
        )
    console = Console(width=100)
    console.print(table)
    console.print(
        f"bf16 GEMM rate {rates.bf16_flops / 1e9:.0f} GFLOP/s (one 1024-cube), "
        f"model work {flops * num_tokens / 1e9:.0f} GFLOP a step"
    )


def main(
    size: Literal["small", "p2", "both"] = "both",
    rounds: Annotated[int, tyro.conf.arg(help="interleaved rounds")] = 20,
) -> None:
    for name, shape in SHAPES.items():
        if size in (name, "both"):
            report(name, shape, rounds)


if __name__ == "__main__":
    tyro.cli(main)
