"""What a report is made of; `page`, `markdown` and `figures` show it.

Nothing here knows what a run is: a study's report is made of the same pieces.
"""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Numbers = NDArray[np.float64]
WARNING_MARK = "⚠"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a table: its key in the frame, its heading with the unit, its digits.

    A value is shown times ``scale``. ``better`` lets the best value of the column stand out.
    ``wraps``: its cells are sentences. ``links`` and ``page_links``: the keys of other columns,
    which hold the file that a cell leads to in Markdown and on the page.
    """

    key: str
    heading: str
    digits: int = 0
    scale: float = 1.0
    better: Literal["lower", "higher"] | None = None
    wraps: bool = False
    links: str | None = None
    page_links: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A cell: its text, what it sorts by (None: last), whether it is the best of its column."""

    text: str
    sort_by: float | str | None
    best: bool = False
    link: str = ""
    page_link: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of ``frame`` in the order of ``columns``; ``half_widths`` adds a ± to its own keys.

    ``name`` is the stem of the CSV file that the page offers. ``contenders`` says row by row which
    may be the best of a column (None: all).
    """

    name: str
    caption: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    half_widths: pd.DataFrame | None = None
    contenders: Sequence[bool] | None = None

    def rows(self) -> list[list[Cell]]:
        """Every cell, row by row."""
        columns = [self._cells(column) for column in self.columns]
        return [list(row) for row in zip(*columns, strict=True)]

    def is_text(self, column: Column) -> bool:
        return any(isinstance(value, str) for value in self.frame[column.key])

    def csv(self) -> str:
        """The frame itself, unscaled, at full precision, and its half-widths beside it."""
        frame = self.frame
        if self.half_widths is not None:
            frame = frame.join(self.half_widths.add_suffix(" ±"))
        return frame.to_csv(index=False)

    def _cells(self, column: Column) -> list[Cell]:
        values = list(self.frame[column.key])
        halves: list[float] = [math.nan] * len(values)
        if self.half_widths is not None and column.key in self.half_widths:
            halves = list(self.half_widths[column.key])
        contenders = self.contenders or [True] * len(values)
        best = self._best(column, values, contenders)
        links, page_links = (
            list(self.frame[key]) if key else [""] * len(values)
            for key in (column.links, column.page_links)
        )
        rows = zip(values, halves, contenders, links, page_links, strict=True)
        return [
            dataclasses.replace(
                _cell(value, half, column, best if contends else None), link=link, page_link=page
            )
            for value, half, contends, link, page in rows
        ]

    @staticmethod
    def _best(
        column: Column, values: Sequence[float | str], contenders: Sequence[bool]
    ) -> float | None:
        numbers = {
            value
            for value, contends in zip(values, contenders, strict=True)
            if contends and not isinstance(value, str) and math.isfinite(value)
        }
        if column.better is None or len(numbers) < 2:
            return None
        return min(numbers) if column.better == "lower" else max(numbers)


def _cell(value: float | str, half: float, column: Column, best: float | None) -> Cell:
    if isinstance(value, str):
        return Cell(text=value, sort_by=value)
    if math.isnan(value):
        return Cell(text="–", sort_by=None)
    text = f"{value * column.scale:,.{column.digits}f}"
    if not math.isnan(half):
        text += f" ± {half * column.scale:,.{column.digits}f}"
    sort_by = float(value) if math.isfinite(value) else None
    return Cell(text=text, sort_by=sort_by, best=best is not None and value == best)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One run's curve. Curves of the same ``arm`` are its seeds."""

    arm: str
    seed: int
    x: Numbers
    y: Numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A point on a figure with a level line through it, and what it means."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveFigure:
    """Curves over a common axis; an arm's mean and 95 % band where its seeds share that axis.

    ``limits`` are drawn as upright dotted lines. Points that are ``joined`` make a line.
    ``from_zero``: the values cannot be negative, and the axis begins at 0. ``label_ends``: each
    arm's last value stands at the right edge.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    caption: str = ""
    log_x: bool = False
    limits: Sequence[float] = ()
    joined: bool = True
    from_zero: bool = False
    label_ends: bool = False
    mark: Mark | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalFigure:
    """One number per run: every seed as a point, every arm's mean with its 95 % interval.

    ``zero_line``: the values are differences, and 0 means that there is none. ``limits`` are drawn
    as upright dotted lines.
    """

    name: str
    title: str
    value_label: str
    values: Mapping[str, Sequence[float]]  # by arm
    caption: str = ""
    zero_line: bool = False
    limits: Sequence[float] = ()


Figure = CurveFigure | IntervalFigure


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Generated text: for every model, pairs of a prompt and what the model made of it."""

    texts: Mapping[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Banner:
    """A verdict that a reader cannot overlook; ``meaning`` is the rule behind its word."""

    claim: str
    text: str  # what the paper says
    verdict: str
    sign: str
    meaning: str
    sentence: str
    paper: str
    ours: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """The result in one sentence, and up to three numbers, each with what it is and its unit."""

    sentence: str
    numbers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading, plain-text paragraphs, and what is shown under them in order."""

    title: str
    text: Sequence[str] = ()
    items: Sequence["Table | Figure | Drawing | Picture | Samples | Banner"] = ()

    @property
    def figures(self) -> list[Figure]:
        return [item for item in self.items if isinstance(item, CurveFigure | IntervalFigure)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A figure that a measurement has drawn itself, with its caption in it."""

    name: str
    title: str
    canvas: "Canvas"

    def png(self) -> bytes:
        """The picture; equal figures give equal bytes."""
        picture = io.BytesIO()
        self.canvas.savefig(picture, format="png", metadata={"Software": None})
        return picture.getvalue()


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A figure that was drawn before, from what is no longer here."""

    name: str
    title: str
    picture: bytes

    def png(self) -> bytes:
        return self.picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A whole report. ``notices`` are the warnings that a reader must see before any number.

    ``circumstances``: seeds, n, hardware and data, which hold for every table and figure.
    """

    title: str
    introduction: str
    headline: Headline | None = None
    circumstances: str = ""
    notices: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=tuple)

    @property
    def figures(self) -> list[Figure]:
        return [figure for section in self.sections for figure in section.figures]

    @property
    def drawings(self) -> list[Drawing | Picture]:
        items = [item for section in self.sections for item in section.items]
        return [item for item in items if isinstance(item, Drawing | Picture)]


def arms_of(figures: Sequence[Figure]) -> list[str]:
    """The arms of curves in the order in which they first stand: one look for each."""
    curves = [c for figure in figures if isinstance(figure, CurveFigure) for c in figure.curves]
    return list(dict.fromkeys(curve.arm for curve in curves))


def mean_and_half_width(values: Numbers) -> tuple[Numbers, Numbers]:
    """Mean over the first axis and the half-width of its 95 % t interval (NaN for one value)."""
    count = len(values)
    if count < 2:
        return values.mean(axis=0), np.full(values.shape[1:], np.nan)
    error = values.std(axis=0, ddof=1) / math.sqrt(count)
    return values.mean(axis=0), stats.t.ppf(0.975, count - 1) * error


def mean_curve(curves: Sequence[Curve]) -> tuple[Numbers, Numbers, Numbers] | None:
    """``(x, mean, half_width)`` of one arm's curves where they share x; None if they share < 2."""
    shared = curves[0].x
    for curve in curves[1:]:
        shared = np.intersect1d(shared, curve.x)
    if len(curves) < 2 or len(shared) < 2:
        return None
    values = np.stack([curve.y[np.isin(curve.x, shared)] for curve in curves])
    return (shared, *mean_and_half_width(values))
