const root = document.documentElement;
const plots = [...document.querySelectorAll(".plot")];

// A page opened from a disk may be forbidden to remember: then it follows the system.
function remembered(theme) {
  try {
    if (theme) localStorage.setItem("muonlab-theme", theme);
    return localStorage.getItem("muonlab-theme");
  } catch {
    return null;
  }
}

const preferred = () =>
  remembered() ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

function setTheme(theme) {
  root.dataset.theme = theme;
  for (const plot of plots) if (plot.data) draw(plot);
}

async function unpacked(id) {
  const packed = atob(document.getElementById(id).textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// plotly.js and the figures' values lie packed in the page until the first figure is asked for.
let unpacking;
async function unpack() {
  const script = document.createElement("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);
  return JSON.parse(await unpacked("figures"));
}

const options = {
  responsive: true, displaylogo: false, displayModeBar: true,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};

// Draws an interactive figure in place of its picture, in the colours of the page.
async function draw(plot) {
  const figures = await (unpacking ??= unpack());
  const style = getComputedStyle(root);
  const text = JSON.stringify(figures[plot.dataset.figure])
    .replace(/var\((--\w+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  const {data, layout} = JSON.parse(text);
  layout.font.family = getComputedStyle(document.body).fontFamily;
  layout.modebar = {bgcolor: "rgba(0,0,0,0)", color: style.getPropertyValue("--soft").trim()};
  if (!plot.data) plot.replaceChildren();
  await Plotly.react(plot, data, layout, options);
}

setTheme(preferred());

for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => {
    draw(button.closest("figure").querySelector(".plot"));
    button.remove();
  });
}

document.getElementById("theme").addEventListener("click", () => {
  const other = root.dataset.theme === "dark" ? "light" : "dark";
  remembered(other);
  setTheme(other);
});

// On paper: light.
let themeOnScreen;
addEventListener("beforeprint", () => {
  themeOnScreen = root.dataset.theme;
  setTheme("light");
});
addEventListener("afterprint", () => setTheme(themeOnScreen));

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
