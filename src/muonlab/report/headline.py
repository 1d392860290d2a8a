"""The result of a comparison in a sentence, two or three numbers, and a mark on its curves."""

from collections.abc import Mapping, Sequence

import numpy as np

from muonlab.report.content import Curve, Headline, Mark, mean_curve


def headline(ranking: Mapping[str, float], curves: Sequence[Curve], num_seeds: int) -> Headline:
    """What the runs came to; ``ranking`` is arm → final validation loss (nats/token), lowest first.

    ``curves`` are of the validation loss over tokens. ``num_seeds`` is the smallest number of runs
    of an arm. Without an arm in ``ranking`` the sentence says that nothing compares.
    """
    if not ranking:
        return Headline(
            sentence="There is no finished run, or the runs do not compare: see the notes."
        )
    best, *others = ranking
    numbers = [(f"{ranking[best]:.3f}", f"nats/token: {best}, validation loss")]
    if not others:
        numbers.append((f"{np.exp(ranking[best]):,.1f}", "perplexity (tokens that are as likely)"))
        return Headline(
            sentence=f"{best} ends at a validation loss of {ranking[best]:.3f} nats/token.",
            numbers=numbers,
        )
    other = others[0]
    numbers.append((f"{ranking[other]:.3f}", f"nats/token: {other}, validation loss"))
    among = "" if len(others) == 1 else f", the lowest of {len(ranking)} arms"
    runs = "means over seeds" if num_seeds > 1 else "one run each, so there is no interval"
    point = mark(curves, ranking)
    if point and (whole := _last(curves, best)):
        share = f"{point.x / whole:.0%}".replace("%", " %")
        numbers.append((share, f"of its tokens: {best} reaches {other}'s final loss"))
    return Headline(
        sentence=f"{best} ends {ranking[other] - ranking[best]:.3f} nats/token below {other}"
        f"{among} ({runs}).",
        numbers=numbers,
    )


def mark(curves: Sequence[Curve], ranking: Mapping[str, float]) -> Mark | None:
    """Where the best arm reaches the final loss of the second best; None if it cannot be said."""
    if len(ranking) < 2:
        return None
    best, other = list(ranking)[:2]
    own = [curve for curve in curves if curve.arm == best]
    if not own:
        return None
    mean = mean_curve(own)
    x, y = (mean[0], mean[1]) if mean else (own[0].x, own[0].y)
    level = ranking[other]
    below = np.flatnonzero(y <= level)
    if not len(below) or below[0] == 0:
        return None
    i = int(below[0])
    share = (y[i - 1] - level) / (y[i - 1] - y[i])
    return Mark(
        x=float(x[i - 1] + share * (x[i] - x[i - 1])),
        y=level,
        text=f"{other}'s final loss, reached here",
    )


def _last(curves: Sequence[Curve], arm: str) -> float:
    return max((float(curve.x[-1]) for curve in curves if curve.arm == arm), default=0.0)
