"""What an experiment can say of a claim: words that studies, theory checks and reports share."""

from typing import Literal

VerdictName = Literal[
    "reproduced",
    "direction only",
    "refuted",
    "artefact of the protocol",
    "not testable at this scale",
    "inconclusive",
]
VERDICTS = "verdicts.json"  # the file that holds an experiment's
