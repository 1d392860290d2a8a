"""`steepest` and `stiefel`: the identities to 1e-8 and better, and their smallest runs."""

import io

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muonlab.lab.bounds import judge_findings
from muonlab.lab.experiment import Context
from muonlab.papers.theory import steepest, stiefel

shapes = st.tuples(st.integers(2, 12), st.integers(2, 12))


def matrix(m: int, n: int, seed: int) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25)
@given(shape=shapes, seed=st.integers(0, 10_000), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_polar_factor_attains_the_dual_norm(
    shape: tuple[int, int], seed: int, scale: float
) -> None:
    found = steepest.duality(scale * matrix(*shape, seed))
    assert found["duality_error"] < 1e-10
    assert found["minimum_error"] < 1e-10
    assert found["keller5_alignment"] <= found["keller5_norm"] + 1e-12


@pytest.mark.parametrize("shape", [(3, 3), (2, 9), (9, 2)])
def test_no_feasible_point_beats_the_polar_factor(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    found = steepest.random_points(matrix(*shape, 1), 2000, generator)
    assert 0.99 < found["best_point"] <= 1 + 1e-12  # points near it were among them
    assert found["best_random"] < found["best_point"]
    assert found["best_objective"] <= 1 + 1e-12


def test_muon_drops_the_length_of_steepest_descent() -> None:
    small, large = steepest.step_lengths(1e-2), steepest.step_lengths(1e2)
    assert small["muon_step"] == pytest.approx(large["muon_step"], rel=1e-12)
    assert large["steepest_step"] == pytest.approx(1e4 * small["steepest_step"], rel=1e-12)
    assert min(small["cosine"], large["cosine"]) > 1 - 1e-12


def test_only_steepest_descent_reaches_the_minimum() -> None:
    assert steepest.quadratic(200, keep_length=True)[-1] < 1e-20
    assert steepest.quadratic(200, keep_length=False)[-1] > 1e-3


@settings(max_examples=25)
@given(n=st.integers(2, 8), extra=st.integers(0, 6), seed=st.integers(0, 10_000))
def test_the_polar_factor_is_whitening_and_shampoo(n: int, extra: int, seed: int) -> None:
    gradient = matrix(n + extra, n, seed)
    if torch.linalg.cond(gradient) > 1e3:  # the oracle squares the condition number
        return
    found = stiefel.identities(gradient)
    assert found["polar_error"] < 1e-8
    assert found["shampoo_error"] < 1e-8
    assert found["orthogonality_error"] < 1e-12


def test_ascent_ends_at_the_polar_factor() -> None:
    found = stiefel.ascent(matrix(12, 4, 3), 2000, torch.Generator().manual_seed(0))
    assert found["ascent_gradient"] < 1e-9
    assert abs(found["ascent_gain"]) < 1e-12
    assert found["ascent_distance"] < 1e-8


def test_the_canonical_gradient_is_tangent_and_the_same_only_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    point = stiefel.random_point(generator, 12, 5)
    gradient = matrix(12, 5, 4)
    riemannian = gradient - point @ gradient.mT @ point
    skew = point.mT @ riemannian
    assert (skew + skew.mT).abs().max() < 1e-12
    assert 0 < stiefel.canonical_gradient(point, gradient)["cosine"] < 0.99
    orthogonal = gradient - point @ point.mT @ gradient  # no part along W: there they may agree
    polar_like = torch.linalg.qr(orthogonal).Q
    assert stiefel.canonical_gradient(point, polar_like)["cosine"] == pytest.approx(1, abs=1e-12)


def test_natural_gradient_only_where_the_error_is_isotropic() -> None:
    generator = torch.Generator().manual_seed(0)
    assert stiefel.linear_regression(1.0, generator)["natural_cosine"] > 1 - 1e-8
    assert stiefel.linear_regression(30.0, generator)["natural_cosine"] < 0.9


def test_steepest_at_its_smallest() -> None:
    sizes = steepest.Sizes(num_points=200, num_matrices=1, num_updates=20)
    rows = steepest.measure(sizes, Context())
    text = pd.DataFrame(rows).to_csv(index=False)
    (verdict,) = steepest.check("nano").judge(pd.read_csv(io.StringIO(text)))
    assert verdict.verdict == "direction only"
    assert "-0.0" not in verdict.sentence
    assert [found.name for found in verdict.findings if found.role == "requirement"]


def test_stiefel_at_its_smallest() -> None:
    sizes = stiefel.Sizes(num_points=200, num_matrices=1, num_directions=20)
    findings = stiefel.find(stiefel.measure(sizes, Context()))
    assert judge_findings("P1-stiefel", findings, "").verdict == "direction only"


def test_ascent_that_has_not_converged_is_inconclusive() -> None:
    sizes = stiefel.Sizes(num_points=200, num_matrices=1, num_directions=20, ascent_steps=3)
    findings = stiefel.find(stiefel.measure(sizes, Context()))
    verdict = judge_findings("P1-stiefel", findings, "")
    assert verdict.verdict == "inconclusive"
    assert "where ascent ends" in verdict.rule
