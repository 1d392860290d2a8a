import pytest
import torch
from torch import nn

from muonlab.optim import Muon

pytestmark = pytest.mark.usefixtures("on_device")


def test_diagnostics_equal_their_definitions():
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 6, 10))
    start, gradient = stack.detach().clone(), torch.randn(3, 6, 10)
    gradient[1] = 0
    stack.grad = gradient.clone()
    muon = Muon([("experts", stack)], lr=0.1, weight_decay=0.0, dtype="fp32")
    muon.step(diagnostics=True)
    update = (start - stack.detach()) / 0.1
    active = update[[0, 2]]
    metrics = muon.diagnostics
    assert metrics["muon/idle_blocks"] == 1
    assert metrics["muon/update_rms"] == pytest.approx(active.square().mean().sqrt().item(), 1e-4)
    cosines = torch.cosine_similarity(active.flatten(1), gradient[[0, 2]].flatten(1))
    assert metrics["muon/alignment"] == pytest.approx(cosines.mean().item(), abs=1e-4)
    sigma = torch.linalg.svdvals(update[0])
    assert metrics["muon/sigma_max"] == pytest.approx(sigma[0].item(), rel=1e-3)
    assert metrics["muon/sigma_min"] == pytest.approx(sigma[-1].item(), rel=1e-3)
    sigma = torch.linalg.svdvals(gradient[0])
    stable_rank = (sigma.square().sum() / sigma[0] ** 2).item()
    assert metrics["muon/stable_rank"] == pytest.approx(stable_rank, rel=1e-3)
    rms = update.square().mean(dim=(1, 2)).sqrt()
    torch.testing.assert_close(muon.block_update_rms["experts"], rms, atol=1e-4, rtol=1e-4)


def test_diagnostics_do_not_change_the_step_and_are_off_by_default():
    torch.manual_seed(0)
    first = nn.Parameter(torch.randn(6, 10))
    second = nn.Parameter(first.detach().clone())
    first.grad = torch.randn(6, 10)
    second.grad = first.grad.clone()
    plain, observed = Muon([first]), Muon([second])
    plain.step()
    observed.step(diagnostics=True)
    assert torch.equal(first.detach(), second.detach())
    assert not plain.diagnostics
    assert observed.diagnostics
