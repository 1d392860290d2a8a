"""QK-clip (MuonClip, 2507.20534): shrink query and key weights of heads with too large logits.

A head whose largest attention logit of a step (q·k after scaling, over all positions) is above the
threshold τ has its logits multiplied by γ = τ / max; the others keep theirs exactly. The weights
change after the optimizer's step, which the logits precede: what that step adds is clipped with
the next.
"""

from typing import Any

import torch
from torch import Tensor, nn


class QKClip:
    """The attention logits of a model's training steps, watched, and clipped above ``threshold``.

    Serves modules with ``qk_weights()``, the views that `clip_heads_` takes, and ``max_logits``,
    which is None or (H,): a forward pass in training then raises it to each head's largest logit.
    """

    def __init__(self, model: nn.Module, threshold: float | None = None) -> None:
        self.threshold = threshold
        self._attentions: list[Any] = [
            module for module in model.modules() if hasattr(module, "qk_weights")
        ]

    def begin_step(self, *, watch: bool = False) -> None:
        """Forget the last step's logits; record this one's to clip them, or to ``watch`` them."""
        for attention in self._attentions:
            attention.max_logits = None
            if watch or self.threshold is not None:
                query, _ = attention.qk_weights()
                attention.max_logits = query.new_full(query.shape[:1], -torch.inf)

    def max_logit(self) -> dict[str, Tensor]:
        """``qk/max_logit`` of this step, 0-d on the device; empty where nothing is recorded."""
        recorded = [a.max_logits.amax() for a in self._recorded()]
        return {"qk/max_logit": torch.stack(recorded).amax()} if recorded else {}

    def end_step(self) -> None:
        """Clip, after the optimizer's step."""
        if self.threshold is not None:
            for attention in self._recorded():
                query, key = attention.qk_weights()
                clip_heads_(query, key, attention.max_logits, threshold=self.threshold)

    def _recorded(self) -> list[Any]:
        return [a for a in self._attentions if a.max_logits is not None]


@torch.no_grad()
def clip_heads_(
    query: Tensor, key: Tensor, max_logits: Tensor, *, threshold: float = 100.0
) -> Tensor:
    """Clip the heads of one attention in place; returns γ per query head, (H,).

    ``query`` (H, N + P, d) and ``key`` (G, N, d) are views of the weights, which may be fused; head
    h reads key head h // (H / G). A key head is scaled by √γ of its worst query head, and each of
    these by what then is missing, so that shared keys change no other head's logits. The last P
    rows of each query head, if there are any, meet a key that all heads share, such as MLA's rotary
    one: they are scaled by γ, and that key is left alone.
    """
    if not threshold > 0:
        raise ValueError(f"threshold {threshold} must be positive")
    num_heads, num_groups, width = query.shape[0], key.shape[0], key.shape[1]
    if max_logits.shape != (num_heads,) or num_heads % num_groups or width > query.shape[1]:
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and max_logits "
            f"{tuple(max_logits.shape)} do not fit: (H, N + P, d), (G, N, d) and (H,) are legal"
        )
    factors = torch.where(max_logits > threshold, threshold / max_logits, 1.0).to(query.dtype)
    key_factors = factors.view(num_groups, -1).amin(dim=1).sqrt()  # (G,)
    query_factors = (factors.view(num_groups, -1) / key_factors.unsqueeze(1)).flatten()  # (H,)
    key.mul_(key_factors.view(-1, 1, 1))
    query[:, :width].mul_(query_factors.view(-1, 1, 1))
    query[:, width:].mul_(factors.view(-1, 1, 1))
    return factors
