"""What arms are called: runs that differ in nothing but their seed are seeds of one arm."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from muonlab.config import RunConfig, to_dict

ABSENT = "absent"
MOST_DIFFERENCES = 3  # more of them make no name; the fingerprint does


def arm_names(configs: Sequence[RunConfig]) -> list[str]:
    """A name for every run's arm: equal names for seeds of one arm, and only for those.

    An arm is called by its label. Arms of one label add the fields that tell them apart, as in
    ``muon (optimizer.lr=0.02)``.
    """
    keys = [config.arm_fingerprint() for config in configs]
    arms = dict(zip(keys, configs, strict=True))
    labels = Counter(config.label for config in arms.values())
    names = {key: config.label for key, config in arms.items()}
    for label in (label for label, count in labels.items() if count > 1):
        alike = {key: config for key, config in arms.items() if config.label == label}
        for key, text in _distinctions(alike).items():
            names[key] = f"{label} ({text})"
    return [names[key] for key in keys]


def _distinctions(arms: dict[str, RunConfig]) -> dict[str, str]:
    """For each arm the fields that differ among them, or its fingerprint where they are many."""
    fields = {key: dict(flatten(to_dict(config))) for key, config in arms.items()}
    paths = dict.fromkeys(path for values in fields.values() for path in values)
    differing = [
        path
        for path in paths
        if path not in ("name", "variant", "seed")
        and len({values.get(path, ABSENT) for values in fields.values()}) > 1
    ]
    if len(differing) > MOST_DIFFERENCES:
        return {key: key[:8] for key in arms}
    return {
        key: ", ".join(f"{path}={values.get(path, ABSENT)}" for path in differing)
        for key, values in fields.items()
    }


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every field of nested plain data, by its dotted path, as JSON text."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value)
