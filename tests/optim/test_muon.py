"""The steps themselves: against torch, by hand, and whatever must not change them."""

import pytest
import torch
from made_parameters import (
    SHAPES,
    assert_equal_parameters,
    clones,
    gradient_of,
    parameters,
    set_gradients,
)
from torch import nn

from muonlab.optim import Muon, orthogonalise

pytestmark = [
    pytest.mark.filterwarnings("ignore::muonlab.optim.SlowDtypeWarning"),
    pytest.mark.usefixtures("on_device"),
]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    ("scale", "adjust"), [("keller", "original"), ("match_rms_adamw", "match_rms_adamw")]
)
@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-6), ("bf16", 2e-2)])
def test_parity_with_torch_muon(nesterov, scale, adjust, dtype, bound, monkeypatch):
    start = parameters(*SHAPES)
    ours, theirs = clones(start), clones(start)
    muon = Muon(ours, lr=0.01, nesterov=nesterov, scale=scale, dtype=dtype)
    torch_muon = torch.optim.Muon(theirs, lr=0.01, nesterov=nesterov, adjust_lr_fn=adjust)
    if dtype == "fp32":  # torch's has no other dtype than bf16
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    for step in range(50):
        set_gradients(step, ours, theirs)
        muon.step()
        torch_muon.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), atol=bound, rtol=bound)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_parity_with_torch_adamw(weight_decay):
    start = parameters((16, 16), (7,), (), (3, 4, 5))
    ours, theirs = clones(start), clones(start)
    muon = Muon([{"params": ours, "algorithm": "adamw"}], lr=0.01, weight_decay=weight_decay)
    adamw = torch.optim.AdamW(theirs, lr=0.01, weight_decay=weight_decay)
    for step in range(100):
        set_gradients(step, ours, theirs)
        muon.step()
        adamw.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), atol=1e-6, rtol=1e-6)


def test_momentum_is_the_analytic_average_and_nothing_is_aliased():
    params = parameters(*SHAPES)
    muon = Muon(params, lr=0.01, momentum=0.9)
    expected = [torch.zeros_like(p) for p in params]
    for step in range(5):
        set_gradients(step, params)
        gradients = [gradient_of(p).clone() for p in params]
        muon.step()
        for p, gradient, average in zip(params, gradients, expected, strict=True):
            assert torch.equal(gradient_of(p), gradient)
            average.mul_(0.9).add_(gradient, alpha=0.1)
            torch.testing.assert_close(muon.state[p]["momentum"], average)


@pytest.mark.parametrize("nesterov", [True, False])
def test_one_step_by_hand(nesterov):
    (p,) = parameters((6, 10), dtype=torch.float64)
    start, gradient = p.detach().clone(), torch.randn(6, 10, dtype=torch.float64)
    p.grad = gradient.clone()
    options = {"momentum": 0.9, "nesterov": nesterov, "scale": "spectral"}
    Muon([p], lr=0.1, weight_decay=0.5, **options).step()
    average = 0.1 * gradient
    direction = 0.1 * gradient + 0.9 * average if nesterov else average
    expected = start * (1 - 0.1 * 0.5) - 0.1 * (6 / 10) ** 0.5 * orthogonalise(direction)
    torch.testing.assert_close(p.detach(), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("power", [-30, -12, 12, 30])
def test_the_scale_of_the_gradients_does_not_matter(power):
    start = parameters((4, 8, 16), (16, 16))
    ours, scaled = clones(start), clones(start)
    set_gradients(0, ours, scaled)
    for p in scaled:
        gradient_of(p).mul_(10.0**power)
    Muon(ours, lr=0.1, dtype="fp32").step()
    Muon(scaled, lr=0.1, dtype="fp32").step()
    for p, q in zip(ours, scaled, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), atol=1e-5, rtol=0)


def test_a_zero_gradient_from_a_fresh_state_is_no_update():
    params = parameters((4, 8, 16), (16, 16))
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    Muon(params, lr=0.1, weight_decay=0.0).step()
    assert_equal_parameters(params, before)


@pytest.mark.parametrize("second_moment", ["none", "normuon", "adamuon"])
@pytest.mark.parametrize("cautious", [False, True])
def test_idle_experts_do_not_move(second_moment, cautious):
    start = parameters((4, 8, 16))
    (stack,) = clones(start)
    active = [nn.Parameter(start[0].detach()[[0, 2, 3]].clone())]
    options = {"dtype": "fp32", "cautious": cautious, "second_moment": second_moment}
    muon, without = Muon([stack], lr=0.01, **options), Muon(active, lr=0.01, **options)

    def step(seed, idle):
        generator = torch.Generator().manual_seed(seed)
        gradient = torch.randn(4, 8, 16, generator=generator)
        if idle:
            gradient[1] = 0
        stack.grad, active[0].grad = gradient, gradient[[0, 2, 3]].clone()
        muon.step()
        without.step()

    for seed in range(3):
        step(seed, idle=False)
    frozen = stack.detach()[1].clone()
    state = {key: value[1].clone() for key, value in muon.state[stack].items()}
    for seed in range(300):
        step(seed, idle=True)
    assert torch.equal(stack.detach()[1], frozen)
    for key, value in state.items():
        assert torch.equal(muon.state[stack][key][1], value)
    torch.testing.assert_close(stack.detach()[[0, 2, 3]], active[0].detach(), atol=1e-5, rtol=1e-5)
    step(1000, idle=False)
    assert not torch.equal(stack.detach()[1], frozen)


def test_determinism_and_batching():
    start = parameters((16, 8, 24), (8, 24), (8, 24), (24, 8))
    results = []
    for batch_bytes in (1, 5000, 256 << 20):
        params = clones(start)
        muon = Muon(params, lr=0.1, dtype="fp32", batch_bytes=batch_bytes)
        for step in range(3):
            set_gradients(step, params)
            muon.step()
        results.append(params)
    for other in results[1:]:
        for p, q in zip(results[0], other, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 128])  # every matrix, or none, takes the fp32 path
def test_the_workspace_is_bounded_over_all_shapes(rank):
    shapes = [(12, 128, 128), (6, 128, 512), (6, 512, 128), (20, 8, 2048)]
    bound = 6 << 20
    params = parameters(*shapes)
    for p in params:
        p.grad = torch.randn(*p.shape[:2], rank) @ torch.randn(p.shape[0], rank, p.shape[2])
    muon = Muon(params, dtype="bf16", batch_bytes=bound)
    muon.step()
    assert 0 < muon.workspace_bytes() <= bound


def test_half_precision_and_double_parameters():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        params = parameters((8, 8), (3, 8, 16), dtype=dtype)
        reference = clones([p.detach().double() for p in params])
        muon = Muon(params, lr=0.1, weight_decay=0.1, cautious=True)
        exact = Muon(reference, lr=0.1, weight_decay=0.1, cautious=True)
        set_gradients(0, params)
        for p, q in zip(params, reference, strict=True):
            q.grad = gradient_of(p).double()
        muon.step()
        exact.step()
        for p, q in zip(params, reference, strict=True):
            torch.testing.assert_close(p.detach().double(), q.detach(), atol=3e-2, rtol=3e-2)
