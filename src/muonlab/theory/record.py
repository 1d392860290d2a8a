"""Outcomes on disk and as a page: `run_check` runs one check and keeps what it found.

<root>/<name>/rows.csv       every measured row
<root>/<name>/figure.png
<root>/<name>/outcome.json   written last: present means that the check has finished
"""

import csv
import io
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from muonlab import __version__, machine
from muonlab.errors import UserError
from muonlab.runs import now, write_whole
from muonlab.theory.check import Check, Context, Evidence, Row, judge

FORMAT = 1


def run_check(
    check: Check, root: Path, context: Context, *, thorough: bool = False
) -> dict[str, Any]:
    """Measure, judge and write into ``root``; returns the outcome (the JSON's content).

    Raises OSError where ``root`` cannot be written, before anything is measured.
    """
    directory = root / check.name
    directory.mkdir(parents=True, exist_ok=True)
    sizes = check.thorough if thorough else check.sizes
    started = time.perf_counter()
    evidence = check.run(sizes, context)
    found = outcome(check, evidence, thorough=thorough, seconds=time.perf_counter() - started)
    write_whole(directory / "rows.csv", rows_as_csv(evidence.rows))
    figure = io.BytesIO()
    evidence.figure.savefig(figure, format="png", metadata={"Software": None})
    aside = directory / ".figure.png.writing"
    aside.write_bytes(figure.getvalue())
    aside.rename(directory / "figure.png")
    write_whole(directory / "outcome.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def outcome(check: Check, evidence: Evidence, *, thorough: bool, seconds: float) -> dict[str, Any]:
    """All that a reader of the outcome needs, as plain data; values that are not finite are None.

    Keys: ``format``, ``name``, ``claim``, ``claim_sentence``, ``theorem``, ``sources``,
    ``problem``, ``verdict``, ``reason`` (which measures decided), ``sentence`` (with our numbers),
    ``measures`` (name, value, expected, low, high, interval, role, passed, about, problem),
    ``rows`` and ``figures`` (file names), ``sizes``, ``command``, ``seconds``, ``finished``,
    ``version``, ``machine``.
    """
    verdict, reason = judge(evidence.measures)
    return {
        "format": FORMAT,
        "name": check.name,
        "claim": check.claim,
        "claim_sentence": check.sentence,
        "theorem": check.theorem,
        "sources": list(check.sources),
        "problem": check.problem,
        "verdict": verdict,
        "reason": reason,
        "sentence": evidence.sentence,
        "measures": [
            {
                **asdict(measure),
                "value": measure.value if math.isfinite(measure.value) else None,
                "expected": measure.expected,
                "passed": measure.passed,
            }
            for measure in evidence.measures
        ],
        "rows": "rows.csv",
        "figures": ["figure.png"],
        "sizes": asdict(check.thorough if thorough else check.sizes),
        "command": f"muonlab theory run {check.name}{' --thorough' if thorough else ''}",
        "seconds": round(seconds, 1),
        "finished": now(),
        "version": __version__,
        "machine": machine.describe(torch.device("cpu")),
    }


def rows_as_csv(rows: list[Row]) -> str:
    """One table; a row leaves the columns empty that it does not have."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.10g}" if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    )
    return text.getvalue()


def load_outcomes(root: Path) -> list[dict[str, Any]]:
    """Every outcome below ``root``, by name; raises UserError naming a file that is damaged."""
    found = []
    for path in sorted(root.glob("*/outcome.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is damaged: {error}") from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise UserError(f"{path} is no outcome of format {FORMAT}")
        found.append(values)
    return found


def report(outcomes: list[dict[str, Any]]) -> str:
    """The outcomes as one Markdown page; figures are linked relative to the root."""
    lines = ["# The theory, executed", "", "| claim | check | verdict |", "| --- | --- | --- |"]
    lines += [
        f"| {o['claim']} | [{o['name']}](#{o['name']}) | **{o['verdict']}** |" for o in outcomes
    ]
    for found in outcomes:
        lines += ["", f"## {found['name']}", "", *_section(found)]
    return "\n".join(lines) + "\n"


def _section(found: dict[str, Any]) -> list[str]:
    lines = [
        f"Claim ({found['claim']}): {found['claim_sentence']}",
        "",
        f"Theorem: {found['theorem']} Sources: {'; '.join(found['sources'])}.",
        "",
        f"Measured on: {found['problem']}",
        "",
        f"**{found['verdict'].capitalize()}.** {found['sentence']}",
        "",
        f"Decided by: {found['reason']}.",
        "",
        "| measure | value | expected | role | passed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for measure in found["measures"]:
        passed = "" if measure["role"] == "note" else "yes" if measure["passed"] else "no"
        name = measure["name"].replace("|", "\\|")
        value = number(measure["value"], measure["interval"])
        lines.append(f"| {name} | {value} | {measure['expected']} | {measure['role']} | {passed} |")
    lines += [
        "",
        *(f"![{found['name']}]({found['name']}/{figure})" for figure in found["figures"]),
        "",
        f"`{found['command']}`, {found['seconds']:.0f} s, version {found['version']}, "
        f"{found['finished']}; rows: [{found['rows']}]({found['name']}/{found['rows']}).",
    ]
    return lines


def number(value: float | None, interval: tuple[float, float] | None) -> str:
    """A measured value for a table, with its confidence interval where there is one."""
    if value is None:
        return "not finite"
    text = f"{value:.4g}" if abs(value) >= 1e-12 else "0"
    return f"{text} ({interval[0]:.3g} to {interval[1]:.3g})" if interval else text
