import threading

import pytest
import torch
from torch import nn

from muonlab.optim import Muon
from muonlab.optim.workers import parallel_map

pytestmark = pytest.mark.filterwarnings("ignore::muonlab.optim.SlowDtypeWarning")

SHAPES = [(12, 64, 64), (64, 256), (64, 256), (256, 64), (5, 32, 96)]


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def trained(parameters, *, steps=3, diagnostics=False, **options):
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(s, generator=generator, dtype=parameters)) for s in SHAPES]
    bias = nn.Parameter(torch.randn(7, generator=generator, dtype=parameters))
    groups = [{"params": params}, {"params": [bias], "algorithm": "adamw"}]
    muon = Muon(groups, lr=0.02, **options)
    for _ in range(steps):
        for p in (*params, bias):
            p.grad = torch.randn(p.shape, generator=generator, dtype=parameters)
            p.grad[0] = 0  # an idle expert in stacks
        muon.step(diagnostics=diagnostics)
    return [p.detach() for p in (*params, bias)], muon


@pytest.mark.parametrize("options", [{}, {"second_moment": "normuon", "cautious": True}])
def test_two_workers_equal_one(options):
    threads = torch.get_num_threads()
    results = {}
    for count in (1, 2):
        torch.set_num_threads(count)
        results[count], muon = trained(torch.float64, diagnostics=True, **options)
        results[count] += list(muon.block_update_rms.values())
        results[count] += [torch.tensor(muon.diagnostics[key]) for key in sorted(muon.diagnostics)]
    torch.set_num_threads(threads)
    for one, two in zip(results[1], results[2], strict=True):
        torch.testing.assert_close(one, two, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_workers_are_deterministic(two_threads, dtype):
    first, _ = trained(torch.float32, dtype=dtype)
    second, _ = trained(torch.float32, dtype=dtype)
    for p, q in zip(first, second, strict=True):
        assert torch.equal(p, q)


def test_the_workspace_is_bounded_whatever_the_number_of_threads(two_threads):
    results = []
    for mebibytes in (3, 256):
        params, muon = trained(torch.float64, steps=1, batch_bytes=mebibytes << 20)
        assert 0 < muon.workspace_bytes() <= mebibytes << 20
        results.append(params)
    for small, large in zip(*results, strict=True):
        torch.testing.assert_close(small, large, atol=1e-10, rtol=1e-10)


def test_items_keep_their_order_and_threads_their_cores(two_threads):
    def task(item):
        return item, torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()

    results = parallel_map(task, range(20), 2)
    assert [item for item, *_ in results] == list(range(20))
    assert {cores for _, cores, *_ in results} == {1}
    assert not any(enabled for *_, enabled, _ in results)
    assert threading.get_ident() not in {ident for *_, ident in results}
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()
    assert parallel_map(task, [0], 2)[0][3] == threading.get_ident()


def test_an_error_in_a_worker_arrives_and_the_next_step_works(two_threads, monkeypatch):
    params, muon = trained(torch.float32, steps=1)
    monkeypatch.setattr("muonlab.optim.update.update_scale", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        muon.step()
    monkeypatch.undo()
    muon.step()
    assert all(p.isfinite().all() for p in params)
