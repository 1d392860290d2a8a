"""Statistics and cells against numbers worked out elsewhere."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from muonlab.report.content import Column, Curve, Table, mean_and_half_width, mean_curve

numbers = st.floats(-1e3, 1e3)


@given(st.lists(numbers, min_size=2, max_size=8))
def test_the_interval_is_scipys(values: list[float]) -> None:
    mean, half = mean_and_half_width(np.array(values))
    result = stats.ttest_1samp(np.array(values), 0.0) if np.std(values) > 1e-6 else None
    assert mean == pytest.approx(np.mean(values))
    if result is not None:
        low, high = result.confidence_interval(0.95)
        assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def test_one_value_has_no_interval() -> None:
    mean, half = mean_and_half_width(np.array([[1.0, 2.0]]))
    assert mean.tolist() == [1.0, 2.0]
    assert np.isnan(half).all()


def test_the_mean_curve_is_over_shared_points_only() -> None:
    first = Curve(arm="a", seed=0, x=np.array([0.0, 1, 2, 3]), y=np.array([4.0, 3, 2, 1]))
    second = Curve(arm="a", seed=1, x=np.array([0.0, 2, 3]), y=np.array([6.0, 4, 3]))
    shared = mean_curve([first, second])
    assert shared is not None
    assert shared[0].tolist() == [0, 2, 3]
    assert shared[1].tolist() == [5, 3, 2]
    elsewhere = Curve(arm="a", seed=2, x=np.array([0.5, 1.5]), y=np.array([1.0, 1.0]))
    assert mean_curve([first, elsewhere]) is None
    assert mean_curve([first]) is None


COLUMNS = (
    Column(key="name", heading="Name"),
    Column(key="loss", heading="Loss", digits=2, better="lower"),
    Column(key="share", heading="Share (%)", digits=1, scale=100, better="higher"),
)


def table(losses: list[float], **more: object) -> Table:
    names = [f"n{i}" for i in range(len(losses))]
    frame = pd.DataFrame({"name": names, "loss": losses, "share": [0.5] * len(losses)})
    return Table(name="t", caption="", frame=frame, columns=COLUMNS, **more)  # pyright: ignore


def test_cells_show_scaled_numbers_and_mark_the_best() -> None:
    rows = table([3.0, 1234.5, math.nan, math.inf]).rows()
    assert [row[1].text for row in rows] == ["3.00", "1,234.50", "–", "inf"]
    assert [row[1].best for row in rows] == [True, False, False, False]
    assert [row[1].sort_by for row in rows] == [3.0, 1234.5, None, None]
    assert rows[0][2].text == "50.0"
    assert not any(row[2].best for row in rows), "all equal: none is best"


def test_only_contenders_can_be_best() -> None:
    rows = table([1.0, 2.0, 3.0, 2.0], contenders=[False, True, True, False]).rows()
    assert [row[1].best for row in rows] == [False, True, False, False]


def test_half_widths_show_beside_their_numbers_and_in_the_csv() -> None:
    shown = table([1.0, 2.0], half_widths=pd.DataFrame({"loss": [0.25, math.nan]}))
    assert [row[1].text for row in shown.rows()] == ["1.00 ± 0.25", "2.00"]
    read = pd.read_csv(io.StringIO(shown.csv()))
    assert read["loss ±"].tolist()[0] == 0.25
    assert read["share"].tolist() == [0.5, 0.5], "unscaled"
