"""Verdicts as a reader sees them: a sign and a word, so that no meaning hangs on a colour."""

from collections.abc import Mapping, Sequence

import pandas as pd

from muonlab.lab.experiment import Verdict, VerdictName
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
