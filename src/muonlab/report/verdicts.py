"""Verdicts as a reader sees them: a sign and a word, so that no meaning hangs on a colour."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from muonlab.lab.experiment import Finding, Verdict, VerdictName
from muonlab.report.content import Column, Table

SIGNS: Mapping[VerdictName, str] = {
    "reproduced": "✓",
    "direction only": "↗",
    "refuted": "✗",
    "artefact of the protocol": "⚑",
    "not testable at this scale": "…",
    "inconclusive": "?",
}


def signed(verdict: VerdictName) -> str:
    """The verdict behind its sign."""
    return f"{SIGNS[verdict]} {verdict}"


def findings_table(verdict: Verdict) -> Table:
    """The numbers that a verdict rests on, where each has to lie, and whether it does."""
    columns = (
        Column(key="finding", heading="Finding", wraps=True),
        Column(key="value", heading="Value"),
        Column(key="expected", heading="Expected"),
        Column(key="role", heading="Role"),
        Column(key="holds", heading="Holds"),
        Column(key="about", heading="What it is", wraps=True),
    )
    rows = [
        {
            "finding": found.name,
            "value": _number(found),
            "expected": found.expected,
            "role": found.role,
            "holds": "" if found.role == "note" else "yes" if found.passed else "no",
            "about": found.problem or found.about,
        }
        for found in verdict.findings
    ]
    return Table(
        name=f"findings-{verdict.claim.lower()}",
        caption=f"What {verdict.claim} is judged by. A requirement that fails leaves it open; a "
        "direction is the weaker statement that may hold where the claim does not.",
        frame=pd.DataFrame(rows, columns=[column.key for column in columns]),
        columns=columns,
    )


def _number(found: Finding) -> str:
    if not math.isfinite(found.value):
        return "not finite"
    text = f"{found.value:.4g}" if abs(found.value) >= 1e-12 else "0"
    low, high = found.interval or (None, None)
    return text if low is None else f"{text} ({low:.3g} to {high:.3g})"


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A row a claim: what is said of it, in a word and in a sentence, and both numbers."""
    columns = (
        Column(key="claim", heading="Claim"),
        Column(key="verdict", heading="Verdict"),
        Column(key="sentence", heading="Why", wraps=True),
        Column(key="paper", heading="Paper", wraps=True),
        Column(key="ours", heading="Ours", wraps=True),
    )
    rows = [
        {
            "claim": verdict.claim,
            "verdict": signed(verdict.verdict),
            "sentence": verdict.sentence,
            "paper": verdict.paper,
            "ours": verdict.ours,
        }
        for verdict in verdicts
    ]
    return Table(
        name="verdicts",
        caption="Decided by the study's own code from the runs below.",
        frame=pd.DataFrame(rows, columns=[column.key for column in columns]),
        columns=columns,
    )
