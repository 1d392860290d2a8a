"""The ledger: which verdict counts, and what a row says that has none."""

import json
import re
from pathlib import Path

import pytest

from muonlab.cli import run
from muonlab.papers import EXPERIMENTS
from muonlab.papers.claims import CLAIMS
from muonlab.report.claims import Entry, ledger, write_ledger

RESULTS = Path(__file__).parents[2] / "results"


def put(folder: Path, verdict: str, *, claim: str = "P2-leak", ours: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text("# A report")
    facts = {"claim": claim, "verdict": verdict, "sentence": f"It is {verdict}.", "ours": ours}
    (folder / "verdicts.json").write_text(json.dumps([facts]))


def entries(tmp_path: Path, claim: str = "P2-leak") -> list[Entry]:
    found = ledger(tmp_path / "studies", tmp_path / "results")
    return [entry for entry in found if entry.claim.id == claim]


def test_every_claim_is_there_once_and_names_experiments_that_exist() -> None:
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    judged = {claim.id for claim in CLAIMS if claim.experiments}
    for name, make in EXPERIMENTS.items():
        assert set(make("nano").claims) <= judged, name
    assert {name for claim in CLAIMS for name in claim.experiments} <= set(EXPERIMENTS)


def test_a_claim_without_runs_gives_its_command(tmp_path: Path) -> None:
    (leak,) = entries(tmp_path)
    assert leak.verdict is None
    assert leak.sentence == "Not run yet: muonlab study run p2-leak"
    assert entries(tmp_path, "P1-rate")[0].sentence == "Not run yet: muonlab study run theory-rate"
    assert entries(tmp_path, "P2-multimodal")[0].sentence == "No experiment judges it yet."


def test_the_larger_scale_decides_then_more_seeds_then_own_runs(tmp_path: Path) -> None:
    put(tmp_path / "results" / "p2-leak.nano", "direction only")
    assert entries(tmp_path)[0].verdict == "direction only"
    put(tmp_path / "studies" / "p2-leak.nano", "reproduced")
    assert entries(tmp_path)[0].verdict == "reproduced"
    rows = "arm,seed,status\na,0,finished\na,1,finished\na,2,failed\n"
    (tmp_path / "results" / "p2-leak.nano" / "runs.csv").write_text(rows)
    (chosen,) = entries(tmp_path)
    assert (chosen.verdict, chosen.scale, chosen.n) == ("direction only", "nano", 2)
    put(tmp_path / "results" / "p2-leak.small", "inconclusive")
    (chosen,) = entries(tmp_path)
    assert (chosen.verdict, chosen.report) == ("inconclusive", "p2-leak.small/report.md")
    assert chosen.sentence.endswith("Scales disagree: direction only at nano, reproduced at nano.")


def test_the_runs_behind_a_verdict_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "p2-leak.nano"
    put(folder, "reproduced", ours="3.4")
    record = {"arms": {"a": {"runs": {"0": "x", "1": "y"}}, "b": {"runs": {"0": "z"}}}}
    (folder / "study.json").write_text(json.dumps(record))
    (tmp_path / "studies" / "y").mkdir()
    (tmp_path / "studies" / "y" / "summary.json").write_text("{}")
    (entry,) = entries(tmp_path)
    assert entry.source == f"{folder} (1 of 3 runs)"
    assert entry.ours == "3.4"


@pytest.mark.parametrize(
    "text", ["nonsense", '[{"claim": "P2-leak"}]', '[{"claim": "P2-leak", "verdict": "fine"}]', "3"]
)
def test_a_damaged_file_is_a_row_that_says_so(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "studies" / "p2-leak.nano"
    folder.mkdir(parents=True)
    (folder / "verdicts.json").write_text(text)
    (entry,) = entries(tmp_path)
    assert entry.verdict is None
    assert "is damaged" in entry.sentence


def test_links_lead_to_what_is_there(tmp_path: Path) -> None:
    results = tmp_path / "results"
    put(results / "p2-leak.nano", "artefact of the protocol")
    put(results / "p2-table1.nano", "refuted", claim="P2-T1")
    (results / "p2-table1.nano" / "index.html").write_text("")
    found = ledger(tmp_path / "studies", results)
    page = write_ledger(found, results).read_text(encoding="utf-8")
    assert set(re.findall(r'<a href="(\.\./.*?)"', page)) == {
        "../p2-leak.nano/report.md",
        "../p2-table1.nano/index.html",
    }
    text = (results / "claims" / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\.\./.*?)\)", text)) == {
        "../p2-leak.nano/report.md",
        "../p2-table1.nano/report.md",
    }
    assert "⚑ artefact of the protocol" in text
    assert all(claim.id in text for claim in CLAIMS)


def test_links_of_the_committed_ledger_are_whole() -> None:
    links = re.findall(r"\]\((.*?)\)", (RESULTS / "claims" / "report.md").read_text("utf-8"))
    assert len(links) > 20
    for link in links:
        path, _, anchor = link.partition("#")
        text = (RESULTS / "claims" / path).read_text("utf-8")
        assert not anchor or f"## {anchor}\n" in text, link


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").mkdir()
    places = ["--runs-dir", str(tmp_path / "studies"), "--results-dir", str(tmp_path / "results")]
    assert run(["claims", "--report", *places]) == 0
    printed = capsys.readouterr().out
    assert "P1-compute" in printed
    assert "index.html" in printed
    assert (tmp_path / "results" / "claims" / "verdicts.json").exists()
    assert run(["claims", "--json", *places]) == 0
    records = json.loads(capsys.readouterr().out)
    assert {"P1-compute", "P2-leak"} <= {record["claim"]["id"] for record in records}
    assert all(record["verdict"] is None and record["sentence"] for record in records)


def test_without_committed_results_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    with pytest.warns(UserWarning, match=f"there is no directory '{results}', so only"):
        assert run(["claims", "--results-dir", str(results)]) == 0
    assert "P1-compute" in capsys.readouterr().out
