"""A hook of the site's build: the committed reports become pages, and formulas become MathML."""

import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[1] / "results"


def on_page_content(html: str, **_: Any) -> str:
    """Formulas in LaTeX become MathML, which browsers draw without a script."""
    html = re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', _display, html, flags=re.DOTALL)
    return re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', _inline, html, flags=re.DOTALL)


def _display(found: re.Match[str]) -> str:
    """In a box that scrolls where a screen is too narrow for the formula."""
    return f'<div class="formula">{convert(unescape(found[1]).strip(), display="block")}</div>'


def _inline(found: re.Match[str]) -> str:
    return convert(unescape(found[1]))


def on_files(files: Files, config: Any) -> Files:
    """Add results/<study>/report.md and the pictures that it shows."""
    for report in sorted(RESULTS.glob("*/report.md")):
        for path in (report, *report.parent.rglob("*.png"), *report.parent.rglob("rows.csv")):
            name = f"results/{path.relative_to(RESULTS).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files
