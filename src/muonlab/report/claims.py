"""The ledger: every claim with the paper's value, ours, and the verdict that runs on disk gave."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from muonlab.lab.experiment import SCALES, VERDICTS, Verdict, VerdictName
from muonlab.papers.claims import CLAIMS, Claim
from muonlab.report.content import Column, Report, Section, Table
from muonlab.report.files import PAGE, REPORT, write_report
from muonlab.report.verdicts import signed

RESULTS = Path("results")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row of the ledger. Without a verdict, ``sentence`` says what is missing.

    ``scale`` and ``n`` (seeds, or None) are of the runs that it rests on. ``source``: where the
    verdict was read. ``report``: the report behind it, as a path below the
    results; empty if there is none.
    """

    claim: Claim
    verdict: VerdictName | None
    sentence: str
    ours: str = ""
    scale: str = ""
    n: int | None = None
    source: str = ""
    report: str = ""


def ledger(studies: Path, results: Path = RESULTS) -> list[Entry]:
    """Every claim's rows: what runs below ``studies`` say, else committed results.

    The larger scale decides, then more seeds, then own runs before committed results: never what
    they say. Other scales that say something else are named. A damaged file is a row that says so.
    """
    return [entry for claim in CLAIMS for entry in _entries(claim, studies, results)]


def ledger_table(entries: list[Entry], results: Path) -> Table:
    """A row a claim, with links from ``results/claims`` to the reports behind it."""
    columns = (
        Column(key="claim", heading="Claim"),
        Column(key="text", heading="What it says", wraps=True),
        Column(key="paper", heading="Paper", wraps=True),
        Column(key="ours", heading="Ours", wraps=True),
        Column(key="verdict", heading="Verdict"),
        Column(key="scale", heading="Scale"),
        Column(key="n", heading="Seeds"),
        Column(key="sentence", heading="Why", wraps=True),
        Column(
            key="source", heading="Runs behind it", wraps=True, links="report", page_links="page"
        ),
    )
    rows = [
        {
            "claim": entry.claim.id,
            "text": entry.claim.text,
            "paper": entry.claim.value,
            "ours": entry.ours,
            "verdict": signed(entry.verdict) if entry.verdict else "– not yet",
            "scale": entry.scale,
            "n": "" if entry.n is None else str(entry.n),
            "sentence": entry.sentence,
            "source": entry.source,
            "report": f"../{entry.report}" if entry.report else "",
            "page": f"../{_page(entry.report, results)}" if entry.report else "",
        }
        for entry in entries
    ]
    return Table(
        name="claims",
        caption="Verdicts are made by the experiments' own code from runs on disk.",
        frame=pd.DataFrame(rows),
        columns=columns,
    )


def write_ledger(entries: list[Entry], results: Path) -> Path:
    """Write the page of all claims to ``results/claims``; returns the page's path."""
    judged = [entry for entry in entries if entry.verdict]
    report = Report(
        title="Claims",
        introduction=f"{len(CLAIMS)} claims of two papers, "
        f"{len({entry.claim.id for entry in judged})} of them with a verdict.",
        sections=[
            Section(
                title="P1: Muon for training language models, with latent attention and experts",
                items=[
                    ledger_table([entry for entry in entries if entry.claim.paper == "P1"], results)
                ],
            ),
            Section(
                title="P2: Muon against AdamW, and latent attention, at 500,000 tokens",
                items=[
                    ledger_table([entry for entry in entries if entry.claim.paper == "P2"], results)
                ],
            ),
        ],
    )
    verdicts = [
        Verdict(
            claim=entry.claim.id,
            verdict=entry.verdict,
            sentence=entry.sentence,
            paper=entry.claim.value,
            ours=entry.ours,
        )
        for entry in judged
        if entry.verdict
    ]
    rows = ledger_table(entries, results).frame.drop(columns="page")
    return write_report(report, results / "claims", rows.to_csv(index=False), verdicts)


def _entries(claim: Claim, studies: Path, results: Path) -> list[Entry]:
    found: list[tuple[tuple[bool, int, int, bool], list[Entry]]] = []
    for name in claim.experiments:
        for rank, own, path in _places(name, studies, results):
            if entries := list(_read(claim, path, results)):
                readable = all(entry.verdict for entry in entries)
                found.append(((readable, rank, entries[0].n or 0, own), entries))
    if not found:
        return [Entry(claim=claim, verdict=None, sentence=_missing(claim))]
    _, chosen = max(found, key=lambda item: item[0])
    others = {
        f"{entry.verdict} at {entry.scale}"
        for _, entries in found
        for entry in entries
        if entry.verdict and entry.scale not in {each.scale for each in chosen}
        if entry.verdict not in {each.verdict for each in chosen}
    }
    said = f" Scales disagree: {', '.join(sorted(others))}." if others else ""
    return [replace(entry, sentence=f"{entry.sentence}{said}") for entry in chosen]


def _places(name: str, studies: Path, results: Path) -> Iterator[tuple[int, bool, Path]]:
    """Files that may hold its verdicts: how large a scale, whether from own runs, where."""
    yield 0, False, results / name / VERDICTS
    for rank, scale in enumerate(SCALES):
        yield rank, True, studies / f"{name}.{scale}" / VERDICTS
        yield rank, False, results / f"{name}.{scale}" / VERDICTS


def _read(claim: Claim, path: Path, results: Path) -> Iterator[Entry]:
    if not path.exists():
        return
    folder = path.parent
    report = f"{folder.name}/{REPORT}"
    exists = (results / report).exists()
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        for verdict in facts:
            if verdict["claim"] == claim.id:
                if verdict["verdict"] not in get_args(VerdictName):
                    raise ValueError(f"{verdict['verdict']!r} is no verdict")
                yield Entry(
                    claim=claim,
                    verdict=verdict["verdict"],
                    sentence=verdict["sentence"],
                    ours=verdict.get("ours", ""),
                    scale=folder.name.rpartition(".")[2] if "." in folder.name else "",
                    n=_num_seeds(folder),
                    source=_source(folder),
                    report=report if exists else "",
                )
    except (ValueError, KeyError, TypeError) as error:
        yield Entry(claim=claim, verdict=None, sentence=f"{path} is damaged: {error}")


def _page(report: str, results: Path) -> str:
    """The HTML page beside a report, or the report itself where no page has been written."""
    page = f"{report.removesuffix(REPORT)}{PAGE}"
    return page if (results / page).exists() else report


def _num_seeds(folder: Path) -> int | None:
    """How many seeds have runs with a result; None for measurements."""
    try:
        record: dict[str, Any] = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        runs = [item for arm in record["arms"].values() for item in arm["runs"].items()]
        return len({s for s, run in runs if (folder.parent / run / "summary.json").exists()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    try:
        rows = pd.read_csv(folder / "runs.csv", usecols=["arm", "seed", "status"])
        return rows.loc[rows["status"] == "finished", "seed"].nunique()
    except (OSError, ValueError):
        return None


def _source(folder: Path) -> str:
    """The folder, with its number of finished runs where it lists them."""
    try:
        record: dict[str, Any] = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        runs = [run for arm in record["arms"].values() for run in arm["runs"].values()]
        finished = sum((folder.parent / run / "summary.json").exists() for run in runs)
        return f"{folder} ({finished} of {len(runs)} runs)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return str(folder)


def _missing(claim: Claim) -> str:
    """What to do for a verdict."""
    commands = [f"muonlab study run {name}" for name in claim.experiments]
    return f"Not run yet: {', '.join(commands)}" if commands else "No experiment judges it yet."
