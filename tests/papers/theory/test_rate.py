"""`rate`: its problems and bounds against oracles, and its smallest run."""

import io
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from muonlab.lab.bounds import Row
from muonlab.lab.experiment import Context, Verdict
from muonlab.papers.theory import rate


def judged(rows: list[Row]) -> Verdict:
    """What the measurement says of rows as they come back from its file."""
    text = pd.DataFrame(rows).to_csv(index=False)
    (verdict,) = rate.check("nano").judge(pd.read_csv(io.StringIO(text)))
    return verdict


@pytest.mark.parametrize("problem", ["quadratic", "robust regression"])
def test_gradients_are_those_of_the_value(problem: str) -> None:
    weight = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    rate.value(problem, weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, rate.gradient(problem, weight.detach()))


@pytest.mark.parametrize("problem", ["quadratic", "robust regression"])
def test_the_smoothness_holds(problem: str) -> None:
    """‖∇f(W) − ∇f(W')‖_* ≤ L‖W − W'‖₂ with the L of `descend`."""
    smoothness = rate.COLUMNS * (1.0 if problem == "quadratic" else 2.0)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, rate.ROWS, rate.COLUMNS, generator=generator, dtype=torch.float64)
    b = a + torch.randn(a.shape, generator=generator, dtype=torch.float64) * 0.1
    change = rate.gradient(problem, a) - rate.gradient(problem, b)
    ratio = torch.linalg.matrix_norm(change, "nuc") / torch.linalg.matrix_norm(a - b, 2)
    assert ratio.max() <= smoothness


@pytest.mark.parametrize("batch", [1, 10])
def test_noise_is_skewed_and_centred(batch: int) -> None:
    noise = rate.skewed_noise(200_000, batch, torch.Generator().manual_seed(0))
    assert abs(noise.mean().item()) < 0.02
    assert noise.var().item() == pytest.approx(3 / batch, rel=0.03)
    assert set(noise.unique().tolist()) == {-1.0, 3.0} if batch == 1 else len(noise.unique()) > 2


@pytest.mark.parametrize("setting", rate.SETTINGS[:3], ids=lambda setting: setting.name)
@pytest.mark.parametrize("horizon", [5, 60])
def test_the_bound_is_never_broken(setting: rate.Setting, horizon: int) -> None:
    for row in rate.descend(setting, horizon, 3):
        assert 0 < float(row["mean_nuclear_norm"]) <= float(row["bound"])
    if setting.schedule == "svd":
        starts = torch.randn(
            3,
            rate.ROWS,
            rate.COLUMNS,
            generator=torch.Generator().manual_seed(0),
            dtype=torch.float64,
        )
        gap = rate.value(setting.problem, starts).mean().item()
        smoothness = rate.COLUMNS * (1 if setting.problem == "quadratic" else 2)
        mean_bound = sum(float(row["bound"]) for row in rate.descend(setting, horizon, 3)) / 3
        assert mean_bound == pytest.approx(math.sqrt(2 * gap * smoothness / horizon))


SMALLEST = rate.Sizes(
    horizons=(64, 128, 256, 512, 1024),
    num_starts=2,
    training_horizons=(1, 2, 3, 4, 5),
    training_seeds=(0,),
)


@pytest.mark.slow
def test_rate_at_its_smallest(tmp_path: Path) -> None:
    assert judged(rate.measure(SMALLEST, Context(cache_dir=tmp_path))).verdict == "direction only"


def test_too_few_horizons_are_inconclusive() -> None:
    sizes = rate.Sizes(horizons=(8, 16, 32, 64), num_starts=1, training_horizons=())
    verdict = judged(rate.measure(sizes, Context()))
    assert verdict.verdict == "inconclusive"
    assert "a slope needs 5 points, 4 were measured" in verdict.rule
