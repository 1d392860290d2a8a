"""`muonlab theory`: what it prints and keeps, and its one-line answers to mistakes."""

import dataclasses
from pathlib import Path

import pytest

from muonlab.cli import run
from muonlab.theory import steepest
from muonlab.theory.catalogue import CHECKS
from muonlab.theory.check import Context, Evidence
from muonlab.theory.record import load_outcomes


def test_the_list_names_every_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["theory", "list", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in ("rate", "spectral", "stiefel", "steepest", "ntk"):
        assert CHECKS[name].claim in printed
    assert "not run" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["theory", "run", "speed"],
            "check 'speed' is unknown; legal: rate, spectral, stiefel, steepest, ntk",
        ),
        (["theory", "run"], "name the checks to run, or give --all, and not both"),
        (
            ["theory", "run", "rate", "--all"],
            "name the checks to run, or give --all, and not both",
        ),
        (["theory", "report", "--out", "nowhere"], "no outcomes below nowhere"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_a_place_that_cannot_be_written_is_said_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["theory", "run", "steepest", "--out", str(tmp_path / "file")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_was_finished_before_an_interruption_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(sizes: steepest.Sizes, context: Context) -> Evidence:
        raise KeyboardInterrupt

    small = steepest.Sizes(num_points=100, num_matrices=1, num_updates=5)
    monkeypatch.setitem(CHECKS, "steepest", dataclasses.replace(steepest.CHECK, sizes=small))
    monkeypatch.setitem(CHECKS, "ntk", dataclasses.replace(steepest.CHECK, run=interrupted))
    assert run(["theory", "run", "steepest", "ntk", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "muonlab: interrupted\n"
    assert [found["name"] for found in load_outcomes(tmp_path)] == ["steepest"]


@pytest.mark.slow
def test_a_check_is_run_listed_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--out", str(tmp_path)]
    assert run(["theory", "run", "steepest", *place]) == 0
    assert "steepest: direction only." in capsys.readouterr().out
    assert run(["theory", "list", *place]) == 0
    assert "direction only" in capsys.readouterr().out
    assert run(["theory", "report", *place]) == 0
    page = (tmp_path / "report.md").read_text()
    assert "## steepest" in page
    assert "**Direction only.**" in page
