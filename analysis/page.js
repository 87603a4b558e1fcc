"use strict";
// An embedded page may be sandboxed without downloads or anchors: leave out what would do nothing there.
const framed = window.self !== window.top;
if (framed) document.body.classList.add("framed");
const A4_CONTENT_PIXELS = 700;
const plots = [...document.querySelectorAll(".plot")];
const config = {
  responsive: true,
  displaylogo: false,
  showSendToCloud: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", ...(framed ? ["toImage"] : [])],
};

for (const plot of plots) {
  const { data, layout } = JSON.parse(document.getElementById(plot.dataset.source).textContent);
  Plotly.newPlot(plot, data, layout, config);
}

window.addEventListener("beforeprint", () => {
  for (const plot of plots) Plotly.relayout(plot, { width: A4_CONTENT_PIXELS });
});
window.addEventListener("afterprint", () => {
  for (const plot of plots) Plotly.relayout(plot, { width: null, autosize: true });
});

// `data-v` holds a number's full value; a cell without one sorts by its text.
function keyOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
}

// Numbers before words whichever way is up, so that a trial without a score stays at the end.
function compare(a, b, sign) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
}

function sortBy(table, heading) {
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const [column, sign] = [heading.cellIndex, descending ? -1 : 1];
  body.append(...[...body.rows].sort((a, b) => compare(keyOf(a, column), keyOf(b, column), sign)));
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(table, heading));
    heading.append(button);
  }
}
