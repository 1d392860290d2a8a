import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import only_on_the_cpu

from muonlab.optim.polar import (
    Workspace,
    orthogonalise,
    polar_flops,
    polar_iterations,
    segments,
    step_flops,
)
from muonlab.optim.schedules import resolve_schedule, scalar_map

pytestmark = pytest.mark.usefixtures("on_device")

SCHEDULES = ["keller5", "you5", "polar_express", "deepseek_v4"]
SHAPES = {"wide": (1, 24, 96), "tall": (1, 96, 24), "square": (1, 32, 32), "batched": (3, 20, 28)}


def with_singular_values(sigma, batch, m, n):
    """(batch, m, n) fp64 with the given singular values, and its polar bases."""
    k = min(m, n)
    u = torch.linalg.qr(torch.randn(batch, m, k, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(batch, n, k, dtype=torch.float64))[0]
    return u, sigma, v


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_fp64_equals_the_scalar_map_on_the_singular_values(schedule, shape):
    torch.manual_seed(0)
    batch, m, n = shape
    sigma = torch.logspace(-3, 0, min(m, n), dtype=torch.float64)
    sigma = sigma / sigma.norm()
    u, sigma, v = with_singular_values(sigma, batch, m, n)
    out = orthogonalise((u * (5 * sigma)) @ v.mT, schedule)
    expected = (u * scalar_map(schedule, sigma)) @ v.mT
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


def test_svd_oracle():
    torch.manual_seed(0)
    u, _, v = with_singular_values(None, 2, 12, 30)
    sigma = torch.logspace(-2, 0, 12, dtype=torch.float64)
    out = orthogonalise((u * sigma) @ v.mT, "svd")
    torch.testing.assert_close(out, u @ v.mT, atol=1e-12, rtol=0)
    rank_one = torch.outer(torch.arange(1.0, 5.0), torch.arange(1.0, 4.0))
    torch.testing.assert_close(orthogonalise(rank_one, "svd"), rank_one / rank_one.norm())


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-4), ("bf16", 8e-2), ("fp16", 1e-2)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_low_precision_is_close_to_fp64(dtype, bound, shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    out = orthogonalise(matrices, dtype=dtype).double()
    expected = orthogonalise(matrices.double())
    assert (out - expected).norm() / expected.norm() < bound


@given(st.integers(1, 4), st.integers(2, 40), st.integers(2, 40), st.sampled_from(SCHEDULES))
@settings(max_examples=30)
def test_batched_equals_one_by_one(batch, m, n, schedule):
    matrices = torch.randn(batch, m, n, dtype=torch.float64)
    together = orthogonalise(matrices, schedule)
    alone = torch.stack([orthogonalise(matrix, schedule) for matrix in matrices])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)
    single = matrices.float()
    together = orthogonalise(single, schedule, dtype="fp32")
    alone = torch.stack([orthogonalise(matrix, schedule, dtype="fp32") for matrix in single])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@given(st.integers(2, 40), st.integers(2, 40), st.sampled_from(SCHEDULES))
@settings(max_examples=30)
def test_transposing_commutes(m, n, schedule):
    matrix = torch.randn(m, n, dtype=torch.float64)
    torch.testing.assert_close(
        orthogonalise(matrix.mT, schedule), orthogonalise(matrix, schedule).mT, atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", ["auto", "bf16", "fp32"])
@pytest.mark.parametrize(("m", "n"), [(128, 512), (512, 128), (96, 96)])
def test_a_rank_one_input_keeps_its_direction(schedule, dtype, m, n):
    torch.manual_seed(0)
    u, v = torch.randn(m), torch.randn(n)
    matrix = torch.outer(u, v)
    out = orthogonalise(matrix, schedule, dtype=dtype)
    inner = (u / u.norm()) @ out @ (v / v.norm())
    assert inner > 0
    assert inner.square() / out.square().sum() >= 0.999


def hard_matrix(kind, m, n):
    """Matrices whose Gram iteration comes close to diverging in half precision."""
    k = min(m, n)
    if kind == "two strong rows, a tail":
        matrix = 0.1 * torch.randn(m, n, dtype=torch.float64) / (m**0.5 + n**0.5)
        matrix[:2, :2] += torch.outer(torch.tensor([0.6, 0.8]), torch.tensor([0.8, -0.6]))
        return matrix
    sigma = {
        "rank 16": (torch.arange(k) < 16).double(),
        "half the rank": (torch.arange(k) < k // 2).double(),
        "one strong direction": (torch.arange(k) == 0) + 0.03 * torch.ones(k, dtype=torch.float64),
        "three decades": torch.logspace(-3, 0, k, dtype=torch.float64),
    }[kind]
    u, sigma, v = with_singular_values(sigma, 1, m, n)
    return ((u * sigma) @ v.mT)[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("m", "n"), [(128, 512), (512, 128), (64, 256)])
def test_bf16_does_not_diverge(schedule, m, n):
    torch.manual_seed(0)
    kinds = {  # and the largest relative error; most would be 1e3 and more
        "rank 16": 0.75,
        "half the rank": 1.1 if schedule == "deepseek_v4" else 0.6,
        "one strong direction": 0.05,
        "three decades": 0.25,
        "two strong rows, a tail": 0.1,
    }
    matrices = torch.stack([hard_matrix(kind, m, n) for kind in kinds])
    exact = orthogonalise(matrices, schedule)
    found = orthogonalise(matrices.float(), schedule, dtype="bf16")
    errors = (found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    for (kind, bound), error in zip(kinds.items(), errors.tolist(), strict=True):
        assert error < bound, kind


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-5), ("bf16", 6e-2), ("fp16", 6e-3)])
@pytest.mark.parametrize("power", range(-30, 31, 5))
@pytest.mark.parametrize("shape", [(16, 16), (16, 48)])
def test_the_scale_of_the_input_does_not_matter(power, shape, dtype, bound):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    expected = orthogonalise(matrix, dtype="fp32")
    scaled = orthogonalise(matrix * 10.0**power, dtype=dtype)
    torch.testing.assert_close(scaled, expected, atol=bound, rtol=0)


def test_zero_stays_zero_also_beside_others():
    matrices = torch.randn(3, 8, 16)
    matrices[1] = 0
    for dtype in ("fp32", "bf16", "fp16"):
        out = orthogonalise(matrices, dtype=dtype)
        assert bool((out[1] == 0).all())
        assert out.isfinite().all()


def test_a_schedule_without_fifth_power():
    matrix = torch.randn(10, 30, dtype=torch.float64)
    cubic = [(1.5, -0.5, 0.0)] * 30  # the Newton–Schulz iteration of order 3 converges
    torch.testing.assert_close(
        orthogonalise(matrix, cubic), orthogonalise(matrix, "svd"), atol=1e-8, rtol=0
    )


def test_inputs_are_left_unchanged():
    matrices = torch.randn(2, 8, 12)
    before = matrices.clone()
    for schedule in (*SCHEDULES, "svd"):
        orthogonalise(matrices, schedule)
    for dtype in ("fp32", "bf16", "fp16"):
        orthogonalise(matrices, dtype=dtype)
    assert torch.equal(matrices, before)


def test_works_under_compile_fullgraph():
    only_on_the_cpu("torch.compile would trace what places the test's tensors")
    compiled = torch.compile(
        lambda x: polar_iterations(x.clone(), resolve_schedule("keller5"), Workspace())[0],
        fullgraph=True,
        backend="eager",
    )
    matrices = torch.randn(2, 8, 12)
    torch.testing.assert_close(compiled(matrices), orthogonalise(matrices, dtype="fp32"))


def test_segments_and_flops():
    keller5 = resolve_schedule("keller5")
    assert segments(keller5, 384, 384) == [1] * 5
    assert segments(keller5, 384, 1536) == [2, 3]
    assert segments(resolve_schedule("polar_express"), 384, 1536) == [1, 2, 2]
    assert segments(resolve_schedule("deepseek_v4"), 400, 100) == [2] * 5
    k = 384
    assert polar_flops(keller5, k, k) == 30 * k**3
    assert polar_flops(keller5, k, 4 * k) == (8 * 4 + 28) * k**3
    assert step_flops([(24, k, k), (96, k, 4 * k)], "keller5") == (24 * 30 + 96 * 60) * k**3
    assert step_flops([(1, 2, 2)], "none") == 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        orthogonalise(torch.randn(3))
    with pytest.raises(ValueError, match="int64"):
        orthogonalise(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="'half'"):
        orthogonalise(torch.randn(3, 3), dtype="half")
