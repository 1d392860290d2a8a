"""Sizes that are a matter of speed, chosen by device in this one place.

A CPU is fast where a piece stays in its cache and where matrix shapes repeat; a GPU where it gets
much work at a time and never waits for the host. The CPU's sizes are measured; the GPU's are not,
they bound the memory of a piece and the number of launches.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """The sizes of one kind of device."""

    loss_values: int  # logits that the loss holds at a time
    loss_rows: int  # tokens at a time, at least: fewer would starve the products
    # Up to this length attention is computed explicitly, in blocks of queries.
    explicit_attention_length: int
    attention_block: int
    # Rows of one expert are padded to a multiple of the first entry that its mean load reaches:
    # pairs of (mean rows, block), the largest load first.
    slot_blocks: tuple[tuple[int, int], ...]
    # Whether the number of padded rows may be read on the host; else their bound is used.
    count_slots: bool

    def slot_block(self, mean_rows: int) -> int:
        """Rows that an expert's share is padded to a multiple of."""
        return next(block for least, block in self.slot_blocks if mean_rows >= least)


CPU = Sizes(
    loss_values=1 << 21,  # 8 MiB in fp32 stay in cache
    loss_rows=256,
    # Faster forward+backward than torch's flash kernel (measured: 2.6 x at 256, 2.3 x at 512,
    # 1.4 x at 1024; about even at 2048). With dropout there is no such kernel: torch's own
    # explicit form takes 4 x as long at 2048, 7 x at 4096.
    explicit_attention_length=1024,
    attention_block=128,
    # 128 where experts are well fed (measured best of 64, 128, 256); none for decoding
    slot_blocks=((128, 128), (16, 16), (0, 1)),
    count_slots=True,
)
GPU = Sizes(
    loss_values=1 << 27,  # 512 MiB in fp32
    loss_rows=1024,
    explicit_attention_length=0,
    attention_block=1024,
    # the grouped kernel wants multiples of 16 bytes where it sums over rows (8 values of bf16)
    slot_blocks=((0, 8),),
    count_slots=False,
)


def of(device: torch.device) -> Sizes:
    """The sizes for ``device``."""
    return CPU if device.type == "cpu" else GPU
