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
