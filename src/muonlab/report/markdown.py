"""The report as Markdown beside its PNGs, for reading in a repository."""

import re
from collections.abc import Iterator

from muonlab.report.content import (
    WARNING_MARK,
    Banner,
    Cell,
    CurveFigure,
    Drawing,
    IntervalFigure,
    Picture,
    Report,
    Samples,
    Table,
)


def to_markdown(report: Report) -> str:
    """The whole report; figures are links to ``<name>.png`` in the same directory."""
    return "\n\n".join(_blocks(report)) + "\n"


def _blocks(report: Report) -> Iterator[str]:
    yield f"# {_text(report.title)}"
    if report.introduction:
        yield _text(report.introduction)
    if report.headline:
        yield f"**{_text(report.headline.sentence)}**"
    if report.circumstances:
        yield f"*{_text(report.circumstances)}*"
    for notice in report.notices:
        yield f"> {WARNING_MARK} {_text(notice)}"
    for section in report.sections:
        yield f"## {_text(section.title)}"
        yield from map(_text, section.text)
        for item in section.items:
            match item:
                case Table():
                    yield _table(item)
                    yield f"*{_text(item.caption)}*"
                case Banner():
                    yield from _banner(item)
                case CurveFigure() | IntervalFigure() | Drawing() | Picture():
                    yield f"![{_text(item.title)}]({item.name}.png)"
                case Samples():
                    yield from _samples(item)


def _table(table: Table) -> str:
    """Numbers to the right, text to the left, the best of a column in bold."""
    lines = [
        [_text(column.heading) for column in table.columns],
        ["---" if table.is_text(column) else "---:" for column in table.columns],
        *([_cell(cell) for cell in row] for row in table.rows()),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    text = f"[{_text(cell.text)}]({cell.link})" if cell.link else _text(cell.text)
    return f"**{text}**" if cell.best else text


def _banner(banner: Banner) -> Iterator[str]:
    claim = f"{banner.claim}: {banner.text}" if banner.text else banner.claim
    yield f"### {banner.sign} {_text(banner.verdict)}"
    yield f"**{_text(claim)}.**"
    yield _text(banner.sentence)
    sides = [("Paper", banner.paper), ("Here", banner.ours)]
    if said := [f"{name}: {_text(text)}." for name, text in sides if text]:
        yield " ".join(said)
    yield f"*{_text(f'{banner.verdict.capitalize()}: {banner.meaning}')}*"


def _samples(samples: Samples) -> Iterator[str]:
    for model, pairs in samples.texts.items():
        yield f"### {_text(model)}"
        for prompt, continuation in pairs:
            text = prompt + continuation
            longest = max(map(len, re.findall(r"`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            yield f"{fence}text\n{text}\n{fence}"


def _text(text: str) -> str:
    """One line in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", " ".join(text.split()))
