"""`Muon.clip_`: one sweep that measures, clips and checks, and that the step uses again."""

import math

import pytest
import torch
from made_parameters import assert_equal_parameters, clones, gradient_of, mixed, set_gradients

from muonlab.optim import Muon, NonfiniteGradientError
from muonlab.optim.gradients import Sweep

pytestmark = pytest.mark.usefixtures("on_device")


def all_gradients(params):
    return torch.cat([gradient_of(p).flatten() for p in params])


@pytest.mark.parametrize("max_norm", [None, 1e6, 2.0])
def test_norms_and_scale(max_norm):
    params, muon = mixed()
    set_gradients(0, params)
    before = all_gradients(params)
    norms = {key: value.item() for key, value in muon.clip_(max_norm).items()}
    norm = before.norm().item()
    assert norms["norm"] == pytest.approx(norm, rel=1e-6)
    of_muon, of_adamw = before.split([4 * 8 * 16 + 16 * 16, 9 * 5 + 5])
    assert norms["norm_muon"] == pytest.approx(of_muon.norm().item(), rel=1e-6)
    assert norms["norm_adamw"] == pytest.approx(of_adamw.norm().item(), rel=1e-6)
    scale = max_norm / norm if max_norm == 2.0 else 1.0
    assert norms["scale"] == pytest.approx(scale, rel=1e-5)
    torch.testing.assert_close(all_gradients(params), before * scale)


def test_clipping_equals_torchs():
    params, muon = mixed()
    others = clones(params)
    set_gradients(0, params, others)
    muon.clip_(0.5)
    torch.nn.utils.clip_grad_norm_(others, 0.5)
    torch.testing.assert_close(all_gradients(params), all_gradients(others))


def test_the_step_sweeps_once(monkeypatch):
    sweeps = []

    class Counted(Sweep):
        def __init__(self, groups):
            sweeps.append(1)
            super().__init__(groups)

    monkeypatch.setattr("muonlab.optim.muon.Sweep", Counted)
    params, muon = mixed()
    for step in range(2):
        set_gradients(step, params)
        muon.clip_(1.0)
        muon.step()
    assert len(sweeps) == 2


@pytest.mark.parametrize("change", ["in place", "replaced", "added"])
def test_gradients_changed_after_clipping_are_seen(change):
    params, muon = mixed()
    set_gradients(0, params)
    if change == "added":
        params[0].grad = None
    muon.clip_(1.0)
    if change == "in place":
        gradient_of(params[0]).view(-1)[0] = math.nan
    else:
        params[0].grad = torch.full_like(params[0], math.nan)
    with pytest.raises(NonfiniteGradientError):
        muon.step()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_shows_in_the_norm_and_is_left_alone(bad):
    params, muon = mixed()
    set_gradients(0, params)
    gradient_of(params[1]).view(-1)[3] = bad
    before = all_gradients(params)
    norms = muon.clip_(0.1)
    assert not norms["norm"].isfinite()
    assert norms["scale"] == 1
    torch.testing.assert_close(all_gradients(params), before, rtol=0, atol=0, equal_nan=True)


def test_half_precision_gradients_are_measured_in_fp32():
    p = torch.nn.Parameter(torch.zeros(100, 100, dtype=torch.float16))
    p.grad = torch.full_like(p, 60.0)  # the sum of squares is out of range, the norm is not
    assert mixed()[1].clip_()["norm"] == 0  # no gradient at all
    assert Muon([p]).clip_()["norm"].item() == pytest.approx(6000.0)


def test_a_step_returns_what_it_read_and_moves_as_without():
    params, muon = mixed()
    others, other = mixed()
    loss = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    for step in range(3):
        set_gradients(step, params, others)
        norms = muon.clip_(1.0)
        other.clip_(1.0)
        muon.step()
        found = other.step(read={"loss": loss, **norms})
        assert found == {"loss": 2.5} | {name: value.item() for name, value in norms.items()}
    assert_equal_parameters(params, others)


def test_nothing_moves_where_a_value_that_was_read_is_not_finite():
    params, muon = mixed()
    before = clones(params)
    set_gradients(0, params)
    assert muon.step(read={"loss": torch.tensor(math.inf)}) == {"loss": math.inf}
    assert_equal_parameters(params, before)
    assert not any(moved.any() for state in muon.state.values() for moved in state.values())
    assert muon.num_skipped_steps == 1
    gradient_of(params[0]).view(-1)[0] = math.nan  # this the caller does not see by itself
    with pytest.raises(NonfiniteGradientError):
        muon.step(read={"loss": torch.tensor(1.0)})


def test_a_bad_bound_is_named():
    with pytest.raises(ValueError, match=r"max_norm 0\.0"):
        mixed()[1].clip_(0.0)
