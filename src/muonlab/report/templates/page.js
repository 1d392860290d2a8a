const root = document.documentElement;
const plots = [...document.querySelectorAll(".plot")];

function colours() {
  const style = getComputedStyle(root);
  const text = style.getPropertyValue("--text").trim();
  const line = style.getPropertyValue("--line").trim();
  const clear = "rgba(0,0,0,0)";
  const changes = {
    paper_bgcolor: clear, plot_bgcolor: clear, "font.color": text,
    "modebar.bgcolor": clear, "modebar.color": line, "modebar.activecolor": text,
  };
  for (const axis of ["xaxis", "yaxis"]) {
    changes[`${axis}.gridcolor`] = line;
    changes[`${axis}.linecolor`] = line;
    changes[`${axis}.zeroline`] = false;
  }
  return changes;
}

function setTheme(theme, size = {}) {
  root.dataset.theme = theme;
  const changes = {...colours(), ...size};
  for (const plot of plots) if (plot.data) Plotly.relayout(plot, changes);
}

const preferred = () =>
  matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";

const options = {
  responsive: true, displaylogo: false, displayModeBar: "hover",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};
setTheme(preferred());

// The plotting script is compiled for the first figure, after the text and the tables are there.
function compilePlotly() {
  if (window.Plotly) return;
  const script = document.createElement("script");
  script.textContent = document.getElementById("plotly").textContent;
  document.head.append(script);
}

function draw(plot) {
  if (plot.data) return;
  compilePlotly();
  const figure = JSON.parse(document.getElementById(`data-${plot.dataset.figure}`).textContent);
  plot.style.minHeight = "";
  figure.layout.font = {family: getComputedStyle(document.body).fontFamily, size: 13};
  Plotly.newPlot(plot, figure.data, figure.layout, options);
  Plotly.relayout(plot, colours());
}

// A figure is drawn when it comes near the screen: a page of many opens at once.
const watcher = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach(({target}) => draw(target)),
  {rootMargin: "600px"},
);
for (const plot of plots) watcher.observe(plot);

document.getElementById("theme").addEventListener("click", () =>
  setTheme(root.dataset.theme === "dark" ? "light" : "dark"));

// On paper: light, and as wide as a page that no resize event announces.
let themeOnScreen;
addEventListener("beforeprint", () => {
  plots.forEach(draw);
  themeOnScreen = root.dataset.theme;
  setTheme("light", {width: 690});
});
addEventListener("afterprint", () => setTheme(themeOnScreen, {width: null, autosize: true}));

// A click on a heading sorts by it, a second click turns the order; empty cells stay last.
for (const button of document.querySelectorAll(".sort")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const rising = heading.ariaSort !== "ascending";
    for (const other of heading.parentElement.children) other.ariaSort = null;
    heading.ariaSort = rising ? "ascending" : "descending";
    const body = heading.closest("table").tBodies[0];
    const value = (row) => row.cells[heading.cellIndex].dataset.sort;
    const rows = [...body.rows].sort((first, second) => {
      const [a, b] = [value(first), value(second)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return rising ? order : -order;
    });
    body.append(...rows);
  });
}
