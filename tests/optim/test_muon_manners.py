"""Muon as an optimizer among others: closures, schedulers, scalers, compiled steps, bad input."""

import copy

import pytest
import torch
from made_parameters import (
    SHAPES,
    assert_equal_parameters,
    clones,
    gradient_of,
    mixed,
    parameters,
    set_gradients,
)
from on_device import here, only_on_the_cpu
from torch import nn

from muonlab.optim import Muon, NonfiniteGradientError

pytestmark = pytest.mark.usefixtures("on_device")


def test_parameters_without_gradient_are_untouched():
    params, muon = mixed()
    before = [p.detach().clone() for p in params]
    params[2].grad = torch.ones_like(params[2])
    muon.step()
    assert_equal_parameters(params[:2] + params[3:], before[:2] + before[3:])
    assert list(muon.state) == [params[2]]


def test_a_step_without_any_gradient_moves_nothing_and_says_so_once():
    params, muon = mixed()
    before = [p.detach().clone() for p in params]
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        muon.step()
    muon.step()
    assert_equal_parameters(params, before)
    assert not muon.state


def test_closure_add_param_group_and_zero_grad():
    model = nn.Linear(4, 4)
    muon = Muon([model.weight], lr=0.05)
    muon.add_param_group({"params": [model.bias], "algorithm": "adamw", "lr": 0.1})
    data = torch.randn(8, 4)

    def closure():
        muon.zero_grad()
        loss = model(data).square().mean()
        loss.backward()
        return loss

    losses = [muon.step(closure).item() for _ in range(20)]
    assert losses[-1] < losses[0]
    assert muon.param_groups[1]["lr"] == 0.1


def test_a_new_rate_counts_for_a_new_scheduler():
    (p,) = parameters((4, 4))
    muon = Muon([p], lr=0.1)
    muon.param_groups[0]["lr"] = 0.02
    torch.optim.lr_scheduler.LambdaLR(muon, lambda step: 0.5)
    assert muon.param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_tensor_learning_rate_equals_a_number():
    start = parameters(*SHAPES)
    ours, other = clones(start), clones(start)
    number, tensor = Muon(ours, lr=0.02), Muon(other, lr=torch.tensor(0.02))
    for step in range(3):
        set_gradients(step, ours, other)
        number.step()
        tensor.step()
    for p, q in zip(ours, other, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), atol=1e-6, rtol=1e-6)


def test_under_grad_scaler():
    model = nn.Linear(4, 4, bias=False)
    muon = Muon(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler(here().type, init_scale=2.0**10)
    before = model.weight.detach().clone()
    loss = model(torch.randn(8, 4)).square().mean()
    scaler.scale(loss).backward()
    gradient_of(model.weight)[0, 0] = float("inf")
    scaler.step(muon)  # skipped by the scaler, not by us
    scaler.update()
    assert torch.equal(model.weight.detach(), before)
    muon.zero_grad()
    scaler.scale(model(torch.randn(8, 4)).square().mean()).backward()
    scaler.step(muon)
    assert not torch.equal(model.weight.detach(), before)


def test_inside_a_compiled_training_step():
    only_on_the_cpu("torch.compile would trace what places the test's tensors")
    model, other = nn.Linear(6, 6), nn.Linear(6, 6)
    other.load_state_dict(model.state_dict())
    data = torch.randn(8, 6)

    def train(net, optimizer):
        optimizer.zero_grad()
        net(data).square().mean().backward()
        optimizer.step()

    def build(net):
        return Muon([{"params": [net.weight]}, {"params": [net.bias], "algorithm": "adamw"}])

    eager, compiled = build(model), build(other)
    compiled_train = torch.compile(train, backend="eager")
    for _ in range(3):
        train(model, eager)
        compiled_train(other, compiled)
    torch.testing.assert_close(model.weight, other.weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_nonfinite_gradients(bad, where):
    def build(nonfinite):
        params = parameters((8, 8), (5,))
        groups = [
            {"params": [("matrix", params[0])]},
            {"params": [("bias", params[1])], "algorithm": "adamw"},
        ]
        muon = Muon(groups, lr=0.1, nonfinite=nonfinite)
        set_gradients(0, params)
        muon.step()
        params[where].grad.view(-1)[2] = bad
        return muon, params

    muon, params = build("skip")
    before = copy.deepcopy(muon.state_dict()), [p.detach().clone() for p in params]
    muon.step()
    assert muon.num_skipped_steps == 1
    assert_equal_parameters(params, before[1])
    torch.testing.assert_close(muon.state_dict()["state"], before[0]["state"], rtol=0, atol=0)
    muon, params = build("raise")
    with pytest.raises(NonfiniteGradientError, match=["matrix", "bias"][where]):
        muon.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr -1.0"),
        ({"lr": float("nan")}, "lr nan"),
        ({"lr": torch.zeros(2)}, "lr must be"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"weight_decay": -0.1}, "weight_decay -0.1"),
        ({"betas": (0.9, 1.0)}, "betas 1.0"),
        ({"betas": 0.9}, "betas 0.9"),
        ({"eps": 0.0}, "eps 0.0"),
        ({"schedule": "keler"}, "'keler'"),
        ({"scale": "big"}, "scale 'big'"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"nesterov": 1}, "nesterov 1"),
        ({"nonfinite": "ignore"}, "nonfinite 'ignore'"),
        ({"batch_bytes": 0}, "batch_bytes 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Muon(parameters((4, 4)), **options)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"params": []}, "no parameters"),
        ({"params": [nn.Parameter(torch.zeros(4))]}, r"\(4,\)"),
        ({"params": [nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64))]}, "complex64"),
        ({"params": [nn.Parameter(torch.zeros(3, 3))], "weight_deca": 1}, "'weight_deca'"),
        ({"params": [nn.Parameter(torch.zeros(3, 3))], "algorithm": "sgd"}, "'sgd'"),
        ({"params": [nn.Parameter(torch.zeros(3, 3))], "layouts": [None]}, "'layout'"),
        ({"params": [nn.Parameter(torch.zeros(3, 3))], "maximize": True}, "'maximize'"),
        ({"params": [nn.Parameter(torch.zeros(3, 3))], "ns_steps": 5}, "'ns_steps'"),
        ({"params": [nn.Parameter(torch.zeros(3, 3))], "beta1": 0.9}, "did you mean"),
        (
            {"params": [nn.Parameter(torch.zeros(3, 3))], "use_muon": False, "algorithm": "muon"},
            "use_muon False contradicts",
        ),
    ],
)
def test_bad_groups_are_named(group, message):
    with pytest.raises(ValueError, match=message):
        Muon([group])


def test_sparse_gradients_are_refused_by_name():
    embedding = nn.Embedding(5, 3, sparse=True)
    muon = Muon([{"params": [("words", embedding.weight)], "algorithm": "adamw"}])
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="words: sparse"):
        muon.step()
