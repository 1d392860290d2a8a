"""Verdicts as a reader sees them: a sign, a word, and the rule behind it in words."""

import math
from collections.abc import Mapping

import pandas as pd

from muonlab.lab.experiment import Finding, Verdict, VerdictName
from muonlab.papers.claims import CLAIMS
from muonlab.report.content import Banner, Column, Table

SIGNS: Mapping[VerdictName, str] = {
    "reproduced": "✓",
    "direction only": "↗",
    "refuted": "✗",
    "artefact of the protocol": "⚑",
    "measured, nothing claimed": "–",
    "not testable at this scale": "…",
    "inconclusive": "?",
}


MEANINGS: Mapping[VerdictName, str] = {
    "reproduced": "The runs show the effect, and its size agrees with the paper's.",
    "direction only": "The runs show an effect in the paper's direction, but not of the paper's "
    "size, or not under every condition that the paper states.",
    "refuted": "The runs show the opposite of the claim, or rule the claimed effect out.",
    "artefact of the protocol": "The effect is there under the paper's own protocol, and the "
    "honest protocol rules it out: the way of measuring made it.",
    "not testable at this scale": "The claim is about larger models or longer training than these "
    "runs. Nothing is concluded.",
    "measured, nothing claimed": "Nobody claimed an outcome, so there is nothing to confirm.",
    "inconclusive": "The runs are too few or too scattered to decide. This is neither for nor "
    "against the claim.",
}


def signed(verdict: VerdictName) -> str:
    """The verdict behind its sign."""
    return f"{SIGNS[verdict]} {verdict}"


def findings_table(verdict: Verdict, number: int = 1) -> Table:
    """The numbers that a verdict rests on, where each has to lie, and whether it does.

    ``number``: which verdict of its report it is; a claim may have several.
    """
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
        name=f"findings-{verdict.claim.lower()}{'' if number == 1 else f'-{number}'}",
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


def banner(verdict: Verdict) -> Banner:
    """A verdict with the claim in words and the rule behind its word."""
    texts = {claim.id: claim.text for claim in CLAIMS}
    return Banner(
        claim=verdict.claim,
        text=texts.get(verdict.claim, ""),
        verdict=verdict.verdict,
        sign=SIGNS[verdict.verdict],
        meaning=f"{MEANINGS[verdict.verdict]} {verdict.rule}".strip(),
        sentence=verdict.sentence,
        paper=verdict.paper,
        ours=verdict.ours,
    )
