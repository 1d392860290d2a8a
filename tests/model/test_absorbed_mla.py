"""The absorbed form of latent attention against the module that it is made from."""

import pytest
import torch
from on_device import placed
from torch import Tensor

from muonlab.model.attention import MLAConfig
from muonlab.model.attention.absorbed_mla import AbsorbedMLA
from muonlab.model.attention.mla import MLA
from muonlab.model.cache import Chunk

pytestmark = pytest.mark.usefixtures("on_device")

DIM = 24
CONFIG = MLAConfig(num_heads=3, kv_rank=10, rope_dim=4)


def build(dtype: torch.dtype = torch.float64) -> tuple[MLA, AbsorbedMLA]:
    """Both forms, with weights of size one so that nothing hides."""
    torch.manual_seed(0)
    module = placed(CONFIG.build(DIM, 64, 1e-6, 0.0)).to(dtype).eval().requires_grad_(False)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape)
        parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else noise / DIM**0.5)
    absorbed = module.for_inference(dtype)
    assert isinstance(absorbed, AbsorbedMLA)
    return module, absorbed


def decoded(module: AbsorbedMLA, x: Tensor, capacity: int, prompts: list[int]) -> list[Tensor]:
    """Outputs (S, D) of every row: its prompt in one chunk, then a chunk of two, then singles."""
    lengths = [0] * len(prompts)
    rows: list[list[Tensor]] = [[] for _ in prompts]
    state = module.new_state(len(prompts), capacity, x)
    for valid in (prompts, [2] * len(prompts), *[[1] * len(prompts)] * 8):
        size = max(valid)
        padded = torch.full((len(prompts), size, DIM), 7.0, dtype=x.dtype)
        for i, (start, count) in enumerate(zip(lengths, valid, strict=True)):
            padded[i, :count] = x[i, start : start + count]
        out = module.decode(padded, state, Chunk.after(lengths, size, x.device, valid))
        for i, count in enumerate(valid):
            rows[i].append(out[i, :count])
            lengths[i] += count
    return [torch.cat(row) for row in rows]


def test_the_full_pass_is_the_same():
    module, absorbed = build()
    x = torch.randn(2, 30, DIM, dtype=torch.float64)
    torch.testing.assert_close(absorbed(x), module(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("capacity", [20, 60])  # nearly full: batched products in bf16
@pytest.mark.parametrize("prompts", [[10], [10, 10, 10], [10, 3, 7]])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)],
)
def test_decoding_is_the_same(
    capacity: int, prompts: list[int], dtype: torch.dtype, tolerance: float
):
    module, absorbed = build(dtype)
    x = torch.randn(len(prompts), 20, DIM).to(dtype)
    rows = decoded(absorbed, x, capacity, prompts)
    for i, row in enumerate(rows):
        expected = module(x[i : i + 1, : len(row)])[0]
        torch.testing.assert_close(row, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "config",
    [
        MLAConfig(num_heads=3, kv_rank=10, rope_dim=4, qk_norm=True),
        MLAConfig(num_heads=3, kv_rank=10, rope_dim=4, query_rank=9),
        MLAConfig(num_heads=6, kv_rank=10, rope_dim=4),  # more to read than to save
    ],
)
def test_what_cannot_be_absorbed_stays(config: MLAConfig):
    module = config.build(DIM, 64, 1e-6, 0.0)
    assert module.for_inference(torch.float32) is module
