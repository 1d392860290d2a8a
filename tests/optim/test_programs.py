"""Muon in programs that it was not written for: copies, schedulers, layouts, other libraries."""

import copy
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from made_parameters import (
    assert_equal_parameters,
    clones,
    gradient_of,
    mixed,
    parameters,
    set_gradients,
)
from on_device import here
from torch import nn

from muonlab.optim import Muon, build_groups

pytestmark = pytest.mark.usefixtures("on_device")

# -- copies ---------------------------------------------------------------------------------------


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


def saved_whole(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # written a moment ago, by ourselves


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved_whole])
def test_a_copy_goes_on_as_the_original(duplicate):
    params, muon = mixed(nonfinite="skip", batch_bytes=5 << 20)
    set_gradients(0, params)
    muon.step()
    gradient_of(params[0]).view(-1)[0] = math.nan
    muon.step()
    other = duplicate(muon)
    assert (other.nonfinite, other.batch_bytes, other.num_skipped_steps) == ("skip", 5 << 20, 1)
    others = [p for group in other.param_groups for p in group["params"]]
    for step in range(2):
        set_gradients(step, params, others)
        muon.step()
        other.step()
    assert_equal_parameters(params, others)


def test_a_replaced_parameter_gets_a_state_of_its_own():
    (p,) = parameters((4, 6))
    muon = Muon([p])
    (wider,) = muon.param_groups[0]["params"][:] = parameters((8, 6))
    set_gradients(0, [wider])
    before = wider.detach().clone()
    muon.step()
    assert not torch.equal(wider.detach(), before)


# -- schedulers and other people's keys -----------------------------------------------------------

SCHEDULERS = {
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=9),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, base_lr=0.01, max_lr=0.1),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 9),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_a_state_saved_under_a_scheduler_loads(make, tmp_path):
    params, muon = mixed()
    scheduler = make(muon)
    for step in range(3):
        set_gradients(step, params)
        muon.step()
        scheduler.step()
    torch.save(muon.state_dict(), tmp_path / "state.pt")
    others, other = clones(params), None
    groups = [
        {"params": others[:1], "layout": {"row_blocks": [4, 4]}},
        {"params": others[1:2]},
        {"params": others[2:], "algorithm": "adamw"},
    ]
    other = Muon(groups, lr=0.5)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for group, saved in zip(other.param_groups, muon.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in saved.items() if k != "params"
        }
    set_gradients(9, params, others)
    muon.step()
    other.step()
    assert_equal_parameters(params, others)


def test_one_cycle_leaves_muons_momentum_alone():
    _, muon = mixed()
    torch.optim.lr_scheduler.OneCycleLR(muon, max_lr=0.1, total_steps=9)
    assert muon.param_groups[0]["momentum"] == 0.95
    assert muon.param_groups[2]["betas"][0] == 0.95  # AdamW's is cycled


def test_keys_of_other_libraries_are_kept():
    matrix, other = parameters((4, 4), (4, 4))
    muon = Muon(
        [
            {"params": [matrix], "name": "blocks", "lr_scale": 0.5},
            {"params": [other], "use_muon": False, "tag": 3},
        ]
    )
    assert muon.param_groups[0]["name"] == "blocks"
    assert [group["algorithm"] for group in muon.param_groups] == ["muon", "adamw"]
    assert muon.state_dict()["param_groups"][1]["tag"] == 3


def test_numbers_of_numpy_become_plain():
    (p,) = parameters((4, 4))
    half: Any = np.float32(0.5)
    muon = Muon([p], lr=half, momentum=np.float64(0.5), betas=(half, 0.9))
    set_gradients(0, [p])
    muon.step()
    group = muon.param_groups[0]
    for value in (group["lr"], group["momentum"], *group["betas"]):
        assert type(value) is float
    with pytest.raises(ValueError, match="lr"):
        Muon([p], lr=-half)


@pytest.mark.parametrize("first_named", [False, True])
def test_groups_with_and_without_names_go_together(first_named):
    first, second = parameters((4, 4), (5,))
    named, bare = [("weight", first)], [first]
    muon = Muon([{"params": named if first_named else bare}])
    late = [second] if first_named else [("bias", second)]
    muon.add_param_group({"params": late, "algorithm": "adamw"})
    assert all(len(group["param_names"]) == 1 for group in muon.param_groups)
    set_gradients(0, [first, second])
    muon.step()


def test_a_second_model_joins_later():
    backbone, head = nn.Linear(6, 6), nn.Linear(6, 4)
    muon = Muon(build_groups(head), lr=0.1)
    for group in build_groups(backbone):
        muon.add_param_group(group | {"lr": 0.01})
    params = [*backbone.parameters(), *head.parameters()]
    before = [p.detach().clone() for p in params]
    set_gradients(0, params)
    muon.step()
    assert all(not torch.equal(p.detach(), q) for p, q in zip(params, before, strict=True))


def test_a_model_given_bare_is_told_of_build_groups():
    with pytest.raises(ValueError, match=r"\(4,\) is not a matrix.*build_groups\(model\)"):
        Muon(nn.Linear(4, 4).parameters())


def test_the_representation_is_short():
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(50)])
    text = repr(Muon(build_groups(model), lr=0.02))
    assert len(text.splitlines()) == 4
    assert "50 tensors, 3,200 parameters, lr 0.02" in text


def test_the_default_device_does_not_matter():
    params, muon = mixed()
    set_gradients(0, params)
    with torch.device("meta"):
        muon.step()
    assert {v.device.type for state in muon.state.values() for v in state.values()} == {here().type}


# -- layouts of memory ----------------------------------------------------------------------------


def test_a_convolution_made_channels_last_after_construction():
    conv, plain = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
    plain.load_state_dict(conv.state_dict())
    ours, reference = (Muon(build_groups(m), lr=0.1, dtype="fp32") for m in (conv, plain))
    for step in range(4):
        if step == 2:  # also with a momentum that was made before
            conv.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        images = torch.randn(2, 4, 8, 8)
        for model, optimizer in ((conv, ours), (plain, reference)):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(conv.weight, plain.weight.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["muon", "adamw"])
@pytest.mark.parametrize("second_moment", ["none", "adamuon"])
def test_any_strides_of_parameter_and_gradient(algorithm, second_moment):
    """Each against the same values in contiguous tensors."""
    values = torch.randn(3, 8, 12)
    bare = [
        nn.Parameter(values[0].t().contiguous().t()),  # columns first
        nn.Parameter(values.permute(1, 2, 0).contiguous().permute(2, 0, 1)),  # stack last
        nn.Parameter(torch.stack([values, values], -1)[..., 0]),  # with gaps
        nn.Parameter(values[0].clone()),  # contiguous, with a transposed gradient
    ]
    plain = [nn.Parameter(p.detach().contiguous().clone()) for p in bare]
    options = {"lr": 0.1, "dtype": "fp32", "second_moment": second_moment}
    ours = Muon([{"params": bare, "algorithm": algorithm}], **options)
    reference = Muon([{"params": plain, "algorithm": algorithm}], **options)
    for step in range(3):
        set_gradients(step, plain)
        for p, q in zip(bare, plain, strict=True):
            gradient = gradient_of(q).transpose(-1, -2).contiguous().transpose(-1, -2)
            p.grad = torch.empty_like(p).copy_(gradient) if p is not bare[3] else gradient
        ours.step()
        reference.step()
    for p, q in zip(bare, plain, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), atol=1e-5, rtol=1e-5)


def test_weights_stored_input_first_equal_their_transposes():
    out_first = parameters((24, 10), (3, 24, 10))
    in_first = [nn.Parameter(p.detach().mT.contiguous()) for p in out_first]
    layout = {"row_blocks": (8, 8, 8)}
    options = {"lr": 0.1, "scale": "spectral", "second_moment": "normuon", "dtype": "fp32"}
    one = Muon([{"params": out_first, "layout": layout}], **options)
    other = Muon([{"params": in_first, "layout": layout | {"transpose": True}}], **options)
    for step in range(3):
        set_gradients(step, out_first)
        for p, q in zip(in_first, out_first, strict=True):
            p.grad = gradient_of(q).mT.contiguous()
        one.step()
        other.step()
    for p, q in zip(in_first, out_first, strict=True):
        torch.testing.assert_close(p.detach().mT, q.detach(), atol=1e-5, rtol=1e-5)


# -- kinds of parameters --------------------------------------------------------------------------


class Mixed(nn.Module):
    """Convolutions of every dimension and a recurrent layer, as one function of (B, 3)."""

    def __init__(self):
        super().__init__()
        self.line, self.plane, self.space = (
            kind(1, 4, 3, padding=1) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        )
        self.up = nn.ConvTranspose1d(4, 4, 3)
        self.recurrent = nn.GRU(3, 5, batch_first=True)
        self.empty = nn.Parameter(torch.zeros(0, 4))

    def forward(self, x):
        line = self.up(self.line(x.unsqueeze(1))).mean(dim=(1, 2))
        plane = self.plane(x[:, None, None]).mean(dim=(1, 2, 3))
        space = self.space(x[:, None, None, None]).mean(dim=(1, 2, 3, 4))
        recurrent, _ = self.recurrent(x.unsqueeze(1))
        return line + plane + space + recurrent.sum(dim=(1, 2)) + self.empty.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_convolutions_recurrent_layers_and_empty_parameters(dtype):
    torch.manual_seed(0)
    model = Mixed().to(dtype)
    muon = Muon(build_groups(model, roles={"empty": "hidden"}), lr=0.05, weight_decay=0.0)
    placed = {n: g["algorithm"] for g in muon.param_groups for n in g["param_names"]}
    assert placed["line.weight"] == placed["recurrent.weight_hh_l0"] == placed["empty"] == "muon"
    x = torch.randn(16, 3, dtype=dtype)
    losses = []
    for _ in range(10):
        muon.zero_grad()
        loss = (model(x) - x.sum(dim=1)).square().mean()
        loss.backward()
        muon.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("power", [-30, 30])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_equilibration": True},
        {"second_moment": "normuon"},
        {"second_moment": "adamuon"},
        {"schedule": "svd"},
        {"cautious": True},
    ],
    ids=str,
)
def test_no_option_depends_on_the_scale_of_gradients(power, options):
    start = parameters((4, 8, 16), (16, 16))
    ours, scaled = clones(start), clones(start)
    plain, other = (Muon(p, lr=0.1, dtype="fp32", **options) for p in (ours, scaled))
    for step in range(2):
        set_gradients(step, ours, scaled)
        for p in scaled:
            gradient_of(p).mul_(10.0**power)
        plain.step()
        other.step(diagnostics=True)
    for p, q in zip(ours, scaled, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), atol=2e-5, rtol=0)
    assert all(math.isfinite(value) for value in other.diagnostics.values())


def test_diagnostics_of_zero_gradients_are_finite():
    params = parameters((4, 4), (2, 4, 4))
    for p in params:
        p.grad = torch.zeros_like(p)
    muon = Muon(params)
    muon.step(diagnostics=True)
    assert all(math.isfinite(value) for value in muon.diagnostics.values())
    assert muon.diagnostics["muon/update_rms"] == 0


def test_cautious_decay_includes_the_boundary():
    """2510.12402 decays where u·p ≥ 0: also where the update is exactly zero."""
    p = nn.Parameter(torch.ones(2, 2))
    p.grad = torch.zeros(2, 2)
    Muon([p], lr=0.1, weight_decay=0.5, cautious=True).step()
    torch.testing.assert_close(p.detach(), torch.full((2, 2), 0.95))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("second_moment", ["none", "normuon"])
def test_an_idle_neighbour_changes_nothing_at_all(dtype, second_moment):
    """Bit for bit, also in the last digits of momentum and weights."""
    (start,) = parameters((3, 8, 16), dtype=dtype)
    idle, busy = clones([start]), clones([start])
    options = {"lr": 0.013, "weight_decay": 0.1, "momentum": 0.95, "dtype": "fp32"}
    one, other = (Muon(p, second_moment=second_moment, **options) for p in (idle, busy))
    for step in range(3):
        set_gradients(step, idle, busy)
        gradient_of(idle[0])[1] = 0
        one.step()
        other.step()
    assert torch.equal(idle[0].detach()[[0, 2]], busy[0].detach()[[0, 2]])
    for key, value in one.state[idle[0]].items():
        assert torch.equal(value[[0, 2]], other.state[busy[0]][key][[0, 2]])
    assert torch.equal(idle[0].detach()[1], start.detach()[1])
