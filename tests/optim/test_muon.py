import copy

import pytest
import torch
from torch import nn

from muonlab.optim import Muon, NonfiniteGradientError, orthogonalise

SHAPES = [(16, 16), (8, 32), (32, 8), (16, 16), (8, 32)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny matrices gain nothing from a second one, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def mixed(seed=0, **options):
    params = parameters((4, 8, 16), (16, 16), (9, 5), (5,), seed=seed)
    groups = [
        {"params": params[:2], "layouts": [{"row_blocks": [4, 4]}, None]},
        {"params": params[2:], "algorithm": "adamw", "lr": 0.003},
    ]
    return params, Muon(groups, lr=0.02, **options)


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
        (lambda s: s["param_groups"].pop(), "1 groups"),
        (lambda s: s["param_groups"][0]["params"].pop(), "1 parameters"),
        (lambda s: s["param_groups"][1].update(algorithm="muon"), "'muon'"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, message):
    params, muon = mixed()
    set_gradients(0, params)
    muon.step()
    state = copy.deepcopy(muon.state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        muon.load_state_dict(state)


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


@pytest.mark.parametrize("rank", [1, 256])  # every matrix, or none, takes the fp32 path
def test_the_workspace_is_bounded_over_all_shapes(rank):
    shapes = [(12, 256, 256), (6, 256, 1024), (6, 1024, 256), (20, 16, 4096)]
    bound = 24 << 20
    params = parameters(*shapes)
    for p in params:
        p.grad = torch.randn(*p.shape[:2], rank) @ torch.randn(p.shape[0], rank, p.shape[2])
    muon = Muon(params, dtype="bf16", batch_bytes=bound)
    muon.step()
    assert 0 < muon.workspace_bytes() <= bound


def test_parameters_without_gradient_are_untouched():
    params, muon = mixed()
    before = [p.detach().clone() for p in params]
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
    assert muon.param_groups[1]["initial_lr"] == 0.1


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
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
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
        ({"params": [nn.Parameter(torch.zeros(3, 4).t())]}, "contiguous"),
        ({"params": [nn.Parameter(torch.zeros(3, 3))], "weight_deca": 1}, "'weight_deca'"),
        ({"params": [nn.Parameter(torch.zeros(3, 3))], "algorithm": "sgd"}, "'sgd'"),
        ({"params": [nn.Parameter(torch.zeros(3, 3))], "layouts": []}, "0 layouts for 1"),
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
