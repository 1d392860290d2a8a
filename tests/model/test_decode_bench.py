"""The decoding benchmark on a tiny size: what it counts, and what it writes down."""

import csv
from pathlib import Path

import pytest
import torch

from benchmarks.decode import add_to, measured
from muonlab.bench import decode
from muonlab.model import native

pytestmark = pytest.mark.slow


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> decode.DecodeReport:
    monkeypatch.setitem(decode.SIZES, "tiny", (48, 2, 16))
    return decode.bench_decode("tiny", batch=2, context=16, dtype=torch.float32, tokens=3, rounds=2)


def test_bytes_and_ratios(report: decode.DecodeReport):
    dense, latent = report.bytes_read[decode.DENSE], report.bytes_read[decode.LATENT]
    assert report.floor_ratio == dense / latent
    # 2 layers, 2 rows, 16 + 3 tokens: keys and values of width 48; rank 6 and rotary width 2
    assert report.state_bytes[decode.DENSE] == 2 * 2 * 19 * 96 * 4
    assert report.state_bytes[decode.LATENT] == 2 * 2 * 19 * 8 * 4
    assert report.state_saving == pytest.approx(1 - 8 / 96)
    parameters = report.parameters
    assert parameters[decode.DENSE] == pytest.approx(parameters[decode.LATENT], rel=0.01)
    assert dense - report.state_bytes[decode.DENSE] == 4 * parameters[decode.DENSE]
    # 4 of 8 experts can be chosen
    assert latent < 4 * parameters[decode.LATENT]
    assert set(report.timings) == {decode.LATENT, decode.DENSE}
    assert not native.enabled()


def test_the_table_is_added_to(report: decode.DecodeReport, tmp_path: Path):
    table = tmp_path / "decode.csv"
    assert measured(table) == set()
    add_to(table, report)
    add_to(table, report)
    assert measured(table) == {("tiny", "float32", "2", "16")}
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert rows[0]["floor_ratio"] == f"{report.floor_ratio:.2f}"
    assert rows[0]["faster_than_generate"] == ""
