"""Decoding state: what a model keeps of the tokens it has read.

Shapes: B batch, S new tokens of a chunk, C capacity in tokens, G key-value heads, Dh head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class LayerState(Protocol):
    """What one attention layer keeps between decoding steps."""

    def num_bytes(self) -> int: ...


@dataclass(slots=True)
class DecodingState:
    """The state of a whole model: one entry a layer, and how many tokens each row has read."""

    layers: Sequence[LayerState]
    lengths: list[int]
    capacity: int

    def num_bytes(self) -> int:
        """Bytes held by the tensors of all layers."""
        return sum(layer.num_bytes() for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where S new tokens stand in each row's sequence, and which of them count."""

    positions: Tensor  # (B, S) int64
    lengths: list[int]  # tokens that each row has read before
    num_valid: list[int]  # new tokens of each row that count; padding follows them
    start: int | None  # the common start if all rows are equally long, else None
    end: int  # one past the largest position: how much of the cache is in use
    visible: Tensor | None  # (B, S, end) bool: what each token sees of the cache; None: all of it

    @property
    def places(self) -> Tensor | slice:
        """The positions; as a range where all rows are equally long, which is cheaper."""
        return self.positions if self.start is None else slice(self.start, self.end)

    @classmethod
    def after(
        cls,
        lengths: list[int],
        num_tokens: int,
        device: torch.device,
        num_valid: list[int] | None = None,
    ) -> "Chunk":
        positions = torch.tensor(lengths, device=device).unsqueeze(1)
        positions = positions + torch.arange(num_tokens, device=device)
        end = max(lengths) + num_tokens
        uniform = len(set(lengths)) == 1
        visible = None
        if num_tokens > 1 or not uniform:
            visible = torch.arange(end, device=device) <= positions.unsqueeze(-1)
        return cls(
            positions=positions,
            lengths=lengths,
            num_valid=num_valid or [num_tokens] * len(lengths),
            start=lengths[0] if uniform else None,
            end=end,
            visible=visible,
        )


class KVCache:
    """Preallocated keys and values, (B, G, C, Dh) each.

    Rows may differ in length: a row's tokens past its own length are overwritten by its next
    tokens before any query can reach them, since a query at position p sees positions <= p only.
    """

    def __init__(self, batch: int, heads: int, capacity: int, head_dim: int, like: Tensor) -> None:
        self.keys = like.new_zeros(batch, heads, capacity, head_dim)
        self.values = like.new_zeros(batch, heads, capacity, head_dim)

    def append(self, keys: Tensor, values: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Store (B, G, S, Dh) at the chunk's positions; return all of (B, G, chunk.end, Dh)."""
        for buffer, new in ((self.keys, keys), (self.values, values)):
            _write(buffer.transpose(1, 2), new.transpose(1, 2), chunk)
        return self.keys[:, :, : chunk.end], self.values[:, :, : chunk.end]

    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class LatentCache:
    """Preallocated latents with their rotary keys, (B, C, R + P), shared by all heads.

    Rows may differ in length, as in `KVCache`.
    """

    def __init__(self, batch: int, capacity: int, width: int, like: Tensor) -> None:
        self.latents = like.new_zeros(batch, capacity, width)

    def append(self, latents: Tensor, chunk: Chunk) -> Tensor:
        """Store (B, S, R + P) at the chunk's positions; return all of (B, chunk.end, R + P)."""
        _write(self.latents, latents, chunk)
        return self.latents[:, : chunk.end]

    def num_bytes(self) -> int:
        return self.latents.nbytes


def _write(buffer: Tensor, new: Tensor, chunk: Chunk) -> None:
    """Copy ``new`` (B, S, …) to the chunk's positions of ``buffer`` (B, C, …)."""
    if chunk.start is not None:
        buffer[:, chunk.start : chunk.end] = new
    else:
        rows = torch.arange(new.shape[0], device=new.device).unsqueeze(1)
        buffer[rows, chunk.positions] = new
