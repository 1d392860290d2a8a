"""The comparison on disk: its files, its labels, its warnings, its escapes."""

import json
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from muonlab.config import override
from muonlab.recipes import nano
from muonlab.report import comparison_table, read_runs, write_comparison
from muonlab.report.comparison import arm_labels, compare
from muonlab.report.content import Curve, CurveFigure, IntervalFigure, Report, Table
from muonlab.report.curves import (
    CURVES,
    MAX_CURVE_POINTS,
    MAX_FIGURE_POINTS,
    Series,
    curve_figures,
)
from muonlab.report.figures import svg

from .conftest import WriteRun

HOSTILE = "</script><script>window.broken = 1</script> & `x` | <b>"


def report_of(paths: list[Path]) -> Report:
    runs, problems = read_runs(paths)
    return compare(runs, problems, title="T", introduction="I", samples={})


def tables(report: Report) -> dict[str, Table]:
    items = [item for section in report.sections for item in section.items]
    return {item.name: item for item in items if isinstance(item, Table)}


def test_the_printed_table(write_run: WriteRun) -> None:
    frame = comparison_table([write_run("adamw", floor=4.5), write_run("muon")])
    assert list(frame["Arm"]) == ["adamw", "muon"]
    first = dict(zip(frame.columns, frame.to_numpy()[0], strict=True))
    assert first["Accuracy (%)"] == "25.00"
    assert first["Optimizer share (%)"] == "12.5"
    assert first["Optimizer state (MB)"] == "3.0"
    assert first["Tokens/s"] == "2,048"
    assert first["Status"] == "finished"


def test_every_file_is_written(write_run: WriteRun, tmp_path: Path) -> None:
    paths = [write_run(variant, seed) for variant in ("adamw", "muon") for seed in (0, 1)]
    samples = {"muon": [("A prompt", HOSTILE)]}
    page = write_comparison(
        paths, tmp_path / "out", title=HOSTILE, introduction=HOSTILE, samples=samples
    )
    html = page.read_text(encoding="utf-8")
    assert page.name == "index.html"
    assert len(html) < 15e6
    assert "<script>window.broken" not in html
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    linked = {line.split("](")[1][:-1] for line in text.splitlines() if line.startswith("![")}
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert linked == pictures
    assert {"validation-loss-tokens.png", "validation-loss-seconds.png"} < pictures
    assert matplotlib.image.imread(tmp_path / "out" / "load-cv-tokens.png").shape[1] == 1200
    rows = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert list(rows["arm"]) == ["adamw", "adamw", "muon", "muon"]
    assert rows["peak_memory_bytes"].tolist() == [5e8] * 4


def test_the_same_runs_make_the_same_files(write_run: WriteRun, tmp_path: Path) -> None:
    paths = [write_run("muon", 0), write_run("muon", 1)]
    for name in ("a", "b"):
        write_comparison(paths, tmp_path / name, title="T", introduction="I", samples={})
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_seeds_become_intervals_and_one_seed_has_none(write_run: WriteRun) -> None:
    paths = [write_run("adamw", seed, floor=4.5) for seed in range(3)] + [write_run("muon", 0)]
    report = report_of(paths)
    arms = tables(report)["arms"]
    losses = {row[0].text: row[2] for row in arms.rows()}
    assert "±" in losses["adamw"].text
    assert "±" not in losses["muon"].text
    assert losses["muon"].best
    figure = next(item for item in report.figures if isinstance(item, IntervalFigure))
    assert [len(values) for values in figure.values.values()] == [3, 1]
    for fact in ("seeds 0, 1, 2", "n = 4 runs", "Imaginary CPU, 2 threads"):
        assert fact in report.circumstances
        assert fact not in figure.caption


def test_one_seed_each_shows_runs_only(write_run: WriteRun) -> None:
    report = report_of([write_run("adamw"), write_run("muon")])
    assert set(tables(report)) == {"runs"}
    assert not any(isinstance(figure, IntervalFigure) for figure in report.figures)


def test_a_run_that_warns_of_itself_is_marked_and_never_best(write_run: WriteRun) -> None:
    leaky = write_run("leaky", floor=2.0, warnings=("every validation token was trained on",))
    report = report_of([leaky, write_run("adamw", floor=5.0), write_run("muon")])
    assert "leaky: every validation token was trained on" in report.notices
    rows = {row[0].text: row[2] for row in tables(report)["runs"].rows()}
    assert not rows["⚠ leaky"].best
    assert rows["muon"].best
    curves = [f for f in report.figures if isinstance(f, CurveFigure)]
    assert all("⚠ leaky" in {curve.arm for curve in figure.curves} for figure in curves)


def test_an_unfinished_run_is_in_no_mean(write_run: WriteRun) -> None:
    paths = [write_run("muon", 0), write_run("muon", 1)]
    report = report_of([*paths, write_run("muon", 2, finished=False, steps=30)])
    assert list(tables(report)["arms"].frame["arm"]) == ["muon", "muon (unfinished)"]
    assert tables(report)["runs"].rows()[-1][-1].text == "unfinished, step 30"


def test_runs_of_one_name_are_seeds_only_if_their_configs_are(
    write_run: WriteRun, tmp_path: Path
) -> None:
    """`train nano optimizer.kind=adamw` was once called muon, and was averaged with Muon's runs."""
    misnamed = override(nano(), ["optimizer.kind=adamw", "variant=muon", "seed=1"])
    paths = [write_run("muon", 0), write_run("muon", 1), write_run("muon", config=misnamed)]
    runs, _ = read_runs(paths)
    first, second, third = arm_labels(runs)
    assert first == second != third
    assert list(tables(report_of(paths))["arms"].frame["seeds"]) == [2, 1]


def test_runs_on_other_data_are_no_seeds(write_run: WriteRun) -> None:
    paths = [write_run("muon", 0), write_run("muon", 1, manifest={"data_hash": "fedcba9876543210"})]
    runs, _ = read_runs(paths)
    assert arm_labels(runs) == ["muon (data abcdef01)", "muon (data fedcba98)"]


def test_a_copy_of_a_run_is_no_seed(write_run: WriteRun) -> None:
    paths = [write_run("muon", 0), write_run("muon", 0, name="other")]
    runs, _ = read_runs(paths)
    assert arm_labels(runs) == [str(path) for path in paths]


def test_what_does_not_compare_is_said(write_run: WriteRun) -> None:
    paths = [
        write_run("a"),
        write_run("b", manifest={"data_hash": "other"}),
        write_run("c", manifest={"machine": {"processor": "Another"}}),
    ]
    with (paths[0] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 61, "tokens": 1, "time": 0.0}) + "\n")
    report = report_of([*paths, Path("gone")])
    text = "\n".join(report.notices)
    assert "did not see the same data" in text
    assert "different machines" in text
    assert "clock went backwards" in text
    assert "Left out: gone" in text
    seconds = next(f for f in report.figures if f.name == "validation-loss-seconds")
    assert isinstance(seconds, CurveFigure)
    assert {curve.arm for curve in seconds.curves} == {"b", "c"}


@pytest.mark.parametrize("paths", [[], [Path("gone")]])
def test_no_runs_is_a_page_that_says_so(paths: list[Path], tmp_path: Path) -> None:
    assert comparison_table(paths).empty
    page = write_comparison(paths, tmp_path, title="T", introduction="I", samples={})
    assert "nothing to compare" in page.read_text(encoding="utf-8")
    assert "nothing to compare" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_long_curves_are_thinned_and_keep_their_mean(write_run: WriteRun) -> None:
    path = write_run("muon", steps=5 * MAX_CURVE_POINTS)
    figure = next(f for f in report_of([path]).figures if f.name == "training-loss-tokens")
    assert isinstance(figure, CurveFigure)
    (curve,) = figure.curves
    whole = read_runs([path])[0][0].metrics["train/loss"].dropna()
    assert len(curve.x) == MAX_CURVE_POINTS
    assert curve.y.mean() == pytest.approx(whole.mean())


def test_many_curves_share_the_points_of_a_figure() -> None:
    steps = np.arange(1, 301)
    metrics = pd.DataFrame({"step": steps, "tokens": 512 * steps, "train/loss": 9 / steps})
    series = [Series(arm=f"arm {seed % 30}", seed=seed, metrics=metrics) for seed in range(100)]
    (figure,) = curve_figures(series, CURVES[1:], with_seconds=False)
    assert sum(len(curve.x) for curve in figure.curves) == MAX_FIGURE_POINTS


def test_the_numbers_at_a_figures_axes_are_whole() -> None:
    curve = Curve(arm="muon", seed=0, x=np.arange(2.0), y=np.array([4.451, 4.459]))
    figure = CurveFigure(name="f", title="", x_label="", y_label="", curves=[curve])
    written = re.findall(r">([\d.]+)</text>", svg(figure, {"muon": 0}))
    assert "4.455" in written
    assert len(set(written)) == len(written)


def test_markdown_quotes_text_that_looks_like_markup(write_run: WriteRun, tmp_path: Path) -> None:
    fenced = "before ````\n# no heading\n```` after"
    samples = {"a|b": [("p", fenced)]}
    write_comparison([write_run("muon")], tmp_path, title="*T*", introduction="#I", samples=samples)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# \\*T\\*\n\n\\#I\n")
    assert "`````text\np" + fenced + "\n`````" in text
    assert "### a\\|b" in text


def test_the_headline_says_who_is_lower_by_how_much_and_when(write_run: WriteRun) -> None:
    report = report_of([write_run("adamw", floor=4.05), write_run("muon", floor=3.9)])
    assert report.headline is not None
    frame = tables(report)["runs"].frame
    losses = dict(zip(frame["arm"], frame["val/loss"], strict=True))
    lower = losses["adamw"] - losses["muon"]
    assert report.headline.sentence == (
        f"muon ends {lower:.3f} nats/token below adamw (one run each, so there is no interval)."
    )
    assert [number for number, _ in report.headline.numbers[:2]] == [
        f"{losses['muon']:.3f}",
        f"{losses['adamw']:.3f}",
    ]
    figure = next(f for f in report.figures if f.name == "validation-loss-tokens")
    assert isinstance(figure, CurveFigure)
    assert figure.mark is not None
    muon = next(curve for curve in figure.curves if curve.arm == "muon")
    assert np.interp(figure.mark.x, muon.x, muon.y) == pytest.approx(losses["adamw"], abs=1e-4)
    assert report.headline.numbers[2][0] == f"{figure.mark.x / muon.x[-1]:.0%}".replace("%", " %")


def test_the_headline_compares_nothing_that_does_not_compare(write_run: WriteRun) -> None:
    elsewhere = {"data_hash": "other"}
    report = report_of([write_run("adamw"), write_run("muon", manifest=elsewhere)])
    assert report.headline is not None
    assert "do not compare" in report.headline.sentence
    assert not report.headline.numbers
    alone = report_of([write_run("third", finished=False, steps=30)])
    assert alone.headline is not None
    assert alone.headline.sentence.startswith("third (unfinished) ends at a validation loss of")


def test_validation_curves_begin_after_training_has(write_run: WriteRun) -> None:
    figures = {f.name: f for f in report_of([write_run("muon")]).figures}
    validation, idle = figures["validation-loss-tokens"], figures["dead-experts-tokens"]
    assert isinstance(validation, CurveFigure)
    assert isinstance(idle, CurveFigure)
    assert validation.curves[0].x[0] > 0
    assert idle.from_zero
    assert idle.curves[0].x[0] == 0
