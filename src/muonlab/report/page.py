"""One self-contained HTML page: its script, style, data and figures travel in the file."""

import base64
import gzip
import json
from importlib import resources
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from muonlab.report.content import (
    Banner,
    CurveFigure,
    Drawing,
    IntervalFigure,
    Picture,
    Report,
    Samples,
    Section,
    Table,
    arms_of,
)
from muonlab.report.figures import COLOURS, DASHES, svg
from muonlab.report.interactive import plotly_figure

PLOTLY = "plotly-basic-4.1.1.min.js.gz"  # the basic build, MIT licence
DASH_ARRAYS = dict(zip(DASHES, ("none", "6 3", "1.5 3", "6 3 1.5 3"), strict=True))


def to_html(report: Report) -> str:
    """The page. It asks nothing of the outside, and its content policy forbids that it could.

    Its figures are drawn already. plotly.js, 1.2 MB, lies in the file as 0.5 MB of packed text, and
    so do the figures' values: they are unpacked when a reader asks for a figure to zoom in.
    """
    environment = Environment(
        loader=PackageLoader("muonlab.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests |= {
        "table": lambda item: isinstance(item, Table),
        "drawing": lambda item: isinstance(item, Drawing | Picture),
        "figure": lambda item: isinstance(item, CurveFigure | IntervalFigure),
        "samples": lambda item: isinstance(item, Samples),
        "banner": lambda item: isinstance(item, Banner),
    }
    pictures: dict[str, Markup] = {}
    figures: dict[str, dict[str, object]] = {}
    for section in report.sections:
        order = {arm: index for index, arm in enumerate(arms_of(section.figures))}
        for figure in section.figures:
            pictures[figure.name] = Markup(svg(figure, order))  # its text is escaped by matplotlib
            figures[figure.name] = plotly_figure(figure, order)
    return environment.get_template("page.html").render(
        report=report,
        pictures=pictures,
        legend=_legend,
        plotly=_text(_packed_plotly()) if figures else "",
        figures=_text(_packed(figures)) if figures else "",
        csv_uri=_csv_uri,
        png_uri=_png_uri,
    )


def _png_uri(drawing: Drawing | Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(drawing.png()).decode()


def _legend(section: Section) -> list[tuple[str, str, str]]:
    """The arms of a section's curves: name, the name of the colour, the pattern of the line."""
    return [
        (arm, f"c{index % len(COLOURS)}", DASH_ARRAYS[DASHES[index // len(COLOURS) % len(DASHES)]])
        for index, arm in enumerate(arms_of(section.figures))
    ]


def _packed_plotly() -> bytes:
    return resources.files("muonlab.report").joinpath("templates", PLOTLY).read_bytes()


def _packed(figures: dict[str, dict[str, object]]) -> bytes:
    written = json.dumps(figures, separators=(",", ":"), allow_nan=False)
    return gzip.compress(written.encode(), mtime=0)  # equal figures, equal bytes


def _text(packed: bytes) -> str:
    return base64.b64encode(packed).decode("ascii")


def _csv_uri(table: Table) -> str:
    return "data:text/csv;charset=utf-8," + quote(table.csv())
