"""`muonlab optim` and `muonlab bench`: thin commands over tested functions."""

from pathlib import Path

import pytest

from muonlab.bench import optimizer
from muonlab.cli import run
from muonlab.optim.schedules import POLYNOMIAL_NAMES

PNG_MAGIC = b"\x89PNG"


def test_schedules_are_printed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plot = tmp_path / "schedules.png"
    assert run(["optim", "schedules", "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    for name in POLYNOMIAL_NAMES:
        assert f"{name}: " in printed
    assert "3.4445" in printed
    assert plot.read_bytes().startswith(PNG_MAGIC)


def test_bench_optimizer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(optimizer.SETS, "tiny", ([(16, 16), (2, 32, 16)], [(64, 16)]))
    assert run(["bench", "optimizer", "--sets", "tiny", "--rounds", "2"]) == 0
    printed = capsys.readouterr().out
    assert "set tiny" in printed
    assert "torch.optim.Muon" in printed


def test_bench_optimizer_names_an_unknown_set(capsys: pytest.CaptureFixture[str]):
    assert run(["bench", "optimizer", "--sets", "p3"]) == 2
    assert "'p3' is unknown: legal are p2, moe, dense" in capsys.readouterr().err


def test_bench_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plot = tmp_path / "attention.png"
    arguments = ["--lengths", "64", "--rounds", "2", "--plot", str(plot)]
    with pytest.warns(UserWarning, match="not causal"):
        assert run(["bench", "attention", *arguments]) == 0
    assert "causal_mhla" in capsys.readouterr().out
    assert plot.read_bytes().startswith(PNG_MAGIC)


def test_bench_decode_names_an_unknown_size(capsys: pytest.CaptureFixture[str]):
    assert run(["bench", "decode", "--size", "1b"]) == 2
    assert "size is '1b'" in capsys.readouterr().err
