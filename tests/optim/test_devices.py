"""The dtype rule, and what a step asks of a device that this machine may not have."""

import copy

import pytest
import torch
from made_parameters import SHAPES, assert_equal_parameters, clones, parameters, set_gradients
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from muonlab.optim import Muon, SlowDtypeWarning, batches, orthogonalise, polar, update
from muonlab.optim.processor import full_fp32
from muonlab.optim.sizes import Sizes, sizes_for

SLOW_IS_FINE = pytest.mark.filterwarnings("ignore::muonlab.optim.SlowDtypeWarning")


@pytest.fixture
def native(monkeypatch):
    """``native(True)``: bf16 is native here, whatever this processor is."""

    def say(answer):
        for module in ("polar", "muon"):
            monkeypatch.setattr(f"muonlab.optim.{module}.bf16_is_native", lambda device: answer)

    return say


def stepped(muon):
    set_gradients(0, *(group["params"] for group in muon.param_groups))
    muon.step()
    return muon


# -- dtype="auto" ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "resolved"), [(True, "bf16_large"), (False, "fp32")])
def test_auto_is_settled_at_the_first_step_and_kept(native, answer, resolved):
    native(answer)
    muon = Muon(parameters((4, 4)))
    assert muon.param_groups[0]["dtype"] == "auto"
    assert stepped(muon).state_dict()["param_groups"][0]["dtype"] == resolved


@SLOW_IS_FINE
@pytest.mark.parametrize("shape", [(63, 200), (200, 63)])
def test_small_matrices_stay_in_fp32(shape):
    matrix = torch.randn(shape)
    exact = orthogonalise(matrix, dtype="fp32")
    assert torch.equal(orthogonalise(matrix, dtype="bf16_large"), exact)
    larger = torch.randn(64, 200)
    rounded = orthogonalise(larger, dtype="bf16_large")
    assert torch.equal(rounded, orthogonalise(larger, dtype="bf16"))
    assert not torch.equal(rounded, orthogonalise(larger, dtype="fp32"))


def test_a_loaded_choice_is_kept_and_said_aloud_once_where_it_is_slow(native):
    native(True)
    start = parameters((64, 64))
    state = stepped(Muon(clones(start))).state_dict()
    native(False)
    muon = Muon(clones(start))
    muon.load_state_dict(state)
    with pytest.warns(SlowDtypeWarning, match="'bf16_large', given or loaded: this cpu"):
        stepped(muon)
    assert muon.param_groups[0]["dtype"] == "bf16_large"
    stepped(muon)  # not a second time


def test_fp32_from_a_slow_processor_stays_fp32_on_a_fast_one(native):
    native(False)
    start = parameters((64, 64))
    first = stepped(Muon(clones(start)))
    native(True)
    other = Muon(clones(start))
    other.load_state_dict(first.state_dict())
    assert stepped(other).param_groups[0]["dtype"] == "fp32"


def test_an_older_state_that_says_auto_still_loads(native):
    native(False)
    start = parameters((8, 8))
    state = stepped(Muon(clones(start))).state_dict()
    state["param_groups"][0]["dtype"] = "auto"
    other = Muon(clones(start))
    other.load_state_dict(state)
    assert stepped(other).param_groups[0]["dtype"] == "fp32"


def test_fp16_on_a_cpu_is_said_to_be_slow():
    with pytest.warns(SlowDtypeWarning, match="fp16"):
        stepped(Muon(parameters((8, 8)), dtype="fp16"))


# -- fp32 means fp32 ------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_tf32_and_bf16_are_off_within_a_step_and_back_after_it(precision, monkeypatch):
    asked = []
    iterations = update.polar_iterations

    def spy(*arguments):
        asked.append(torch.get_float32_matmul_precision())
        asked.append(torch._C._get_fp32_precision_getter("cuda", "matmul"))
        asked.append(torch._C._get_fp32_precision_getter("mkldnn", "matmul"))
        return iterations(*arguments)

    monkeypatch.setattr(update, "polar_iterations", spy)
    torch.set_float32_matmul_precision(precision)
    try:
        stepped(Muon(parameters((8, 8)), dtype="fp32"))
        assert asked[1:] == ["ieee", "ieee"]
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_setting_comes_back_after_an_error():
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ZeroDivisionError), full_fp32():
            raise ZeroDivisionError
        assert torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


# -- an accelerator: the meta device stands for one, the trainer.s own tests run a whole step --


@pytest.fixture
def host(monkeypatch):
    """Counts what waits for the device, and answers a read as if all were well."""
    with HostReads() as reads:

        def tolist(tensor):
            reads.found.append("tolist")
            return [1.0] * tensor.numel()

        monkeypatch.setattr(torch.Tensor, "tolist", tolist)
        yield reads


class HostReads(TorchDispatchMode):
    OPS = ("_local_scalar_dense", "nonzero", "item", "equal", "masked_select", "bincount", "unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.startswith(self.OPS):
            self.found.append(name)
            if name == "_local_scalar_dense":
                return True
        return func(*args, **(kwargs or {}))


def meta_parameters(*shapes):
    params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    for p in params:
        p.grad = torch.empty_like(p)
    return params


@SLOW_IS_FINE
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bf16"},
        {"dtype": "fp16"},
        {"dtype": "fp32"},
        {"dtype": "bf16", "second_moment": "normuon", "cautious": True},
        {"schedule": "svd"},
        {"schedule": "none"},
    ],
    ids=str,
)
def test_a_step_waits_for_the_device_once(options, host):
    muon = Muon(meta_parameters((4, 64, 96), *[(128, 64)] * 3), **options)
    norms = muon.clip_(1.0)
    assert host.found == []
    muon.step(read={"loss": torch.empty((), device="meta"), **norms})
    assert host.found == ["tolist"]
    muon.step()
    assert host.found == ["tolist"] * 2


def test_directions_that_do_not_fit_wait_for_another_read(host):
    muon = Muon(meta_parameters(*[(64, 64)] * 3), dtype="fp32", batch_bytes=1 << 15)
    muon.step()
    assert host.found == ["tolist"] * 3


def test_every_state_tensor_is_on_its_parameters_device(host):
    muon = Muon(
        [
            {"params": meta_parameters((4, 64, 96), (128, 64))},
            {"params": meta_parameters((7,), ()), "algorithm": "adamw"},
        ],
        second_moment="normuon",
    )
    muon.step()
    states = [value for state in muon.state.values() for value in state.values()]
    assert len(states) == 2 * 2 + 2 * 3
    assert {value.device.type for value in states} == {"meta"}
    state = muon.state_dict()
    muon.load_state_dict(state)
    states = [value for state in muon.state.values() for value in state.values()]
    assert {value.device.type for value in states} == {"meta"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("second_moment", ["none", "normuon"])
@SLOW_IS_FINE
def test_waves_of_batches_equal_batches_side_by_side(dtype, second_moment, monkeypatch):
    """What an accelerator does, done by the CPU; with matrices that must be done again in fp32."""
    start = parameters((6, 64, 64), *SHAPES, (64, 64))
    ours, other = clones(start), clones(start)
    options = {"lr": 0.1, "dtype": dtype, "second_moment": second_moment}

    def train(params, batch_bytes):
        muon = Muon(params, batch_bytes=batch_bytes, **options)
        for step in range(3):
            set_gradients(step, params)
            params[0].grad[1] = torch.outer(params[0].grad[1][0], params[0].grad[1][1])  # rank 1
            params[0].grad[2] = 0
            muon.step(diagnostics=step == 2)
        return muon.diagnostics

    first = train(ours, 256 << 20)
    as_an_accelerator(monkeypatch)
    second = train(other, 1 << 20)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=0.1)
    for p, q in zip(ours, other, strict=True):
        bound = 1e-5 if dtype == "fp32" else 3e-2
        torch.testing.assert_close(p.detach(), q.detach(), atol=bound, rtol=bound)


def as_an_accelerator(monkeypatch):
    """From now on this CPU is worked on as if its values took a wait to read."""
    sizes = sizes_for(torch.device("meta"))
    for module in (batches, polar, update):
        monkeypatch.setattr(module, "sizes_for", lambda device: sizes)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@SLOW_IS_FINE
def test_an_accelerator_moves_nothing_where_the_step_is_refused(dtype, monkeypatch):
    """Though it has the directions by then."""
    as_an_accelerator(monkeypatch)
    params = parameters((2, 8, 16), (16, 16))
    muon = Muon(params, dtype=dtype)
    stepped(muon)
    before, state = clones(params), copy.deepcopy(muon.state_dict()["state"])
    set_gradients(1, params)
    muon.step(read={"loss": torch.tensor(torch.nan)})
    assert_equal_parameters(params, before)
    for key, value in muon.state_dict()["state"].items():
        assert torch.equal(value["momentum"], state[key]["momentum"])


def test_sizes_come_from_one_place(monkeypatch):
    """Other sizes, the same result: nothing else knows how a CPU is cut."""
    start = parameters((6, 16, 24), (40, 16))
    results = []
    for sizes in (None, Sizes(per_pass=50, per_batch=400, per_repair=100, host_waits=False)):
        if sizes is not None:
            for module in (batches, polar, update):
                monkeypatch.setattr(module, "sizes_for", lambda device, sizes=sizes: sizes)
        params = clones(start)
        muon = Muon(params, dtype="fp32")
        for step in range(2):
            set_gradients(step, params)
            muon.step()
        results.append(params)
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), atol=1e-5, rtol=1e-5)


def test_an_optimizer_on_a_device(device):
    """The same steps as on the CPU."""
    start = parameters((4, 8, 16), (16, 16))
    ours = [nn.Parameter(p.detach().to(device)) for p in start]
    reference = clones(start)
    muon, other = Muon(ours, dtype="fp32"), Muon(reference, dtype="fp32")
    for step in range(3):
        set_gradients(step, reference)
        for p, q in zip(ours, reference, strict=True):
            assert q.grad is not None
            p.grad = q.grad.to(device)
        muon.step()
        other.step()
    if device.type == "cpu":
        assert_equal_parameters(ours, reference)
    for p, q in zip(ours, reference, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), atol=1e-4, rtol=1e-4)
