"""State dicts: resuming, precision, what does not fit."""

import copy

import pytest
import torch
from made_parameters import assert_equal_parameters, clones, mixed, parameters, set_gradients

from muonlab.optim import Muon

pytestmark = pytest.mark.usefixtures("on_device")


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


# -- which saved parameter is which ---------------------------------------------------------------


def named_optimizer(names, **options):
    """Groups of the named matrices in that order, "a" and "b" of one shape."""
    params = dict(zip("abc", parameters((8, 8), (8, 8), (3, 8, 8)), strict=True))
    groups = [
        {"params": [(name, params[name]) for name in group], "layout": layout}
        for group, layout in names
    ]
    return params, Muon(groups, **options)


def test_reordered_parameters_keep_their_own_momentum():
    params, muon = named_optimizer([("abc", None)])
    set_gradients(0, params.values())
    muon.step()
    others, other = named_optimizer([("ba", None), ("c", None)])
    other.load_state_dict(muon.state_dict())
    for name, p in params.items():
        assert torch.equal(other.state[others[name]]["momentum"], muon.state[p]["momentum"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_do_not_change_names(prefix):
    params, muon = named_optimizer([("abc", None)])
    set_gradients(0, params.values())
    muon.step()
    state = muon.state_dict()
    state["param_groups"][0]["param_names"] = [prefix + name for name in "abc"]
    others, other = named_optimizer([("cba", None)])
    other.load_state_dict(state)
    assert torch.equal(other.state[others["a"]]["momentum"], muon.state[params["a"]]["momentum"])
    assert other.param_groups[0]["param_names"] == ["c", "b", "a"]


def test_other_names_are_refused():
    _, muon = named_optimizer([("ab", None)])
    state = muon.state_dict()
    _, other = named_optimizer([("abc", None)])
    with pytest.raises(ValueError, match="c is a parameter of this optimizer only"):
        other.load_state_dict(state)


def test_one_group_of_several_saved_ones_is_refused():
    _, muon = named_optimizer([("ab", {"heads": 2}), ("c", None)])
    state = muon.state_dict()
    _, other = named_optimizer([("abc", None)])
    with pytest.raises(ValueError, match="c and a are in one group here"):
        other.load_state_dict(state)


@pytest.mark.parametrize("named", [True, False])
def test_an_older_state_with_a_list_of_layouts_loads(named):
    split = {"row_blocks": (4, 4)}
    params, muon = named_optimizer([("ab", split), ("c", None)])
    set_gradients(0, params.values())
    muon.step()
    state = copy.deepcopy(muon.state_dict())
    first, second = state["param_groups"]
    older = first | {
        "params": [first["params"][0], second["params"][0], first["params"][1]],
        "param_names": ["a", "c", "b"],
        "layouts": [split, None, split],
        "initial_lr": 0.3,
    }
    del older["layout"], older["row_equilibration"]  # an option that did not exist yet
    if not named:
        del older["param_names"]
    others, other = named_optimizer([("ab", split), ("c", None)])
    other.load_state_dict(state | {"param_groups": [older]})
    assert [group["layout"] for group in other.param_groups] == [split, None]
    assert other.param_groups[0]["row_equilibration"] is False
    for name, p in params.items():
        assert torch.equal(other.state[others[name]]["momentum"], muon.state[p]["momentum"])


def test_hooks_of_loading_run_in_order():
    params, muon = mixed()
    set_gradients(0, params)
    muon.step()
    state = muon.state_dict()
    wrapped = {"inner": state}
    done = []
    muon.register_load_state_dict_pre_hook(lambda optimizer, loaded: loaded["inner"])
    muon.register_load_state_dict_post_hook(lambda optimizer: done.append(len(optimizer.state)))
    muon.load_state_dict(wrapped)
    assert done == [len(params)]
