"""A study's report: verdict first, both intervals, what is missing said, never a crash."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from muonlab.cli import run
from muonlab.config import override
from muonlab.lab.experiment import Context, Finding, Measurement, Study, Verdict
from muonlab.lab.plan import Plan
from muonlab.lab.record import facts_of
from muonlab.lab.results import StudyResults
from muonlab.lab.statistics import holm, paired_difference, with_regret
from muonlab.report.content import Banner, CurveFigure, IntervalFigure, Report, Table
from muonlab.report.kept import KeptResults
from muonlab.report.study import made_of, rewrite_study, study_report, write_study
from muonlab.report.study_tables import p_text
from muonlab.runs import RunError

from .browser import CHROMIUM, browser
from .invented_studies import RATE, SEARCH, invented_study, make_runs


def report_of(study: Study, root: Path) -> Report:
    results = StudyResults(study, root)
    return study_report(results, made_of(results, {}))


def tables(report: Report) -> dict[str, dict[str, dict[str, str]]]:
    """Table → first cell of a row → heading → text."""
    found = {}
    for section in report.sections:
        for item in section.items:
            if isinstance(item, Table):
                headings = [column.heading for column in item.columns]
                rows = [[cell.text for cell in row] for row in item.rows()]
                found[item.name] = {r[0]: dict(zip(headings, r, strict=True)) for r in rows}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished study; do not write to it."""
    root = tmp_path_factory.mktemp("studies")
    make_runs(invented_study(), root)
    return root


def test_the_verdict_comes_first_and_a_claim_without_one_says_how_to_get_it(whole: Path) -> None:
    report = report_of(invented_study(), whole)
    first = report.sections[0]
    assert first.title == "Verdict"
    (banner,) = first.items
    assert isinstance(banner, Banner)
    assert (banner.claim, banner.sign, banner.verdict) == ("T-1", "✓", "reproduced")
    assert first.text == [
        "T-2: no verdict yet; muonlab study run invented --scale nano makes the runs that it needs."
    ]


def test_arms_stand_beside_the_paper_and_leaky_ones_are_marked(whole: Path) -> None:
    report = report_of(invented_study(), whole)
    arms = tables(report)["arms"]
    assert set(arms) == {"adamw", "⚠ adamw-leaky", "muon", "⚠ muon-leaky"}
    assert arms["⚠ muon-leaky"]["Paper's loss (nats/token)"] == "0.0476"
    assert arms["⚠ muon-leaky"]["Paper's accuracy (%)"] == "99.07"
    assert arms["muon"]["Paper's loss (nats/token)"] == "–"
    assert "±" in arms["muon"]["Loss (nats/token)"]
    assert (arms["muon"]["Runs"], arms["muon"]["Protocol"]) == ("3 of 3", "honest")
    assert any(
        notice.startswith("adamw-leaky, muon-leaky: leaky split") for notice in report.notices
    )
    assert list(tables(report)["protocols"]) == ["adamw", "muon"]


def test_comparisons_are_the_statistics_of_the_frame(whole: Path) -> None:
    study = invented_study()
    frame = StudyResults(study, whole).frame
    values = {arm.name: frame.loc[frame["arm"] == arm.name, "val/loss"] for arm in study.arms}
    lost = dict(zip(frame["arm"], frame["regret"], strict=True))
    assert lost["muon"] > 0
    wanted = [
        with_regret(
            paired_difference(values[c.arm], values[c.baseline]), lost[c.arm], lost[c.baseline]
        )
        for c in study.comparisons
    ]
    rows = list(tables(report_of(study, whole))["comparisons"].values())
    for row, difference, p in zip(rows, wanted, holm([d.p for d in wanted]), strict=True):
        assert row["Difference"] == f"{difference.mean:,.4f}"
        assert row["95 % interval"] == f"[{difference.low:+,.4f}, {difference.high:+,.4f}]"
        assert row["p (Holm)"] == p_text(p)
        assert (row["Pairs"], row["Reading"]) == ("3", "lower")
    assert rows[0]["Paper's"] == "-0.0071"
    assert rows[0]["Regret (nats)"] == f"{lost['muon']:.4f} and {lost['adamw']:.4f}"
    assert rows[1]["Regret (nats)"] == "not tuned"


def test_a_regret_that_was_not_measured_is_said(tmp_path: Path) -> None:
    arms = tuple(
        dataclasses.replace(arm, search=arm.search and dataclasses.replace(SEARCH, repeats=0))
        for arm in invented_study().arms
    )
    study = invented_study(arms=arms)
    make_runs(study, tmp_path)
    report = report_of(study, tmp_path)
    assert any("adamw, muon: the regret of the search was not" in text for text in report.notices)
    row = tables(report)["comparisons"]["muon − adamw"]
    assert row["Regret (nats)"] == "not measured"


def test_what_counting_comes_to_stands_in_table_figure_and_notice(tmp_path: Path) -> None:
    study = invented_study()
    make_runs(study, tmp_path)
    keys = {arm.config.data.cache_key() for arm in study.arms}
    losses = {"validation": {"unigram": 6.2, "bigram": 5.3}}
    counts = json.dumps(dict.fromkeys(keys, losses))
    (tmp_path / "invented.nano" / "counts.json").write_text(counts)
    report = report_of(study, tmp_path)
    arms = tables(report)["arms"]
    assert arms["bigram"]["Loss (nats/token)"] == "5.3000"
    assert arms["unigram"]["Runs"] == "counted"
    figure = next(f for f in report.figures if f.name == "values")
    assert isinstance(figure, IntervalFigure)
    assert set(figure.limits) == {6.2, 5.3}
    assert "bigram 5.300 (honest)" in figure.caption
    assert any("no better than counting" in notice for notice in report.notices)


def test_searches_show_every_trial_the_choice_and_the_edges(whole: Path) -> None:
    report = report_of(invented_study(), whole)
    figure = next(f for f in report.figures if f.name == f"search-muon-{RATE}")
    assert isinstance(figure, CurveFigure)
    assert figure.limits == (1e-3, 1e-1)
    trials, repeats, chosen = figure.curves
    assert [len(curve.x) for curve in figure.curves] == [4, 3 * 2, 1]
    means = {x: repeats.y[repeats.x == x].mean() for x in repeats.x}
    assert chosen.x == min(means, key=lambda x: means[x])
    assert set(repeats.x) == set(trials.x[np.argsort(trials.y)[:3]])
    table = next(
        item for s in report.sections for item in s.items
        if isinstance(item, Table) and item.name == "trials"
    )  # fmt: skip
    assert len(table.frame) == 2 * (4 + 3 * 2)
    assert list(table.frame["chosen"]).count("chosen") == 2 * (1 + 2)


def test_every_file_is_written_and_says_how_it_was_made(whole: Path, tmp_path: Path) -> None:
    page = write_study(invented_study(), whole, tmp_path / "out")
    assert "<optimizer>" not in page.read_text(encoding="utf-8").split("<script>")[0]
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    linked = {line.split("](")[1][:-1] for line in text.splitlines() if line.startswith("![")}
    assert linked == {path.name for path in (tmp_path / "out").glob("*.png")}
    for fact in ("n = 12 of 12 runs", "seeds 0, 1, 2", "Imaginary CPU", "Everything here is"):
        assert fact in text
    assert "Command: muonlab study run invented --scale nano" in text
    rows = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert list(rows["status"]) == ["finished"] * 12
    (verdict,) = json.loads((tmp_path / "out" / "verdicts.json").read_text())
    assert verdict["verdict"] == "reproduced"


def test_what_does_not_compare_is_said(whole: Path, tmp_path: Path) -> None:
    study = invented_study()
    make_runs(study, tmp_path)
    runs = {job.label: job.path for job in Plan(study, tmp_path).jobs}
    slow = runs["adamw seed 1"] / "metrics.jsonl"
    seconds = '"train/step_seconds": '
    slow.write_text(slow.read_text().replace(f"{seconds}0.25", f"{seconds}1"))
    other = runs["muon seed 0"] / "manifest.json"
    manifest = json.loads(other.read_text())
    manifest |= {"data_hash": "0" * 16, "git": {"sha": "1" * 40, "dirty": True}}
    other.write_text(json.dumps(manifest))
    notices = report_of(study, tmp_path).notices
    assert any("differ by up to 4.0×" in notice for notice in notices)
    assert "Runs of the same data settings were made on different data." in notices
    assert not any("different data" in notice for notice in report_of(study, whole).notices)
    made = next(s for s in report_of(study, tmp_path).sections if s.title == "How it was made")
    assert "Code of the runs: 000000000000 (11), 111111111111 with local changes (1)" in made.text


def test_a_best_value_at_an_edge_is_said(tmp_path: Path) -> None:
    study = invented_study()
    arms = [
        dataclasses.replace(arm, search=dataclasses.replace(SEARCH, space={RATE: (1e-5, 1e-4)}))
        if arm.search
        else arm
        for arm in study.arms
    ]
    study = dataclasses.replace(study, arms=tuple(arms))
    make_runs(study, tmp_path)
    at_edge = [notice for notice in report_of(study, tmp_path).notices if "at an edge" in notice]
    assert len(at_edge) == 2
    assert "optimizer.lr at its high end" in at_edge[0]


def test_the_best_of_runs_that_do_not_compare_does_not_stand_out(tmp_path: Path) -> None:
    study = invented_study()
    arms = list(study.arms)
    arms[0] = dataclasses.replace(arms[0], config=override(arms[0].config, ["train.steps=70"]))
    longer = dataclasses.replace(study, arms=tuple(arms))
    make_runs(longer, tmp_path)
    items = report_of(longer, tmp_path).sections[1].items
    table = next(item for item in items if isinstance(item, Table) and item.name == "arms")
    assert not any(cell.best for row in table.rows() for cell in row)


def test_labels_of_numbers_are_axes(tmp_path: Path) -> None:
    arms = tuple(
        dataclasses.replace(
            arm,
            name=f"{arm.name}-{size}",
            search=None,
            labels={**arm.labels, "batch size": size},
            config=dataclasses.replace(
                arm.config, train=dataclasses.replace(arm.config.train, batch_size=size)
            ),
        )
        for arm in invented_study().arms
        for size in (2, 4, 64)
    )
    study = invented_study(arms=arms, comparisons=(), paper=())
    make_runs(study, tmp_path, diverges=lambda job: job.arm == "muon-64" and job.config.seed == 0)
    report = report_of(study, tmp_path)
    (figure,) = (
        item
        for section in report.sections
        for item in section.items
        if isinstance(item, CurveFigure) and item.name.startswith("values")
    )
    assert (figure.name, figure.x_label, figure.log_x) == (
        "values-batch-size",
        "batch size",
        True,
    )
    assert {curve.arm for curve in figure.curves} == {
        "optimizer adamw, honest",
        "optimizer muon, honest",
        "⚠ optimizer adamw, as published",
        "⚠ optimizer muon, as published",
    }
    frame = StudyResults(study, tmp_path).frame.set_index(["arm", "seed"])
    lines = {(curve.arm, curve.seed): curve for curve in figure.curves}
    diverged, other = (lines["optimizer muon, honest", seed] for seed in (0, 1))
    assert list(diverged.x) == [2, 4]
    assert list(other.x) == [2, 4, 64]
    assert list(other.y) == [frame["val/loss"].loc[f"muon-{size}", 1] for size in (2, 4, 64)]


def test_no_runs_at_all(tmp_path: Path) -> None:
    report = report_of(invented_study(), tmp_path)
    assert any("12 of 12 runs are missing" in notice for notice in report.notices)
    (banner,) = report.sections[0].items
    assert isinstance(banner, Banner)
    assert banner.verdict == "inconclusive"
    assert not tables(report), "nothing but missing runs to show"
    text = write_study(invented_study(), tmp_path, tmp_path / "out").read_text(encoding="utf-8")
    assert "No run has finished yet" in text
    assert len(text) < 20_000


def test_a_missing_arm_and_a_diverged_run_are_shown(tmp_path: Path) -> None:
    study = invented_study()
    make_runs(
        study,
        tmp_path,
        skips=lambda job: job.arm == "adamw-leaky",
        diverges=lambda job: (job.arm, job.kind, job.config.seed) == ("muon", "test", 1),
    )
    report = report_of(study, tmp_path)
    found = tables(report)
    assert found["arms"]["⚠ adamw-leaky"]["Runs"] == "0 of 3"
    assert found["arms"]["muon"]["Loss (nats/token)"] == "inf"
    assert found["comparisons"]["muon − adamw"]["Reading"] == "diverged"
    assert found["comparisons"]["muon − adamw"]["95 % interval"] == "none"
    assert any("1 of 12 runs failed" in notice for notice in report.notices)
    figure = next(f for f in report.figures if f.name == "values")
    assert isinstance(figure, IntervalFigure)
    assert len(figure.values["muon"]) == 2
    write_study(study, tmp_path, tmp_path / "out")


def test_diverged_trials_are_said_beneath_the_search(tmp_path: Path) -> None:
    study = invented_study()
    make_runs(
        study, tmp_path, diverges=lambda job: job.arm == "muon" and job.values.get(RATE, 0) > 0.05
    )
    figure = next(f for f in report_of(study, tmp_path).figures if f.name == f"search-muon-{RATE}")
    assert "Diverged at 0.0" in figure.caption


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    study = invented_study(seeds=(0,))
    make_runs(study, tmp_path)
    report = report_of(study, tmp_path)
    assert "±" not in tables(report)["arms"]["muon"]["Loss (nats/token)"]
    row = tables(report)["comparisons"]["muon − adamw"]
    assert (row["95 % interval"], row["95 % bootstrap"]) == ("none", "none")
    assert row["Reading"] == "one seed: no interval"
    assert any(notice.startswith("One seed only") for notice in report.notices)


def test_damage_is_survived_and_said(tmp_path: Path) -> None:
    study = invented_study()
    make_runs(study, tmp_path)
    paths = {(job.arm, job.config.seed): job.path for job in Plan(study, tmp_path).jobs}
    clock, gone = paths["muon-leaky", 0], paths["muon-leaky", 1]
    with (clock / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "tokens": 1, "time": 0.0, "train/loss": NaN}\n')
    (gone / "metrics.jsonl").write_text("nonsense\nnonsense\n")
    (gone / "manifest.json").write_text("nonsense")
    summary = json.loads((gone / "summary.json").read_text()) | {"val/accuracy": None}
    (gone / "summary.json").write_text(json.dumps(summary))
    report = report_of(study, tmp_path)
    assert f"{clock.name}: its clock went backwards, so it is not drawn against seconds" in (
        report.notices
    )
    assert "muon-leaky, seed 1: val/accuracy is no number" in report.notices
    write_study(study, tmp_path, tmp_path / "out")


def test_a_measurement_shows_its_rows(tmp_path: Path) -> None:
    def rows_judge(rows: pd.DataFrame) -> list[Verdict]:
        return [Verdict(claim="T-1", verdict="refuted", sentence="Counted.")]

    counted = Measurement(
        name="counted",
        scale="nano",
        question="How many?",
        claims=("T-1",),
        measure=lambda context: pd.DataFrame({"name": ["a", "b"], "count": [1000, 2000]}),
        judge=rows_judge,
    )
    page = write_study(counted, tmp_path, tmp_path / "out").read_text(encoding="utf-8")
    assert "It has not been measured yet." in page
    folder = tmp_path / "counted.nano"
    folder.mkdir()
    counted.measure(Context()).to_csv(folder / "measurement.csv", index=False)
    write_study(counted, tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "✗ refuted" in text
    assert "| b | 2,000 |" in text


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_in_a_browser(whole: Path, tmp_path: Path) -> None:
    written = write_study(invented_study(), whole, tmp_path / "out")
    with browser(tmp_path / "profile") as page:
        page.open(written)
        requests = [event["request"]["url"] for event in page.reported("Network.requestWillBeSent")]
        assert len([url for url in requests if not url.startswith("data:")]) == 1, requests
        assert page.run("document.querySelector('section h2').innerText") == "Verdict"
        assert "✓ Reproduced" in page.run("document.querySelector('.verdict').innerText")
        page.run("Promise.all(plots.map(draw))")
        assert page.run("plots.every(plot => plot.querySelector('.main-svg'))")
        search = "document.getElementById('figure-search-muon-optimizer.lr')"
        assert page.run(f"{search}.layout.xaxis.type") == "log"
        assert page.run(f"{search}.layout.shapes.length") == 2
        for index in range(page.run("document.querySelectorAll('.sort').length")):
            page.run(f"document.querySelectorAll('.sort')[{index}].click()")
        csv = page.run("decodeURIComponent(document.querySelector('[download=\"runs.csv\"]').href)")
        assert csv.count("\n") == 1 + 12
        page.run("document.getElementById('theme').click()")
        page.send(
            "Emulation.setDeviceMetricsOverride",
            width=360, height=800, deviceScaleFactor=1, mobile=True,
        )  # fmt: skip
        page.run("new Promise(done => setTimeout(done, 500))")
        assert page.run("root.scrollWidth") <= 360
        assert not page.reported("Runtime.exceptionThrown")
        assert not page.reported("Log.entryAdded")


def test_a_kept_report_is_made_anew_from_its_own_rows(whole: Path, tmp_path: Path) -> None:
    study, out = invented_study(), tmp_path / "invented.nano"
    write_study(study, whole, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    counts = {"validation": {"unigram": 6.2, "bigram": 5.3}}
    rows = pd.read_csv(out / "runs.csv").assign(**counts["validation"])
    rows.to_csv(out / "runs.csv", index=False)
    results = KeptResults(study, out)
    rewrite_study(study, out)
    assert (out / "verdicts.json").read_bytes() == before["verdicts.json"]
    assert (out / "trials.csv").read_bytes() == before["trials.csv"]
    assert (out / "made.json").read_bytes() == before["made.json"]
    curves = [name for name in before if name.startswith(("training-", "validation-", "search-"))]
    assert len(curves) == len(results.pictures) > 2
    assert all((out / name).read_bytes() == before[name] for name in curves)
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "Imaginary CPU" in text
    assert "| bigram |" in text
    assert "earlier definition" not in text
    more = dataclasses.replace(study.arms[0], name="new", labels={})
    with pytest.raises(RunError, match=r"no rows of new: these results are of an earlier"):
        rewrite_study(dataclasses.replace(study, arms=(*study.arms, more)), out)


def test_verdicts_hold_null_where_a_number_is_not_finite(tmp_path: Path) -> None:
    lost = Finding(name="lost", value=math.nan, about="", high=1.0, interval=(math.inf, 0.0))
    verdict = Verdict(claim="T-1", verdict="inconclusive", sentence="", findings=(lost,))
    text = json.dumps(facts_of([verdict]), allow_nan=False)
    (found,) = json.loads(text)[0]["findings"]
    assert found["value"] is None
    assert found["interval"] == [None, 0.0]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--runs-dir", str(tmp_path / "studies"), "--results-dir", str(tmp_path / "out")]
    assert run(["study", "report", "p2-params", "--scale", "nano", *places]) == 0
    assert "index.html" in capsys.readouterr().out
    assert (tmp_path / "out" / "p2-params.nano" / "report.md").exists()


def test_a_report_of_more_runs_is_kept(whole: Path, tmp_path: Path) -> None:
    """A clone without runs must not replace a committed result by an empty one."""
    study, out = invented_study(), tmp_path / "results" / "invented.nano"
    write_study(study, whole, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(RunError, match=r"a report of 12 runs, and there are 0 here: it was not"):
        write_study(study, tmp_path, out)
    make_runs(study, tmp_path, skips=lambda job: job.arm == "muon-leaky")
    with pytest.raises(RunError, match=r"a report of 12 runs, and there are 9 here: it was not"):
        write_study(study, tmp_path, out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    make_runs(study, tmp_path, diverges=lambda job: job.arm == "muon-leaky")
    write_study(study, tmp_path, out)  # a diverged run is a result
    (out / "runs.csv").write_bytes(b"\xff\xfe,\n")
    with pytest.raises(RunError, match="is damaged"):
        write_study(study, tmp_path, out)


def test_the_command_keeps_committed_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = Path(__file__).parents[2] / "results"
    shutil.copytree(committed / "p2-leak.small", tmp_path / "results" / "p2-leak.small")
    shutil.copytree(committed / "p2-params.nano", tmp_path / "results" / "p2-params.nano")
    places = ["--runs-dir", str(tmp_path / "s"), "--results-dir", str(tmp_path / "results")]
    assert run(["study", "report", "p2-leak", *places]) == 2
    error = capsys.readouterr().err
    assert "p2-leak.small holds a report of 9 runs, and there are 0 here" in error
    assert run(["study", "report", "p2-params", "--scale", "nano", *places]) == 2
    assert "holds a report of 2 measured rows" in capsys.readouterr().err
    assert run(["study", "report", *places]) == 2
    assert "no study at scale small has runs below" in capsys.readouterr().err
    for name in ("p2-leak.small", "p2-params.nano"):
        kept = (committed / name / "verdicts.json").read_bytes()
        assert (tmp_path / "results" / name / "verdicts.json").read_bytes() == kept


def test_time_is_of_the_median_update(whole: Path) -> None:
    """The third of twenty updates took nine seconds instead of a quarter."""
    frame = StudyResults(invented_study(), whole).frame
    assert set(frame["steady_seconds"]) == {20 * 0.25}
