"""How the pages look in a browser: nothing cut, nothing on top of another, text legible."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from muonlab.report import write_comparison
from muonlab.report.study import write_study

from .browser import CHROMIUM, Page, browser
from .conftest import WriteRun
from .invented_studies import invented_study, make_runs

ROOT = Path(__file__).parents[2]
MKDOCS = shutil.which("mkdocs")
LEAST_CONTRAST = 4.5  # WCAG 2.2, AA
SCROLLING = ".scrolls, .formula, .md-typeset__scrollwrap, pre"  # wider than a phone
PROBLEMS = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).slice(0, 3)
      .map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  const found = [];
  const texts = [...document.querySelectorAll("body *")]
    .filter((e) => !e.closest("nav, header, .headerlink")).filter((e) =>
    !["SCRIPT", "STYLE"].includes(e.tagName) && e.getClientRects().length
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  for (const e of texts) {
    const name = `${e.tagName} "${e.textContent.trim().slice(0, 40)}"`;
    const box = e.getBoundingClientRect();
    if (!e.closest(SCROLLING) && (box.left < -1 || box.right > innerWidth + 1))
      found.push(`cut: ${name}`);
    const style = getComputedStyle(e);
    const [a, b] = [light(e.closest("svg") ? style.fill : style.color), light(ground(e))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < LEAST) found.push(`contrast ${contrast.toFixed(2)}: ${name}`);
  }
  for (const svg of document.querySelectorAll(".plot > svg")) {
    const edge = svg.getBoundingClientRect();
    const inside = [...svg.querySelectorAll("text")];
    inside.forEach((one, i) => {
      const box = one.getBoundingClientRect();
      if (box.left < edge.left - 2 || box.right > edge.right + 2)
        found.push(`cut in a figure: ${one.textContent}`);
      for (const other of inside.slice(i + 1))
        if (meet(box, other.getBoundingClientRect()))
          found.push(`overlap: ${one.textContent} and ${other.textContent}`);
    });
  }
  for (const parent of [document.body, ...document.querySelectorAll("section, .verdict, figure")]) {
    const boxes = [...parent.children].filter((e) => e.getClientRects().length
      && getComputedStyle(e).position === "static");
    boxes.forEach((one, i) => boxes.slice(i + 1).forEach((other) => {
      if (meet(one.getBoundingClientRect(), other.getBoundingClientRect()))
        found.push(`overlap: ${one.tagName} and ${other.tagName}`);
    }));
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push("the page scrolls sideways");
  return found;
})()""".replace("LEAST", str(LEAST_CONTRAST)).replace("SCROLLING", repr(SCROLLING))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_pages_are_legible_on_a_desk_and_on_a_phone(write_run: WriteRun, tmp_path: Path) -> None:
    pair = [write_run("adamw", floor=4.05), write_run("muon", floor=3.9)]
    samples = {"muon": [("The state of the Union is", " strong" * 40)]}
    study = invented_study()
    make_runs(study, tmp_path / "studies")
    pages = {
        "demo": write_comparison(
            pair, tmp_path / "demo", title="Two", introduction="Words.", samples=samples
        ),
        "one run": write_comparison(pair[:1], tmp_path / "one", introduction="", samples={}),
        "study": write_study(study, tmp_path / "studies", tmp_path / "study"),
    }
    for name, path in pages.items():
        assert path.stat().st_size < 1e6, f"{name} weighs more than 1 MB"
    themes = {theme: f"setTheme('{theme}')" for theme in ("light", "dark")}
    with browser(tmp_path / "profile") as page:
        assert not list(problems(page, pages, themes))


@pytest.mark.slow
@pytest.mark.skipif(MKDOCS is None, reason="the extra docs is not installed")
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_site_is_legible_on_a_desk_and_on_a_phone(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [str(MKDOCS), "build", "--strict", "--quiet", "--site-dir", str(site)]
    subprocess.run(command, cwd=ROOT, check=True)
    names = ("index", "tutorial", "theory", "results/p1-compute.small/report")
    pages = {name: site / f"{name}.html" for name in names}
    assert "<math" in pages["theory"].read_text(encoding="utf-8")
    switch = (  # colours of links change over a moment
        "new Promise((done) => { document.body.dataset.mdColorScheme = 'SCHEME';"
        " setTimeout(done, 500); })"
    )
    themes = {
        "light": switch.replace("SCHEME", "default"),
        "dark": switch.replace("SCHEME", "slate"),
    }
    with browser(tmp_path / "profile") as page:
        assert not list(problems(page, pages, themes))


def problems(page: Page, pages: Mapping[str, Path], themes: Mapping[str, str]) -> Iterator[str]:
    """What is wrong on each page, on a desk and on a phone, in each theme that a script sets."""
    for name, path in pages.items():
        for width in (1280, 390):
            page.send(
                "Emulation.setDeviceMetricsOverride",
                width=width, height=900, deviceScaleFactor=1, mobile=width < 500,
            )  # fmt: skip
            page.events.clear()
            page.open(path)
            for theme, script in themes.items():
                page.run(script)
                yield from (f"{name}, {width}, {theme}: {line}" for line in page.run(PROBLEMS))
