import pandas as pd
import pytest

from muonlab.lab.experiment import Context, Measurement
from muonlab.papers import EXPERIMENTS
from muonlab.papers.p1_measured import FIVE, PARTS, SPECTRUM


def measurement(name):
    experiment = EXPERIMENTS[name]("nano")
    assert isinstance(experiment, Measurement)
    return experiment


def bytes_of(ours, theirs):
    """The two models that are compared, as many parameters in each."""
    names = ("mla + moe + muon", "mhsa + dense + adamw")
    rows = []
    for name, values in zip(names, (ours, theirs), strict=True):
        row = dict(zip(PARTS, values, strict=True))
        half = {"decoding_weight_bytes": row["weight_bytes"] / 2}
        rows.append(row | half | {"model": name, "parameters": 1e6})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ((30, 30, 30, 30, 10), "reproduced"),  # 70 % of all that trains
        ((100, 100, 50, 60, 16), "direction only"),  # the cache alone falls by so much
        ((120, 120, 120, 120, 110), "refuted"),
    ],
)
def test_memory_is_judged_by_totals_then_by_parts(ours, expected):
    verdict = measurement("p1-memory").judge(bytes_of(ours, (100, 100, 100, 100, 100)))[0]
    assert verdict.verdict == expected
    assert (
        f"cache {abs(100 - ours[-1])} % {'less' if ours[-1] < 100 else 'more'}" in verdict.sentence
    )


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ((3.0, 3.5, 3.3, 3.2), "reproduced"),
        ((1.2, 0.9, 2.0, 2.5), "direction only"),
        ((0.5, 0.9, 1.0, 0.8), "refuted"),
    ],
)
def test_inference_is_judged_over_all_cells(speedups, expected):
    cells = [(1, 256), (1, 4096), (32, 256), (32, 4096)]
    rows = [
        {"batch": batch, "context": context, "speedup": speedup}
        for (batch, context), speedup in zip(cells, speedups, strict=True)
    ]
    verdict = measurement("p1-inference").judge(pd.DataFrame(rows))[0]
    assert verdict.verdict == expected
    assert verdict.ours == f"{min(speedups):.2f}× to {max(speedups):.2f}×"


def test_the_coefficients_spread_singular_values_around_one():
    """Their known band is 0.68 to 1.13 (kellerjordan.github.io/posts/muon: about 0.7 to 1.2)."""
    experiment = measurement("p1-polynomials")
    rows = experiment.measure(Context())
    centre = next(
        row for row in rows.to_dict("records") if (row["schedule"], row["smallest"]) == (FIVE, 0.1)
    )
    assert 0.65 < centre["lowest"] < 0.75
    assert 1.1 < centre["highest"] < 1.25
    exact = rows.loc[rows["schedule"] == "svd", "rms_distance"]
    assert max(exact) < 1e-12
    assert experiment.judge(rows)[0].verdict == "direction only"
    rows[["lowest", "highest"]] = 1.0
    assert experiment.judge(rows)[0].verdict == "reproduced"
    rows["lowest"] = 0.01
    assert experiment.judge(rows)[0].verdict == "refuted"
    assert set(rows["smallest"]) == set(SPECTRUM)


@pytest.mark.slow
def test_memory_and_sizes_measure_real_models():
    rows = measurement("p1-memory").measure(Context())
    assert max(rows["parameters"]) / min(rows["parameters"]) < 1.001
    caches = dict(zip(rows["model"], rows["cache_bytes"], strict=True))
    assert caches["mla + moe + muon"] < 0.32 * caches["mhsa + dense + muon"]
    sizes = measurement("p1-sizes").measure(Context())
    assert all(sizes["finite"])
    assert all(29e6 < count < 210e6 for count in sizes["parameters"])


def test_the_overhead_is_of_the_whole_step():
    rows = pd.DataFrame(
        {
            "optimizer": ["muon", "adamw"],
            "gradient_seconds": [9.0, 9.0],
            "update_seconds": [1.0, 0.6],
        }
    )
    verdict = measurement("p2-overhead").judge(rows)[0]
    assert verdict.ours == "10.0% of a step"
    assert "is 4.2% longer" in verdict.sentence
