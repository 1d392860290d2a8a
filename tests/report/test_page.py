"""The page in a real browser: silent, self-contained, and alive."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from muonlab.report import write_comparison

from .browser import CHROMIUM, Page, browser
from .conftest import WriteRun
from .test_comparison import HOSTILE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture
def page(write_run: WriteRun, tmp_path: Path) -> Iterator[Page]:
    runs = [
        *(write_run("adamw", seed, floor=4.4) for seed in range(3)),
        write_run("muon", 0),
        write_run("leaky", 0, floor=3.0, warnings=(HOSTILE,)),
        write_run("muon", 1, finished=False, steps=30),
    ]
    written = write_comparison(
        runs,
        tmp_path / "out",
        title=HOSTILE,
        introduction=HOSTILE,
        samples={HOSTILE: [(HOSTILE, HOSTILE)]},
    )
    with browser(tmp_path / "profile") as opened:
        opened.open(written)
        yield opened


def first_cells(page: Page) -> list[str]:
    return page.run(
        "[...document.querySelectorAll('#table-runs tbody tr')].map(r => r.cells[2].innerText)"
    )


def test_the_page_in_a_browser(page: Page) -> None:
    # silent and self-contained
    assert not page.reported("Runtime.exceptionThrown")
    assert not page.reported("Log.entryAdded")
    assert not page.reported("Runtime.consoleAPICalled")
    requests = [event["request"]["url"] for event in page.reported("Network.requestWillBeSent")]
    assert len([url for url in requests if not url.startswith("data:")]) == 1, requests

    # escaped: hostile text is text
    assert page.run("window.broken === undefined")
    assert page.run("document.querySelector('h1').innerText") == HOSTILE
    assert HOSTILE in page.run("document.querySelector('blockquote').innerText")
    assert HOSTILE in page.run("document.querySelector('.notices').innerText")

    # every figure is drawn: adamw has its seeds, a band and a mean, the other arms one curve
    assert page.run("plots.every(plot => plot.querySelector('svg'))")
    assert not page.run("window.Plotly"), "the script waits for a reader who wants it"
    page.run("Promise.all(plots.map(draw))")
    count = "document.getElementById('figure-validation-loss-tokens').data.length"
    assert page.run(count) == 1 + 2 + 1 + 1 + 1
    assert page.run("plots.every(plot => plot.querySelector('.main-svg'))")
    assert page.run("plots.length") == 9

    # a click sorts by number, a second one turns the order
    click = "document.querySelectorAll('#table-runs .sort')[2].click()"
    page.run(click)
    rising = [float(text) for text in first_cells(page)]
    assert rising == sorted(rising)
    page.run(click)
    assert [float(text) for text in first_cells(page)] == rising[::-1]
    assert page.run("document.querySelectorAll('#table-runs [aria-sort]').length") == 1

    # light and dark, figures with them
    before = page.run("[document.documentElement.dataset.theme, plots[0].layout.font.color]")
    page.run("document.getElementById('theme').click()")
    page.run("Promise.all(plots.map(draw))")
    after = page.run("[document.documentElement.dataset.theme, plots[0].layout.font.color]")
    assert {before[0], after[0]} == {"light", "dark"}
    assert before[1] != after[1]

    # a phone: nothing but the tables scrolls sideways
    page.send(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=800,
        deviceScaleFactor=1,
        mobile=True,
    )
    page.run("new Promise(done => setTimeout(done, 500))")  # figures follow the window
    assert page.run("root.scrollWidth") <= 360

    # the CSV is in the link
    csv = page.run("decodeURIComponent(document.querySelector('[download=\"runs.csv\"]').href)")
    assert "arm,seed,status,run,val/loss" in csv.splitlines()[0]
    assert csv.count("\n") == 1 + 6
    assert not page.reported("Runtime.exceptionThrown")
