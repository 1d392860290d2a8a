"""Two questions for anybody's model and data: does it see the future, and was it trained on this?

`causality_leak` takes any function from token ids to logits, `split_overlap` any arrays of ids.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

Model = nn.Module | Callable[[Tensor], Any]


@torch.no_grad()
def causality_leak(
    model: Model, tokens: Tensor, *, vocab_size: int | None = None, tolerance: float = 1e-5
) -> list[tuple[int, int]]:
    """Which earlier outputs depend on which later inputs: pairs (output, input); none is causal.

    ``model`` maps ids (B, T) to logits (B, T, V): a tensor, or an object that has it as ``logits``;
    of muonlab's own models its method ``logits`` is taken.
    ``tokens``: ids, (T,) or (B, T). Every position is changed in turn to the next id, modulo
    ``vocab_size`` (None: one more than the largest id in ``tokens``), in T + 1 passes. An output
    depends on it if a logit moves by more than ``tolerance`` times the largest absolute logit.
    A model in training mode is put into evaluation mode meanwhile. Raises ValueError for ids of
    another shape, or where there are no two ids to exchange.
    """
    ids = tokens[None] if tokens.ndim == 1 else tokens
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(f"tokens are {tuple(tokens.shape)}; they must be (T,) or (B, T), T ≥ 2")
    size = int(ids.max()) + 1 if vocab_size is None else vocab_size
    if size < 2:
        raise ValueError(f"vocab_size is {size}; it must be at least 2")
    was_training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        whole = _logits(model, ids)
        allowed = tolerance * float(whole.abs().max())
        leaks: list[tuple[int, int]] = []
        for position in range(1, ids.shape[1]):
            changed = ids.clone()
            changed[:, position] = (changed[:, position] + 1) % size
            moved = (_logits(model, changed) - whole)[:, :position].abs().amax(dim=(0, 2))
            leaks += [
                (output, position) for output in torch.nonzero(moved > allowed)[:, 0].tolist()
            ]
    finally:
        if isinstance(model, nn.Module):
            model.train(was_training)
    return sorted(leaks)


def split_overlap(train: ArrayLike, validation: ArrayLike, *, length: int = 32) -> float:
    """Share of validation tokens in a stretch of ``length`` tokens that training text contains.

    Each is a stream of ids (N,) or windows (W, T), which no stretch leaves. 0: none of them; a
    model that has read all stretches can recite a validation text of overlap 1. Ordinary text
    repeats short stretches: 32 tokens in common are a copy, a quotation or boilerplate.
    Time O(N · length), memory O(N). Raises ValueError where validation text is shorter.
    """
    seen = np.unique(_hashes(train, length, "train"))
    found = np.isin(_hashes(validation, length, "validation"), seen)
    covered = np.zeros((found.shape[0], found.shape[1] + length - 1), dtype=bool)
    for offset in range(length):
        covered[:, offset : offset + found.shape[1]] |= found
    return float(covered.mean())


def _logits(model: Model, ids: Tensor) -> Tensor:
    own = getattr(model, "logits", None)
    output: Any = own(ids) if callable(own) else model(ids)
    return (output if isinstance(output, Tensor) else output.logits).float()


def _hashes(tokens: ArrayLike, length: int, name: str) -> NDArray[np.uint64]:
    """A 64-bit hash of every stretch of ``length`` tokens: (W, T − length + 1)."""
    ids = np.atleast_2d(np.asarray(tokens)).astype(np.uint64)
    count = ids.shape[1] - length + 1
    if ids.ndim != 2 or length < 1 or count < 1:
        raise ValueError(
            f"{name} is {np.shape(tokens)}; it must be (N,) or (W, T) of at least {length} tokens"
        )
    hashes = np.zeros((ids.shape[0], count), dtype=np.uint64)
    for offset in range(length):  # a polynomial modulo 2^64, mixed so that low bits count as well
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[:, offset : offset + count]
        hashes ^= hashes >> np.uint64(29)
    return hashes
