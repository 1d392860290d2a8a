"""Every layout must equal the same matrices held as separate parameters."""

import pytest
import torch
from torch import nn

from muonlab.optim import MatrixSpec, Muon

# layout data, shape, and how to cut the parameter into its matrices by hand
CASES = {
    "experts": ((5, 8, 12), None, lambda p: list(p.unbind(0))),
    "gate and up": (
        (3, 16, 12),
        {"row_blocks": (8, 8)},
        lambda p: [half for expert in p.unbind(0) for half in expert.split(8)],
    ),
    "unequal GQA splits": (
        (20, 12),
        {"row_blocks": (12, 4, 4)},
        lambda p: list(p.split([12, 4, 4])),
    ),
    "MLA heads": ((24, 10), {"heads": 4}, lambda p: list(p.split(6))),
    "heads of row blocks": (
        (24, 10),
        {"row_blocks": (16, 8), "heads": 4},
        lambda p: [*p[:16].split(4), *p[16:].split(2)],
    ),
    "convolution": ((6, 4, 3, 3), {"flatten": True}, lambda p: [p.flatten(1)]),
    "grouped convolution": (
        (6, 4, 3, 3),
        {"flatten": True, "heads": 2},
        lambda p: list(p.flatten(1).split(3)),
    ),
}
OPTIONS = [
    {},
    {"scale": "match_rms_adamw", "weight_decay": 0.3, "cautious": True},
    {"second_moment": "normuon", "row_equilibration": True},
    {"second_moment": "adamuon", "nesterov": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "cautious", "normuon", "adamuon"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_layout_equals_separate_matrices(case, options):
    shape, layout, cut = case
    torch.manual_seed(0)
    fused = nn.Parameter(torch.randn(shape))
    separate = [nn.Parameter(part.clone()) for part in cut(fused.detach())]
    one = Muon([{"params": [fused], "layout": layout}], lr=0.1, dtype="fp32", **options)
    many = Muon(separate, lr=0.1, dtype="fp32", **options)
    for _ in range(4):
        fused.grad = torch.randn(shape)
        for parameter, gradient in zip(separate, cut(fused.grad), strict=True):
            parameter.grad = gradient.clone()
        one.step()
        many.step()
    for got, expected in zip(cut(fused.detach()), separate, strict=True):
        torch.testing.assert_close(got, expected.detach(), atol=2e-6, rtol=1e-5)


def test_block_shapes():
    spec = MatrixSpec(shape=(7, 16, 12), row_blocks=(12, 4))
    assert spec.block_shapes == [(7, 12, 12), (7, 4, 12)]
    assert spec.is_stack
    assert MatrixSpec(shape=(8, 3, 5, 5), flatten=True).block_shapes == [(1, 8, 75)]
    assert MatrixSpec(shape=(8, 6), heads=4).block_shapes == [(4, 2, 6)]


def test_blocks_are_views():
    tensor = torch.zeros(3, 16, 12)
    for block in MatrixSpec(shape=(3, 16, 12), row_blocks=(8, 8)).blocks(tensor):
        block.add_(1)
    assert bool((tensor == 1).all())


@pytest.mark.parametrize(
    ("shape", "layout", "message"),
    [
        ((8, 6), {"row_blocks": (4, 3)}, r"row_blocks \(4, 3\) do not tile the 8 rows"),
        ((8, 6), {"heads": 3}, "heads 3"),
        ((8, 6), {"colums": 3}, "'colums'"),
        ((8,), None, r"\(8,\) is not a matrix"),
        ((), None, r"\(\) is not a matrix"),
    ],
)
def test_a_layout_that_does_not_fit_is_named(shape, layout, message):
    parameter = nn.Parameter(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        Muon([{"params": [("model.weight", parameter)], "layout": layout}])
    with pytest.raises(ValueError, match=r"model\.weight"):
        Muon([{"params": [("model.weight", parameter)], "layout": layout}])
