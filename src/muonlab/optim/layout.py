"""From a parameter to its logical matrices.

A `MatrixSpec` views a parameter (and its gradient, momentum: anything of its shape) as blocks of
shape (batch, m, n), each of which holds ``batch`` matrices that Muon orthogonalises one by one.

    Linear            [out, in]          one block   (1, out, in)
    expert stack      [E, out, in]       one block   (E, out, in)
    convolution       [out, in, kh, kw]  one block   (1, out, in·kh·kw)
    fused QKV         [hq+hk+hv, in]     three blocks, by ``row_blocks``
    MLA up-projection [heads·dh, rank]   one block   (heads, dh, rank), by ``heads``
    input first       [in, out]          one block   (1, out, in), by ``transpose``
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

LAYOUT_KEYS = ("row_blocks", "heads", "flatten", "transpose")


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixSpec:
    """How one parameter of shape ``shape`` splits into matrices.

    ``row_blocks`` tiles the rows of each matrix; ``heads`` then splits every row block into that
    many equal matrices. ``flatten`` reads dimensions after the first as columns (convolutions);
    ``transpose`` swaps the last two, for weights that are stored [in, out].
    """

    shape: tuple[int, ...]
    row_blocks: tuple[int, ...] | None = None
    heads: int = 1
    flatten: bool = False
    transpose: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) < 2:
            raise ValueError(
                f"a parameter of shape {self.shape} is not a matrix; it belongs to a group with "
                f"algorithm 'adamw', as Muon(build_groups(model)) puts it"
            )
        if self.flatten and self.transpose:
            raise ValueError(f"flatten and transpose on a parameter of shape {self.shape}")
        rows = self.rows
        blocks = self.row_blocks or (rows,)
        if (self.row_blocks and min(blocks) < 1) or sum(blocks) != rows:
            raise ValueError(f"row_blocks {blocks} do not tile the {rows} rows of {self.shape}")
        if self.heads < 1 or any(block % self.heads for block in blocks):
            raise ValueError(f"heads {self.heads} do not divide the row blocks {blocks}")
        if self.heads > 1 and self.row_blocks and self.is_stack:
            raise ValueError(f"heads {self.heads} and row_blocks {blocks} on a stack {self.shape}")

    @classmethod
    def from_layout(cls, shape: Sequence[int], layout: dict[str, Any] | None) -> "MatrixSpec":
        """From the plain data a group carries, a dict with some of `LAYOUT_KEYS`, or None."""
        if layout is None:
            return _whole(cls, tuple(shape))
        unknown = set(layout) - set(LAYOUT_KEYS)
        if unknown:
            raise ValueError(
                f"layout {sorted(unknown)[0]!r} is unknown: legal are {', '.join(LAYOUT_KEYS)}"
            )
        row_blocks = layout.get("row_blocks")
        return cls(
            shape=tuple(shape),
            row_blocks=tuple(row_blocks) if row_blocks else None,
            heads=layout.get("heads") or 1,
            flatten=bool(layout.get("flatten", False)),
            transpose=bool(layout.get("transpose", False)),
        )

    @property
    def rows(self) -> int:
        if self.flatten:
            return self.shape[0]
        return self.shape[-1 if self.transpose else -2]

    @property
    def columns(self) -> int:
        if self.flatten:
            return math.prod(self.shape[1:])
        return self.shape[-2 if self.transpose else -1]

    @property
    def stack(self) -> int:
        """How many independent matrices [rows, columns] the parameter holds."""
        return 1 if self.flatten else math.prod(self.shape[:-2])

    @property
    def is_stack(self) -> bool:
        """Whether the parameter holds independent matrices, as an expert stack does."""
        return len(self.shape) > 2 and not self.flatten

    @property
    def block_shapes(self) -> list[tuple[int, int, int]]:
        """(batch, m, n) of every block."""
        blocks = self.row_blocks or (self.rows,)
        return [(self.stack * self.heads, block // self.heads, self.columns) for block in blocks]

    def blocks(self, tensor: Tensor) -> list[Tensor]:
        """``tensor``, of the parameter's shape, as its blocks (batch, m, n): views where it is
        contiguous."""
        matrices = tensor.mT if self.transpose else tensor
        return self.split(matrices.reshape(self.stack, self.rows, self.columns))

    def split(self, matrices: Tensor) -> list[Tensor]:
        """Views of (stack, rows, any) as the parts that belong to each of the blocks."""
        parts = matrices.split(list(self.row_blocks), dim=1) if self.row_blocks else [matrices]
        if self.heads == 1:
            return list(parts)
        return [part.unflatten(1, (self.heads, -1)).flatten(0, 1) for part in parts]


@functools.cache
def _whole(cls: type[MatrixSpec], shape: tuple[int, ...]) -> MatrixSpec:
    """A parameter that splits only where it is a stack; asked for twice a parameter and step."""
    return cls(shape=shape)
