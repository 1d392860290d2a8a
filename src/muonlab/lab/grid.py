"""Arms from factors: every combination of their levels, with labels that say which it is."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from muonlab.config import RunConfig, changed
from muonlab.lab.experiment import Arm, Label, Protocol, Search

Changes = Mapping[str, Any] | Callable[[RunConfig], RunConfig]


def grid(
    base: RunConfig,
    factors: Mapping[str, Mapping[Label, Changes]],
    *,
    name: str = "",
    protocol: Protocol = "honest",
    search: Search | Callable[[Mapping[str, Label]], Search] | None = None,
    tuned_at: Mapping[str, Label] | None = None,
) -> tuple[Arm, ...]:
    """An arm for every combination of levels, the last factor's changing fastest.

    ``factors``: factor → level → what that level changes of ``base``: ``{"optimizer.lr": 0.1}``, or
    a function of the config. An arm's labels are its levels. ``name`` formats them, as in
    ``"{optimizer}-{budget:.2f}"``; by default they are joined by "-".
    ``search``: how each arm is tuned, or a function of its labels. ``tuned_at``: only arms with
    these levels are tuned, and all others take what the arm with these levels found.
    """
    template = name or "-".join(f"{{{factor}}}" for factor in factors)
    arms = []
    for levels in itertools.product(*(levels.items() for levels in factors.values())):
        labels = dict(zip(factors, (level for level, _ in levels), strict=True))
        config = base
        for _, changes in levels:
            config = changes(config) if callable(changes) else changed(config, changes)
        source = labels | dict(tuned_at or {})
        own = search(labels) if callable(search) else search
        arms.append(
            Arm(
                name=_name(template, labels),
                config=config,
                protocol=protocol,
                labels=labels,
                search=own if source == labels else None,
                tuned_as=_name(template, source) if own and source != labels else None,
            )
        )
    return tuple(arms)


def arm_name(arms: Sequence[Arm], protocol: Protocol | None = None, **labels: Label) -> str:
    """The name of the one arm with these labels; raises ValueError if there is none, or several."""
    found = [
        arm.name
        for arm in arms
        if protocol in (None, arm.protocol) and labels.items() <= dict(arm.labels).items()
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} arms have {protocol or ''} {labels}: {', '.join(found)}")
    return found[0]


def _name(template: str, labels: Mapping[str, Label]) -> str:
    """What an arm may be called: small letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.-]", ".", template.format_map(labels).lower())
