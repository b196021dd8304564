"use strict";

// A click on a heading sorts, largest first unless the heading says otherwise; another click turns the order round.
function sortBy(table, heading) {
  const first = heading.dataset.first ?? "descending";
  const turned = first === "ascending" ? "descending" : "ascending";
  const order = heading.ariaSort === first ? turned : first;
  const value = (row) => Number(row.cells[heading.cellIndex].dataset.value);
  const direction = order === "ascending" ? 1 : -1;
  for (const other of table.tHead.rows[0].cells) other.ariaSort = "none";
  heading.ariaSort = order;
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => direction * (value(a) - value(b))));
}

for (const table of document.querySelectorAll("table.scores")) {
  for (const heading of table.tHead.rows[0].cells) {
    heading.firstElementChild.addEventListener("click", () => sortBy(table, heading));
  }
}
