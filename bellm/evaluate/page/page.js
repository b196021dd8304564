// Pair by pair: one scatter is shown, and the pair nearest to the pointer is written below it.
const REACH = 24; // Pixels.
const texts = JSON.parse(document.getElementById("texts").textContent);
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
