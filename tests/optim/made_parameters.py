"""Parameters with reproducible values and gradients, and what to do with them."""

import torch
from torch import nn

from muonlab.optim import Muon

SHAPES = [(16, 16), (8, 32), (32, 8), (16, 16), (8, 32)]


def parameters(*shapes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in shapes]


def clones(params):
    return [nn.Parameter(p.detach().clone()) for p in params]


def set_gradients(seed, *lists):
    generator = torch.Generator().manual_seed(seed)
    for group in zip(*lists, strict=True):
        gradient = torch.randn(group[0].shape, generator=generator).to(group[0].dtype)
        for parameter in group:
            parameter.grad = gradient.clone()


def gradient_of(parameter):
    assert parameter.grad is not None
    return parameter.grad


def assert_equal_parameters(first, second):
    for p, q in zip(first, second, strict=True):
        assert torch.equal(p.detach(), q.detach())


def mixed(seed=0, **options):
    params = parameters((4, 8, 16), (16, 16), (9, 5), (5,), seed=seed)
    groups = [
        {"params": params[:1], "layout": {"row_blocks": [4, 4]}},
        {"params": params[1:2]},
        {"params": params[2:], "algorithm": "adamw", "lr": 0.003},
    ]
    return params, Muon(groups, lr=0.02, **options)
