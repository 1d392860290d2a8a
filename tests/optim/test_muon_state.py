"""State dicts: resuming, precision, what does not fit."""

import copy

import pytest
import torch
from made_parameters import assert_equal_parameters, clones, mixed, parameters, set_gradients

from muonlab.optim import Muon


@pytest.mark.parametrize(
    "options", [{}, {"second_moment": "normuon"}, {"second_moment": "adamuon"}]
)
def test_resume_is_bitwise(tmp_path, options):
    straight, muon = mixed(**options)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(muon, 10)
    for step in range(4):
        set_gradients(step, straight)
        muon.step()
        scheduler.step()
    saved = {"optimizer": muon.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(saved, tmp_path / "state.pt")
    resumed, other = mixed(seed=1, **options)
    other_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(other, 10)
    with torch.no_grad():
        for p, q in zip(resumed, straight, strict=True):
            p.copy_(q)
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(loaded["optimizer"])
    other_scheduler.load_state_dict(loaded["scheduler"])
    for step in range(4, 8):
        set_gradients(step, straight, resumed)
        for optimizer in (muon, other):
            optimizer.step()
        scheduler.step()
        other_scheduler.step()
    assert_equal_parameters(straight, resumed)


def test_half_precision_parameters_keep_fp32_moments_through_a_load():
    params = parameters((8, 16), dtype=torch.bfloat16)
    muon = Muon(params, second_moment="normuon")
    set_gradients(0, params)
    muon.step()
    other = Muon(clones(params), second_moment="normuon")
    other.load_state_dict(muon.state_dict())
    moment = other.state[other.param_groups[0]["params"][0]]["second_moment"]
    assert moment.dtype == torch.float32
    assert torch.equal(moment, muon.state[params[0]]["second_moment"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["state"][0].update(momentum=torch.zeros(3, 3)), r"momentum is \(3, 3\)"),
        (lambda s: s["state"][1].update(momentum=torch.zeros(16, 16).half()), "float16"),
        (lambda s: s["state"][0].pop("momentum"), "momentum"),
        (lambda s: s["param_groups"].pop(), "2 groups"),
        (lambda s: s["param_groups"][2]["params"].pop(), "1 parameters"),
        (lambda s: s["param_groups"][2].update(algorithm="muon"), "'muon'"),
        (lambda s: s["param_groups"][0].update(momentum=2.0), "momentum 2.0"),
        (lambda s: s.pop("state"), "no 'state'"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, message):
    params, muon = mixed()
    set_gradients(0, params)
    muon.step()
    state = copy.deepcopy(muon.state_dict())
    before = copy.deepcopy(muon.state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        muon.load_state_dict(state)
    after = muon.state_dict()
    assert after["param_groups"] == before["param_groups"]  # nothing has changed
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)


def test_state_is_reported_in_bytes_against_adamw():
    params = parameters((64, 64))
    muon = Muon(params)
    set_gradients(0, params)
    muon.step()
    adamw = Muon([{"params": clones(params), "algorithm": "adamw"}])
    set_gradients(0, adamw.param_groups[0]["params"])
    adamw.step()
    assert muon.state_bytes() == 64 * 64 * 4
    assert adamw.state_bytes() == 2 * 64 * 64 * 4 + 4
