"""Norms, attention logits and gradients of a small language model over training, for `spectral`."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from muonlab.config import RunConfig, override
from muonlab.lab.bounds import Row
from muonlab.model import LanguageModel
from muonlab.model.attention.mhsa import MHSA
from muonlab.optim.config import AdamWConfig, MuonConfig
from muonlab.optim.options import update_scale
from muonlab.optim.schedules import band
from muonlab.papers.theory.training import Moment, hidden_matrices, moments, singular_values
from muonlab.recipes import nano

LOGIT_LIMIT = 100.0  # 2507.20534: MuonClip's threshold
ADAMW_LR = 4e-3  # results/small-learning-rate


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train the nano recipe."""

    name: str
    optimizer: MuonConfig | AdamWConfig


def _muon(weight_decay: float) -> MuonConfig:
    # fp32: what rounding in bf16 adds to singular values is not the theorem's matter
    return MuonConfig(lr=1e-2, weight_decay=weight_decay, dtype="fp32")


ARMS = (
    Arm("Muon λ = 0.1", _muon(0.1)),
    Arm("Muon λ = 1", _muon(1.0)),
    Arm("Muon λ = 0", _muon(0.0)),
    Arm("AdamW λ = 0.1", AdamWConfig(lr=ADAMW_LR, weight_decay=0.1)),
    Arm("AdamW λ = 0", AdamWConfig(lr=ADAMW_LR, weight_decay=0.0)),
)


def arm_config(arm: Arm, seed: int, num_updates: int) -> RunConfig:
    """The nano recipe under an arm's optimizer, at a constant learning rate."""
    base = override(nano(), ["learning_rate.kind=constant", "learning_rate.warmup=0"])
    return dataclasses.replace(
        base,
        seed=seed,
        optimizer=arm.optimizer,
        train=dataclasses.replace(base.train, steps=num_updates),
    )


def train_arm(
    arm: Arm, seed: int, num_updates: int, every: int, cache_dir: Path | None
) -> list[Row]:
    """Train, and look ``every`` so many updates: rows of each matrix and of the whole model."""
    config = arm_config(arm, seed, num_updates)
    data = config.data.prepare(cache_dir, progress=False)
    batch = data.batch(0, 0, config.train.batch_size, config.train.sequence_length)
    rows: list[Row] = []
    initial: dict[str, float] = {}
    for moment in moments(config, data):
        if moment.step % every == 0:
            rows += probe(arm, seed, moment, batch[:, :-1], initial)
    return rows


def probe(
    arm: Arm, seed: int, moment: Moment, tokens: Tensor, initial: dict[str, float]
) -> list[Row]:
    """Rows of one moment; logits are those of ``tokens`` (B, T), ``initial`` the first norms."""
    stamp: Row = {"arm": arm.name, "seed": seed, "step": moment.step}
    rows: list[Row] = []
    bounds: dict[str, float] = {}
    norms: list[float] = []
    square = 0.0
    for name, (weight, gradient) in hidden_matrices(moment.model).items():
        norm = singular_values(weight)[:, -1].max().item()
        bound = max(initial.setdefault(name, norm), update_bound(arm, *weight.shape[1:]))
        bounds[name] = bound
        norms.append(norm)
        rows.append({"part": "matrix", **stamp, "matrix": name, "norm": norm, "bound": bound})
        if gradient is not None:
            square += gradient.double().square().sum().item()
    rows.append(
        {
            "part": "probe",
            **stamp,
            "loss": moment.loss,
            "gradient_norm": math.sqrt(square),
            "norm_product": math.prod(norms),
            "largest_logit": largest_logit(moment.model, tokens),
            "logit_bound": logit_bound(moment.model, bounds),
        }
    )
    return rows


def update_bound(arm: Arm, m: int, n: int) -> float:
    """cs/λ of an m × n matrix: what repeated decay and the largest possible update allow at most.

    For AdamW every entry of an update is at most `adamw_update`, so its norm is √(mn) times it.
    """
    optimizer = arm.optimizer
    if optimizer.weight_decay == 0:
        return math.inf
    if isinstance(optimizer, MuonConfig):
        largest = band(optimizer.schedule, 1e-8)[1] * update_scale(optimizer.scale, m, n)
    else:
        largest = adamw_update(*optimizer.betas) * math.sqrt(m * n)
    return largest / optimizer.weight_decay


def adamw_update(beta1: float, beta2: float, num_updates: int = 10_000) -> float:
    """The largest |m̂|/√v̂ that any gradients can give, by Cauchy–Schwarz on its two averages."""
    largest, squares = 0.0, 0.0
    for update in range(1, num_updates + 1):
        squares += (beta1**2 / beta2) ** (update - 1)
        moments_ratio = (1 - beta1) / math.sqrt(1 - beta2) * math.sqrt(squares)
        correction = math.sqrt(1 - beta2**update) / (1 - beta1**update)
        largest = max(largest, moments_ratio * correction)
    return largest


@torch.no_grad()
def largest_logit(model: LanguageModel, tokens: Tensor) -> float:
    """The largest q·k/√Dh over the layers, heads and visible pairs of a batch (B, T)."""
    found: list[float] = []

    def look(attention: nn.Module, arguments: tuple[Tensor]) -> None:
        queries, keys = rotated_queries_and_keys(attention, arguments[0])
        scores = queries @ keys.mT / queries.shape[-1] ** 0.5  # (B, H, T, T)
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        found.append(scores.masked_fill(~visible, -math.inf).max().item())

    hooks = [block.attention.register_forward_pre_hook(look) for block in model.layers()]
    model.eval()
    model.logits(tokens)
    model.train()
    for hook in hooks:
        hook.remove()
    return max(found)


def rotated_queries_and_keys(attention: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What `MHSA` compares, for inputs (B, T, D): queries and keys, each (B, H, T, Dh)."""
    assert isinstance(attention, MHSA)
    heads = (attention.num_heads, attention.num_kv_heads, attention.num_kv_heads)
    fused = attention.qkv(x).unflatten(-1, (-1, attention.head_dim))
    queries, keys, _ = fused.split_with_sizes(heads, dim=2)
    return attention.rotary(queries), attention.rotary(keys)


def logit_bound(model: LanguageModel, bounds: dict[str, float]) -> float:
    """The largest logit that norm bounds allow: |x|²·‖W_q‖₂·‖W_k‖₂/√Dh with |x| ≤ √D·max|g|.

    g is the weight of the normalisation before the attention; worst of the layers.
    """
    largest = 0.0
    for index, block in enumerate(model.layers()):
        query, key = (bounds[f"blocks.{index}.attention.qkv.weight[{part}]"] for part in (0, 1))
        gain = block.attention_norm.weight.abs().max().item()
        dim, head_dim = model.config.dim, block.attention.head_dim
        largest = max(largest, dim * gain**2 * query * key / math.sqrt(head_dim))
    return largest
