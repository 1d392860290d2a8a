"""What a Muon step did, collected on request while its batches are in cache."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from muonlab.optim.update import Piece


class Collector:
    """Sums over the matrices of one step; `summary` makes them a flat dict."""

    def __init__(self) -> None:
        self._num_matrices = 0
        self._num_idle = 0
        self._num_values = 0
        self._square_sum = 0.0
        self._stable_ranks: list[float] = []
        self._bands: list[tuple[float, float]] = []
        self._alignments: list[Tensor] = []
        self._blocks: dict[str, list[Tensor]] = {}
        self._sampled_shapes: set[tuple[int, ...]] = set()
        self._sample = False

    def before(self, update: Tensor) -> None:
        """The (B, m, n) input of the orthogonalisation; a shape's first matrix is its sample."""
        shape = tuple(update.shape[1:])
        if shape in self._sampled_shapes:
            return
        self._sampled_shapes.add(shape)
        sigma = _singular_values(update[0])
        if sigma[-1] > 0:
            self._stable_ranks.append((sigma / sigma[-1]).square().sum().item())
        self._sample = True

    def after(self, piece: "Piece", update: Tensor, scale: float) -> None:
        """The (B, m, n) direction of one piece before scale and learning rate."""
        size = update.shape[0]
        active = torch.ones(size, dtype=torch.bool)
        if piece.active is not None:
            active = piece.active.flatten() > 0
        norms = torch.linalg.vector_norm(update, dim=(1, 2))
        gradient_norms = torch.linalg.vector_norm(piece.gradient.to(update.dtype), dim=(1, 2))
        inner = (piece.gradient.to(update.dtype) * update).sum(dim=(1, 2))
        rms = norms * scale / (update.shape[1] * update.shape[2]) ** 0.5
        self._blocks.setdefault(piece.name, []).append(rms)
        self._alignments.append((inner / (norms * gradient_norms))[active])
        self._num_matrices += size
        self._num_idle += size - int(active.sum())
        self._num_values += int(active.sum()) * update.shape[1] * update.shape[2]
        self._square_sum += (norms * scale).square().sum().item()
        if self._sample and bool(active[0]):
            sigma = _singular_values(update[0])
            self._bands.append((sigma[0].item(), sigma[-1].item()))
            self._sample = False

    def summary(self) -> dict[str, float]:
        """Flat metrics; σ band and stable rank are those of one sampled matrix a shape."""
        if not self._num_matrices:
            return {}
        metrics = {
            "muon/update_rms": (self._square_sum / max(self._num_values, 1)) ** 0.5,
            "muon/idle_blocks": float(self._num_idle),
        }
        alignments = torch.cat(self._alignments)
        if alignments.numel():
            metrics["muon/alignment"] = alignments.mean().item()
        if self._bands:
            metrics["muon/sigma_min"] = min(low for low, _ in self._bands)
            metrics["muon/sigma_max"] = max(high for _, high in self._bands)
        if self._stable_ranks:
            metrics["muon/stable_rank"] = sum(self._stable_ranks) / len(self._stable_ranks)
        return metrics

    def block_update_rms(self) -> dict[str, Tensor]:
        """Per parameter, the update RMS of each of its matrices (0 for idle ones)."""
        return {name: torch.cat(parts) for name, parts in self._blocks.items()}


def _singular_values(matrix: Tensor) -> Tensor:
    """Ascending, from the small Gram matrix in fp64: many times cheaper than an SVD."""
    largest = matrix.abs().amax().double()
    scaled = matrix.double() / torch.where(largest == 0, 1.0, largest)
    gram = scaled @ scaled.mT if matrix.shape[0] <= matrix.shape[1] else scaled.mT @ scaled
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt() * largest
