"""Causal softmax attention: the kernel that training uses, and the one that decoding uses.

Shapes: B batch, T queries, H heads, Dh head width, S keys.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, scaled_dot_product_attention

from muonlab.model import sizes
from muonlab.model.dropout import dropout_mask

HALF = (torch.bfloat16, torch.float16)


def causal_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    dropout: float = 0.0,
    max_logits: Tensor | None = None,
) -> Tensor:
    """Softmax attention of each token over itself and the tokens before it.

    Shapes: queries (B, H, T, Dh), keys (B, G, T, Dh), values (B, G, T, Dv) with G dividing H;
    returns (B, H, T, Dv). ``dropout`` is the probability of dropping an attention weight.
    ``max_logits`` (H,), if given, is raised to each head's largest logit.
    """
    on_cpu = queries.device.type == "cpu"
    short = queries.shape[2] <= sizes.of(queries.device).explicit_attention_length
    explicit = short or (on_cpu and dropout > 0)
    # a GPU's kernels that share keys among heads serve half precision only
    if explicit or not (on_cpu or queries.dtype in HALF):
        repeats = queries.shape[1] // keys.shape[1]
        if repeats > 1:
            keys = keys.repeat_interleave(repeats, dim=1)
            values = values.repeat_interleave(repeats, dim=1)
    if explicit:
        return _BlockCausal.apply(queries, keys, values, scale, dropout, max_logits)
    if max_logits is not None:
        _raise_to_largest(max_logits, queries, keys, scale)
    value_dim = values.shape[-1]
    if value_dim < keys.shape[-1]:  # without equal widths there is no flash kernel (4-15 x slower)
        values = pad(values, (0, keys.shape[-1] - value_dim))
    out = scaled_dot_product_attention(
        queries, keys, values, is_causal=True, scale=scale, dropout_p=dropout, enable_gqa=True
    )
    return out[..., :value_dim]


def kept_probabilities(length: int) -> int:
    """Values a head keeps for the backward pass on a CPU besides queries, keys, values, output.

    Without dropout, which keeps probabilities at every length, and as many values of a mask.
    """
    if length > sizes.CPU.explicit_attention_length:
        return 0
    block = sizes.CPU.attention_block
    return sum(
        (min(start + block, length) - start) * min(start + block, length)
        for start in range(0, length, block)
    )


def cached_attention(
    queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, *, scale: float
) -> Tensor:
    """Attention of new tokens over the S slots of a cache that are ``visible`` (B, T, S) to each.

    Shapes as in `causal_attention`, with S keys and values; returns (B, H, T, Dv).
    """
    mask = None if visible is None else visible.unsqueeze(1)  # (B, 1, T, S)
    return scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=True
    )


@torch.no_grad()
def _raise_to_largest(max_logits: Tensor, queries: Tensor, keys: Tensor, scale: float) -> None:
    """For kernels that keep their logits to themselves: their product once more."""
    T, block = queries.shape[2], sizes.of(queries.device).attention_block
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    future = queries.new_full((block, block), -math.inf).triu_(1)
    for start in range(0, T, block):
        stop = min(start + block, T)
        scores = queries[:, :, start:stop] @ keys[:, :, :stop].mT
        scores[..., start:].add_(future[: stop - start, : stop - start])
        largest = scores.amax(dim=(0, 2, 3)).float() * scale
        torch.maximum(max_logits, largest, out=max_logits)


class _BlockCausal(torch.autograd.Function):
    """Explicit attention in blocks of queries, each over its own prefix of keys only.

    Keeps the probabilities for the backward pass (B·H·T²/2 values), and as many of a dropout mask.
    """

    @staticmethod
    def forward(
        ctx,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        dropout: float,
        max_logits: Tensor | None,
    ) -> Tensor:
        B, H, T, _ = queries.shape
        size = sizes.of(queries.device).attention_block
        q, k, v = (x.reshape(B * H, T, -1) for x in (queries, keys, values))
        q = q * scale
        out = v.new_empty(B * H, T, v.shape[-1])
        future = q.new_full((size, size), -math.inf).triu_(1)
        probabilities, masks = [], []
        for start in range(0, T, size):
            stop = min(start + size, T)
            scores = torch.bmm(q[:, start:stop], k[:, :stop].mT)
            scores[:, :, start:].add_(future[: stop - start, : stop - start])
            if max_logits is not None:
                largest = scores.amax(dim=(1, 2)).view(B, H).amax(dim=0).float()
                torch.maximum(max_logits, largest, out=max_logits)
            weights = torch.softmax(scores, dim=-1)
            probabilities.append(weights)
            if dropout:
                masks.append(dropout_mask(weights, dropout))
                weights = weights * masks[-1]
            torch.bmm(weights, v[:, :stop], out=out[:, start:stop])
        ctx.save_for_backward(q, k, v, *probabilities, *masks)
        ctx.scale, ctx.size, ctx.num_blocks = scale, size, len(probabilities)
        return out.view(B, H, T, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, *blocks = ctx.saved_tensors
        probabilities, masks = blocks[: ctx.num_blocks], blocks[ctx.num_blocks :]
        B, H, T, _ = grad.shape
        grad = grad.reshape(B * H, T, -1)
        grad_q = torch.empty_like(q)
        grad_k = grad_v = grad  # set by the last block, which sees every key
        for block, weights in reversed(list(enumerate(probabilities))):
            start = block * ctx.size
            stop = min(start + ctx.size, T)
            grad_out = grad[:, start:stop]
            grad_weights = torch.bmm(grad_out, v[:, :stop].mT)
            kept = weights
            if masks:
                kept = weights * masks[block]
                grad_weights.mul_(masks[block])
            grad_v_block = torch.bmm(kept.mT, grad_out)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, q.dtype)
            torch.bmm(grad_scores, k[:, :stop], out=grad_q[:, start:stop])
            grad_k_block = torch.bmm(grad_scores.mT, q[:, start:stop])
            if stop == T:
                grad_k, grad_v = grad_k_block, grad_v_block
            else:
                grad_k[:, :stop] += grad_k_block
                grad_v[:, :stop] += grad_v_block
        grads = (grad_q.mul_(ctx.scale), grad_k, grad_v)
        return *(g.view(B, H, T, -1) for g in grads), None, None, None
