"""A report's files: page, Markdown with PNGs, rows, verdicts."""

import json
from collections.abc import Sequence
from pathlib import Path

from muonlab.files import write_whole
from muonlab.lab.experiment import VERDICTS, Verdict
from muonlab.lab.record import facts_of
from muonlab.report.content import Report
from muonlab.report.figures import write_png
from muonlab.report.markdown import to_markdown
from muonlab.report.page import to_html

PAGE = "index.html"
REPORT = "report.md"
RUNS = "runs.csv"  # a row for each run, unscaled


def write_report(
    report: Report, directory: Path, csv: str, verdicts: Sequence[Verdict] | None = None
) -> Path:
    """Write index.html, report.md with its PNGs, runs.csv (``csv``) and, if there are verdicts,
    verdicts.json; returns the page.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for figure in report.figures:
        write_png(figure, directory / f"{figure.name}.png", report.circumstances)
    for drawing in report.drawings:
        (directory / f"{drawing.name}.png").write_bytes(drawing.png())
    write_whole(directory / REPORT, to_markdown(report))
    write_whole(directory / RUNS, csv)
    if verdicts is not None:
        facts = json.dumps(facts_of(verdicts), indent=2, allow_nan=False)
        write_whole(directory / VERDICTS, f"{facts}\n")
    page = directory / PAGE
    write_whole(page, to_html(report))
    return page
