"""One self-contained HTML page: its script, style, data and figures travel in the file."""

import base64
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from muonlab.report.content import CurveFigure, Drawing, IntervalFigure, Report, Samples, Table
from muonlab.report.figures import is_crowded, plotly_json


def to_html(report: Report) -> str:
    """The page. It asks nothing of the outside, and its content policy forbids that it could.

    plotly.js is the full build, 4.8 MB: the Python package brings no smaller one.
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
        "drawing": lambda item: isinstance(item, Drawing),
        "figure": lambda item: isinstance(item, CurveFigure | IntervalFigure),
        "crowded": is_crowded,
        "samples": lambda item: isinstance(item, Samples),
    }
    return environment.get_template("page.html").render(
        report=report,
        plotly_script=Markup(get_plotlyjs()),  # the package's own, not input
        figures={figure.name: plotly_json(figure) for figure in report.figures},
        csv_uri=_csv_uri,
        png_uri=_png_uri,
    )


def _png_uri(drawing: Drawing) -> str:
    return "data:image/png;base64," + base64.b64encode(drawing.png()).decode()


def _csv_uri(table: Table) -> str:
    return "data:text/csv;charset=utf-8," + quote(table.csv())
