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

// Figures along one axis: the guide stands at the stop nearest to the pointer, and the card has its numbers.
function follow(figure, event) {
  const box = event.currentTarget.getBoundingClientRect();
  const pointed = (100 * (event.clientX - box.left)) / box.width;
  const away = (stop) => Math.abs(stop.dataset.at - pointed);
  const stops = [...figure.querySelectorAll(".card [data-at]")];
  const chosen = stops.reduce((best, other) => (away(other) < away(best) ? other : best));
  const place = `${chosen.dataset.at}%`;
  for (const words of figure.querySelector(".card").children) words.hidden = words !== chosen;
  for (const guide of figure.querySelectorAll(".guide")) {
    guide.removeAttribute("hidden");
    for (const end of ["x1", "x2"]) guide.setAttribute(end, place);
  }
  for (const dot of figure.querySelectorAll("circle")) dot.classList.toggle("chosen", dot.getAttribute("cx") === place);
}

for (const figure of document.querySelectorAll(".along")) {
  for (const svg of figure.querySelectorAll("svg[role=img]")) {
    for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, (event) => follow(figure, event));
  }
}

// Pair by pair: one scatter is shown, and the pair nearest to the pointer is written below it.
const REACH = 24; // Pixels.
const texts = JSON.parse(document.getElementById("texts")?.textContent ?? "{}");
const scatters = [...document.querySelectorAll("div.scatter")];

function choose() {
  const [task, run] = ["task", "run"].map((id) => document.getElementById(id).value);
  for (const scatter of scatters) scatter.hidden = scatter.dataset.task !== task || scatter.dataset.run !== run;
}

function nearest(svg, event) {
  const box = svg.getBoundingClientRect();
  const away = (circle) =>
    Math.hypot(
      box.left + (parseFloat(circle.getAttribute("cx")) / 100) * box.width - event.clientX,
      box.top + (parseFloat(circle.getAttribute("cy")) / 100) * box.height - event.clientY,
    );
  const found = [...svg.querySelectorAll("circle")].map((circle) => [away(circle), circle]);
  const [distance, circle] = found.reduce((best, other) => (other[0] < best[0] ? other : best));
  return distance < REACH ? circle : null;
}

function show(scatter, circle) {
  for (const old of scatter.querySelectorAll(".chosen")) old.classList.remove("chosen");
  if (!circle) return;
  const pair = circle.dataset.pair;
  for (const part of scatter.querySelectorAll(`[data-pair="${pair}"]`)) part.classList.add("chosen");
  const card = scatter.querySelector(".card");
  const paragraphs = [...(texts[scatter.dataset.task][pair] || []), circle.dataset.words].map((text) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = text;
    return paragraph;
  });
  paragraphs.at(-1).className = "hint";
  card.replaceChildren(...paragraphs);
}

for (const scatter of scatters) {
  const svg = scatter.querySelector("svg[role=img]");
  for (const kind of ["pointermove", "pointerdown"]) {
    svg.addEventListener(kind, (event) => show(scatter, nearest(svg, event)));
  }
  for (const item of scatter.querySelectorAll("li[data-pair]")) {
    const circle = svg.querySelector(`circle[data-pair="${item.dataset.pair}"]`);
    item.addEventListener("pointerenter", () => show(scatter, circle));
  }
}
for (const select of document.querySelectorAll(".choices select")) select.addEventListener("change", choose);
if (scatters.length) choose();
