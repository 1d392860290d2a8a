"""Cross-entropy over the vocabulary without ever holding all logits.

Shapes: N tokens, D width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from muonlab.model import sizes

IGNORED = -100  # target of tokens that do not count


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``-log softmax(hidden @ weightᵀ)[target]`` over counted targets, in nats.

    Shapes: hidden (N, D), weight (V, D), targets (N,) int64 with `IGNORED` where a token does
    not count. Multiplied in the dtype of ``hidden``; the gradient of ``weight`` is accumulated in
    fp32 or wider. Loss and gradients come from one pass over chunks.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if needs_gradient:
        return _ChunkedCrossEntropy.apply(hidden, weight, targets)
    scores = score_tokens(hidden, weight, targets)
    return scores.losses.sum() / scores.counted.sum()


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Per-token evaluation: (N,) each; tokens that do not count have loss 0 and are not correct."""

    losses: Tensor  # nats
    correct: Tensor  # bool: the target was the most likely token
    counted: Tensor  # bool


@torch.no_grad()
def score_tokens(hidden: Tensor, weight: Tensor, targets: Tensor) -> TokenScores:
    """Loss and correctness of every token; shapes as in `cross_entropy`."""
    counted = targets != IGNORED
    picked = targets.clamp_min(0)
    weight = weight.to(hidden.dtype)
    losses, correct = [], []
    for rows in _chunks(hidden, weight):
        logits = _logits(hidden[rows], weight)
        target_logit = logits.gather(1, picked[rows].unsqueeze(1)).squeeze(1)
        losses.append(logits.logsumexp(1) - target_logit)
        correct.append(logits.argmax(1) == picked[rows])
    return TokenScores(torch.cat(losses) * counted, torch.cat(correct) & counted, counted)


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    chosen = sizes.of(hidden.device)
    rows = max(chosen.loss_values // weight.shape[0], chosen.loss_rows)
    for start in range(0, hidden.shape[0], rows):
        yield slice(start, start + rows)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    logits = hidden @ weight.T
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        counted = targets != IGNORED
        count = counted.sum()
        picked = targets.clamp_min(0)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        narrow = weight.to(hidden.dtype)
        kept = counted.unsqueeze(1).to(hidden.dtype)  # (N, 1): 0 where a token does not count
        of_counted = hidden * kept
        for rows in _chunks(hidden, weight):
            log_probabilities = _logits(hidden[rows], narrow).log_softmax(1)
            row = torch.arange(log_probabilities.shape[0], device=hidden.device)
            total -= (log_probabilities[row, picked[rows]] * counted[rows]).sum()
            grad_logits = log_probabilities.exp_()  # softmax - one_hot(target)
            grad_logits[row, picked[rows]] -= 1
            grad_logits = grad_logits.to(hidden.dtype)
            torch.mm(grad_logits, narrow, out=grad_hidden[rows])
            grad_weight += grad_logits.T @ of_counted[rows]
        ctx.save_for_backward(grad_hidden.mul_(kept), grad_weight, count)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, grad_weight, count = ctx.saved_tensors
        scale = grad / count
        return grad_hidden * scale, grad_weight * scale, None
