"""Validation: loss, bits per byte, perplexity, accuracy and routing over a split."""

import math

import torch

from muonlab.data import SplitName, TokenData
from muonlab.model import LanguageModel
from muonlab.model.moe import router_statistics


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    data: TokenData,
    split: SplitName,
    *,
    batch_size: int,
    sequence_length: int,
    max_batches: int | None = None,
) -> dict[str, float]:
    """Metrics over the whole split (or its first ``max_batches``), each token counted once.

    ``val/loss`` nats per token, ``val/bits_per_byte``, ``val/perplexity``, ``val/accuracy`` in
    [0, 1], and the routing statistics ``moe/…``; for the test split ``test/…``.
    """
    was_training = model.training
    model.eval()
    device = model.embedding.weight.device
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # of losses, correct and counted
    loads: list[torch.Tensor] = []
    entropies: list[torch.Tensor] = []
    try:
        for tokens, targets in data.evaluation_batches(
            split, batch_size, sequence_length, max_batches
        ):
            scores, routers = model.score(tokens.to(device), targets.to(device))
            parts = (scores.losses, scores.correct, scores.counted)
            sums += torch.stack([part.sum(dtype=torch.float64) for part in parts])
            for layer, router in enumerate(routers):
                if layer == len(loads):
                    loads.append(torch.zeros_like(router.tokens_per_expert))
                loads[layer] += router.tokens_per_expert
                assert router.entropy is not None  # in evaluation mode
                entropies.append(router.entropy)
    finally:
        model.train(was_training)
    loss, correct, counted = sums.tolist()
    mean = loss / counted
    prefix = "val" if split == "validation" else split
    return {
        f"{prefix}/loss": mean,
        f"{prefix}/bits_per_byte": mean / math.log(2) / data.bytes_per_token(split),
        f"{prefix}/perplexity": math.exp(min(mean, 700.0)),
        f"{prefix}/accuracy": correct / counted,
        **router_statistics(loads, torch.stack(entropies).tolist() if entropies else []),
    }
