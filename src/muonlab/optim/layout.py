"""From a parameter to its logical matrices.

A `MatrixSpec` views a parameter (and its gradient, momentum: anything of its shape) as blocks of
shape (batch, m, n), each of which holds ``batch`` matrices that Muon orthogonalises one by one.

    Linear            [out, in]          one block   (1, out, in)
    expert stack      [E, out, in]       one block   (E, out, in)
    convolution       [out, in, kh, kw]  one block   (1, out, in·kh·kw)
    fused QKV         [hq+hk+hv, in]     three blocks, by ``row_blocks``
    MLA up-projection [heads·dh, rank]   one block   (heads, dh, rank), by ``heads``
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixSpec:
    """How one parameter of shape ``shape`` splits into matrices.

    ``row_blocks`` tiles the rows of each matrix; ``heads`` then splits every row block into that
    many equal matrices. ``flatten`` reads dimensions after the first as columns (convolutions).
    """

    shape: tuple[int, ...]
    row_blocks: tuple[int, ...] | None = None
    heads: int = 1
    flatten: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) < 2:
            raise ValueError(f"a parameter of shape {self.shape} is not a matrix")
        rows = self.rows
        blocks = self.row_blocks or (rows,)
        if any(block < 1 for block in blocks) or sum(blocks) != rows:
            raise ValueError(f"row_blocks {blocks} do not tile the {rows} rows of {self.shape}")
        if self.heads < 1 or any(block % self.heads for block in blocks):
            raise ValueError(f"heads {self.heads} do not divide the row blocks {blocks}")
        if self.heads > 1 and self.row_blocks and self.is_stack:
            raise ValueError(f"heads {self.heads} and row_blocks {blocks} on a stack {self.shape}")

    @classmethod
    def from_layout(cls, shape: Sequence[int], layout: dict[str, Any] | None) -> "MatrixSpec":
        """From the plain data a group carries: ``{"row_blocks", "heads", "flatten"}`` or None."""
        layout = layout or {}
        unknown = set(layout) - {"row_blocks", "heads", "flatten"}
        if unknown:
            raise ValueError(
                f"layout {sorted(unknown)[0]!r} is unknown: legal are row_blocks, heads, flatten"
            )
        row_blocks = layout.get("row_blocks")
        return cls(
            shape=tuple(shape),
            row_blocks=tuple(row_blocks) if row_blocks else None,
            heads=layout.get("heads") or 1,
            flatten=bool(layout.get("flatten", False)),
        )

    @property
    def rows(self) -> int:
        return self.shape[0] if self.flatten else self.shape[-2]

    @property
    def columns(self) -> int:
        if not self.flatten:
            return self.shape[-1]
        columns = 1
        for size in self.shape[1:]:
            columns *= size
        return columns

    @property
    def is_stack(self) -> bool:
        """Whether the parameter holds independent matrices, as an expert stack does."""
        return len(self.shape) > 2 and not self.flatten

    @property
    def block_shapes(self) -> list[tuple[int, int, int]]:
        """(batch, m, n) of every block."""
        stack = 1
        for size in () if self.flatten else self.shape[:-2]:
            stack *= size
        blocks = self.row_blocks or (self.rows,)
        return [(stack * self.heads, block // self.heads, self.columns) for block in blocks]

    def blocks(self, tensor: Tensor, columns: int | None = None) -> list[Tensor]:
        """Views of ``tensor`` as its blocks, each (batch, m, n); ``columns`` replaces n."""
        columns = self.columns if columns is None else columns
        matrices = tensor.reshape(-1, self.rows, columns)  # (stack, rows, columns)
        pieces = matrices.split(list(self.row_blocks), dim=1) if self.row_blocks else [matrices]
        if self.heads == 1:
            return list(pieces)
        return [piece.unflatten(1, (self.heads, -1)).flatten(0, 1) for piece in pieces]
