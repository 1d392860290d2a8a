import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muonlab.optim.schedules import (
    CONVERGED,
    SCHEDULE_NAMES,
    band,
    describe_schedules,
    minimax_quintic,
    polar_express,
    resolve_schedule,
    scalar_map,
)

ORTHOGONALISING = ["keller5", "you5", "polar_express", "deepseek_v4"]
PUBLISHED_POLAR_EXPRESS = [  # 2505.16932, the table of coefficients with the safety factor in
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
    (1.8726, -1.2307, 0.3585),
    (1.8564, -1.2132, 0.3568),
    (1.875, -1.25, 0.375),
]


def test_remez_reproduces_the_published_table():
    steps = polar_express(10)
    torch.testing.assert_close(
        torch.tensor(steps[:8], dtype=torch.float64),
        torch.tensor(PUBLISHED_POLAR_EXPRESS, dtype=torch.float64),
        atol=1e-4,
        rtol=0,
    )
    assert steps[8:] == (CONVERGED, CONVERGED)


@given(st.floats(1e-3, 0.9))
def test_the_minimax_error_alternates_at_four_points(low):
    a, b, c = minimax_quintic(low, 1.0)
    grid = torch.linspace(low, 1.0, 20_001, dtype=torch.float64)
    error = 1 - (a * grid + b * grid**3 + c * grid**5)
    worst = error.abs().max()
    signs = torch.sign(error[error.abs() > worst * (1 - 1e-5)])
    changes = int((signs[1:] != signs[:-1]).sum())
    assert changes == 3
    assert error[0].abs() == pytest.approx(worst.item(), rel=1e-6)
    assert error[-1].abs() == pytest.approx(worst.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "lower", "expected"),
    [
        ("keller5", 1e-2, (0.682, 1.134)),
        ("keller5", 1e-3, (0.471, 1.202)),
        ("you5", 1e-2, (0.978, 1.032)),
        ("you5", 1e-3, (0.475, 1.145)),
        ("polar_express", 1e-2, (0.870, 1.124)),
        ("polar_express", 1e-3, (0.846, 1.124)),
        ("deepseek_v4", 1e-3, (1.000, 1.0005)),
    ],
)
def test_bands(name, lower, expected):
    assert band(name, lower) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("name", ORTHOGONALISING)
def test_every_schedule_is_positive(name):
    sigma = torch.logspace(-8, 0, 100_001, dtype=torch.float64)
    assert bool((scalar_map(name, sigma) > 0).all())


@pytest.mark.parametrize("lower", [1e-1, 1e-2, 1e-4, 1e-6])
def test_polar_express_converges_from_any_lower_bound(lower):
    low, high = band(polar_express(16, lower, safety=1.0), lower)
    assert low == pytest.approx(1, abs=1e-9)
    assert high == pytest.approx(1, abs=1e-9)


def test_the_placebo_scrambles_the_spectrum():
    sigma = torch.linspace(0.01, 0.9, 2000, dtype=torch.float64)
    out = scalar_map("kaon", sigma)
    assert 0 <= out.min() < 0.05
    assert 0.9 < out.max() < 1.01
    rank_correlation = torch.corrcoef(torch.stack([sigma, out]))[0, 1].abs()
    assert rank_correlation < 0.2


def test_named_custom_and_special():
    assert resolve_schedule([(1, 2, 3)]) == ((1.0, 2.0, 3.0),)
    sigma = torch.tensor([0.0, 0.5])
    assert scalar_map("svd", sigma).tolist() == [0.0, 1.0]
    assert scalar_map("none", sigma).tolist() == [0.0, 0.5]
    text = describe_schedules()
    assert all(f"{name}: " in text for name in SCHEDULE_NAMES[:-2])
    assert "*" in text


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("keler5", "'keler5'"),
        ([], "one or more"),
        ([(1.0, 2.0)], "triples"),
        ([(1.0, 2.0, math.inf)], "finite"),
    ],
)
def test_bad_schedules_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        resolve_schedule(bad)


def test_bad_polar_express_arguments():
    with pytest.raises(ValueError, match="num_steps 0"):
        polar_express(0)
    with pytest.raises(ValueError, match="lower_bound 2"):
        polar_express(5, 2)
