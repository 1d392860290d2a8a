"""QK-clip (MuonClip, 2507.20534): shrink query and key weights of heads with too large logits.

Call after the optimizer's step with each head's largest attention logit of the step (q·k after
scaling, over all positions). A head above the threshold τ has its logits multiplied by γ = τ / max;
the others keep theirs exactly.
"""

import torch
from torch import Tensor


@torch.no_grad()
def clip_grouped_heads_(
    query: Tensor, key: Tensor, max_logits: Tensor, *, threshold: float = 100.0
) -> Tensor:
    """MHSA and GQA, in place; returns γ per query head, (H,).

    ``query`` (H·dh, d) and ``key`` (G·dh, d) may be row slices of one fused weight; head h reads
    key group h // (H / G). A key group is scaled by √γ of its worst head, and each of its query
    heads by what then is missing, so that shared keys change no other head's logits.
    """
    factors = clip_factors(max_logits, threshold)
    num_heads = factors.numel()
    head_dim = query.shape[0] // num_heads
    num_groups = key.shape[0] // head_dim
    if query.shape[0] % num_heads or key.shape[0] % head_dim or num_heads % num_groups:
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} do not fit {num_heads} heads"
        )
    group_factors = factors.view(num_groups, -1).amin(dim=1).sqrt()  # (G,)
    query_factors = factors.view(num_groups, -1) / group_factors.unsqueeze(1)  # (G, H/G)
    _scale_rows_(query, query_factors.flatten().repeat_interleave(head_dim))
    _scale_rows_(key, group_factors.repeat_interleave(head_dim))
    return factors


@torch.no_grad()
def clip_latent_heads_(
    query: Tensor,
    key_value: Tensor,
    max_logits: Tensor,
    *,
    rope_dim: int,
    nope_dim: int,
    threshold: float = 100.0,
) -> Tensor:
    """MLA, in place; returns γ per head, (H,).

    ``query`` (H·(nope + rope), r) and ``key_value`` (H·(nope + v), r) are the up-projections, each
    head's content rows first. Content queries and keys are scaled by √γ each and rotary queries by
    γ, since the rotary key is shared by all heads and stays as it is.
    """
    factors = clip_factors(max_logits, threshold)
    num_heads = factors.numel()
    if query.shape[0] != num_heads * (nope_dim + rope_dim) or key_value.shape[0] % num_heads:
        raise ValueError(
            f"query {tuple(query.shape)} and key_value {tuple(key_value.shape)} do not fit "
            f"{num_heads} heads of {nope_dim} + {rope_dim}"
        )
    root = factors.sqrt().view(-1, 1, 1)
    queries = query.view(num_heads, nope_dim + rope_dim, -1)
    queries[:, :nope_dim].mul_(root.to(query.dtype))
    queries[:, nope_dim:].mul_(factors.view(-1, 1, 1).to(query.dtype))
    key_value.view(num_heads, key_value.shape[0] // num_heads, -1)[:, :nope_dim].mul_(
        root.to(key_value.dtype)
    )
    return factors


def clip_factors(max_logits: Tensor, threshold: float) -> Tensor:
    """γ = min(1, τ / max logit) per head."""
    if not threshold > 0:
        raise ValueError(f"threshold {threshold} must be positive")
    return torch.where(max_logits > threshold, threshold / max_logits, 1.0)


def _scale_rows_(weight: Tensor, factors: Tensor) -> None:
    weight.mul_(factors.to(weight.dtype).unsqueeze(1))
