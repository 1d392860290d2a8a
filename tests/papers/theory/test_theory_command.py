"""`muonlab theory`: a short name for the same engine, and its one-line answers to mistakes."""

import dataclasses
import re
from pathlib import Path

import pandas as pd
import pytest

from muonlab.cli import run
from muonlab.lab.experiment import Context, Measurement
from muonlab.papers import EXPERIMENTS
from muonlab.papers.theory import CHECKS, steepest

SMALL = steepest.Sizes(num_points=100, num_matrices=1, num_updates=5)


def small(scale: str) -> Measurement:
    return dataclasses.replace(
        steepest.check("nano"),
        measure=lambda context: pd.DataFrame(steepest.measure(SMALL, context)),
    )


def test_the_list_names_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["theory", "list"]) == 0
    printed = capsys.readouterr().out
    for make in CHECKS.values():
        assert make("nano").name in printed
        assert make("nano").claims[0] in printed


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["theory", "run", "speed"]) == 2
    printed = capsys.readouterr().err
    assert "study 'theory-speed' is unknown; did you mean theory-" in printed
    assert "legal: " in printed
    assert len(printed.splitlines()) == 1


def test_a_place_that_cannot_be_written_is_said_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["theory", "run", "ntk", "--runs-dir", str(tmp_path / "file")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_was_finished_before_an_interruption_is_kept_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(context: Context) -> pd.DataFrame:
        raise KeyboardInterrupt

    monkeypatch.setitem(EXPERIMENTS, "theory-steepest", small)
    monkeypatch.setitem(
        EXPERIMENTS,
        "theory-ntk",
        lambda scale: dataclasses.replace(CHECKS["theory-ntk"](scale), measure=interrupted),
    )
    runs = ["--runs-dir", str(tmp_path / "runs")]
    assert run(["theory", "run", "steepest", "ntk", *runs]) == 130
    assert "interrupted" in capsys.readouterr().err
    results = tmp_path / "results"
    assert run(["theory", "report", "steepest", *runs, "--results-dir", str(results)]) == 0
    folder = results / "theory-steepest.nano"
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "(figure.png)" in text
    assert "direction only" in text
    assert "Every number lies within its bounds; decided by: " in text
    assert re.search(r"duality error \| \d", text)
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,' in page
