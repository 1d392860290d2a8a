"""`muonlab report` and `muonlab compare`: the table, the page, JSON, and what they refuse."""

import json
from pathlib import Path

import pytest

from muonlab.cli import run

from .conftest import WriteRun

Capture = pytest.CaptureFixture[str]


def test_one_run_is_enough(write_run: WriteRun, capsys: Capture) -> None:
    path = write_run("muon")
    assert run(["report", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"The page: {path / 'report' / 'index.html'}" in printed
    assert (path / "report" / "index.html").exists()
    assert "Loss (nats/token)" in printed
    assert "finished" in printed


def test_an_unfinished_run_is_shown(write_run: WriteRun, capsys: Capture) -> None:
    assert run(["report", str(write_run("muon", finished=False, steps=30))]) == 0
    assert "unfinished, step 30" in capsys.readouterr().out


def test_two_runs_side_by_side(write_run: WriteRun, tmp_path: Path, capsys: Capture) -> None:
    write_run("muon")
    write_run("adamw", floor=4.5)
    out = tmp_path / "out"
    assert run(["compare", str(tmp_path / "runs"), "--to", str(out), "--title", "Two"]) == 0
    printed = capsys.readouterr().out
    heading = printed.splitlines()[0].split()
    assert heading == ["adamw", "muon"]
    assert "<h1>Two</h1>" in (out / "index.html").read_text(encoding="utf-8")


def test_json(write_run: WriteRun, tmp_path: Path, capsys: Capture) -> None:
    paths = [write_run("muon"), write_run("adamw", floor=4.5)]
    out = tmp_path / "out"
    assert run(["compare", *map(str, paths), "--to", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["page"] == str(out / "index.html")
    assert [record["arm"] for record in printed["runs"]] == ["muon", "adamw"]
    assert [record["run"] for record in printed["runs"]] == list(map(str, paths))
    summary = json.loads((paths[0] / "summary.json").read_text())
    assert printed["runs"][0]["val/loss"] == pytest.approx(summary["val/loss"], abs=1e-12)


def test_mistakes_are_one_line(write_run: WriteRun, tmp_path: Path, capsys: Capture) -> None:
    path = write_run("muon")
    damaged = write_run("adamw")
    (damaged / "config.json").write_text("{")
    for arguments, complaint in (
        (["report"], "no run was named"),
        (["report", str(tmp_path / "typo")], "typo is no run directory and holds none"),
        (["compare", str(path)], "compare got 1 run; it needs two or more"),
        (["compare", str(path), str(path)], "compare got 1 run"),
        (["report", str(damaged)], "config.json: not JSON"),
    ):
        assert run(arguments) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1
    assert not (tmp_path / "typo").exists()
