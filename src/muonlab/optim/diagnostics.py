"""What a Muon step did, collected on request while its batches are in cache."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muonlab.optim.polar import normalise_

if TYPE_CHECKING:
    from muonlab.optim.batches import Piece


@dataclass(kw_only=True, slots=True)
class Collector:
    """Sums over the matrices of one batch; `joined` with those of others they make a summary.

    ``sample``: whether the batch's first matrix is the one of its shape whose spectrum is taken.
    """

    sample: bool = False
    num_matrices: int = 0
    num_idle: int = 0
    num_values: int = 0
    square_sum: float = 0.0
    stable_ranks: list[float] = field(default_factory=list)
    bands: list[tuple[float, float]] = field(default_factory=list)
    alignments: list[Tensor] = field(default_factory=list)
    blocks: list[tuple[str, Tensor]] = field(default_factory=list)

    @staticmethod
    def joined(collectors: "Iterable[Collector]") -> "Collector":
        total = Collector()
        for collector in collectors:
            for part in fields(Collector)[1:]:
                value = getattr(total, part.name) + getattr(collector, part.name)
                setattr(total, part.name, value)
        return total

    def before(self, matrix: Tensor) -> None:
        """The first (m, n) input of the orthogonalisation."""
        if self.sample:
            sigma = _singular_values(matrix)
            if sigma[-1] > 0:
                self.stable_ranks.append((sigma / sigma[-1]).square().sum().item())

    def after(self, piece: "Piece", direction: Tensor, scale: float) -> None:
        """The (B, m, n) direction of one piece before scale and learning rate."""
        size = direction.shape[0]
        update, gradient = direction.to(piece.master), piece.gradient.to(piece.master)
        active = torch.ones(size, dtype=torch.bool, device=update.device)
        if piece.active is not None:
            active = piece.active.flatten()
        norms = torch.linalg.vector_norm(update, dim=(1, 2))
        cosines = (normalise_(gradient.clone()) * update).sum(dim=(1, 2)) / norms
        rms = norms * scale / (update.shape[1] * update.shape[2]) ** 0.5
        self.blocks.append((piece.name, rms))
        self.alignments.append(cosines[active & (norms > 0)])
        self.num_matrices += size
        self.num_idle += size - int(active.sum())
        self.num_values += int(active.sum()) * update.shape[1] * update.shape[2]
        self.square_sum += (norms * scale).square().sum().item()
        if self.sample and bool(active[0]):
            sigma = _singular_values(update[0])
            self.bands.append((sigma[0].item(), sigma[-1].item()))
        self.sample = False

    def summary(self) -> dict[str, float]:
        """Flat metrics; σ band and stable rank are those of one sampled matrix a shape."""
        if not self.num_matrices:
            return {}
        metrics = {
            "muon/update_rms": (self.square_sum / max(self.num_values, 1)) ** 0.5,
            "muon/idle_blocks": float(self.num_idle),
        }
        alignments = torch.cat(self.alignments)
        if alignments.numel():
            metrics["muon/alignment"] = alignments.mean().item()
        if self.bands:
            metrics["muon/sigma_min"] = min(low for low, _ in self.bands)
            metrics["muon/sigma_max"] = max(high for _, high in self.bands)
        if self.stable_ranks:
            metrics["muon/stable_rank"] = sum(self.stable_ranks) / len(self.stable_ranks)
        return metrics

    def block_update_rms(self) -> dict[str, Tensor]:
        """Per parameter, the update RMS of each of its matrices (0 for idle ones)."""
        parts: dict[str, list[Tensor]] = {}
        for name, rms in self.blocks:
            parts.setdefault(name, []).append(rms)
        return {name: torch.cat(found) for name, found in parts.items()}


def _singular_values(matrix: Tensor) -> Tensor:
    """Ascending, from the small Gram matrix in fp64: many times cheaper than an SVD."""
    largest = matrix.abs().amax().double()
    scaled = matrix.double() / torch.where(largest == 0, 1.0, largest)
    gram = scaled @ scaled.mT if matrix.shape[0] <= matrix.shape[1] else scaled.mT @ scaled
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt() * largest
