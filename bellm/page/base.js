"use strict";

// A click on a heading sorts, largest first unless the heading says otherwise; another click turns the order round.
const table = document.querySelector("table.scores");
const headings = [...table.tHead.rows[0].cells];

function sortBy(column) {
  const heading = headings[column];
  const first = heading.dataset.first ?? "descending";
  const turned = first === "ascending" ? "descending" : "ascending";
  const order = heading.ariaSort === first ? turned : first;
  const value = (row) => Number(row.cells[column].dataset.value);
  const direction = order === "ascending" ? 1 : -1;
  for (const other of headings) other.ariaSort = "none";
  heading.ariaSort = order;
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => direction * (value(a) - value(b))));
}
headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => sortBy(column)));
