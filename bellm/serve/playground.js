"use strict";

const MOST = 40; // Sentences that a map shows.
const CAUSAL = ":causal";
const $ = (id) => document.getElementById(id);

function make(name, content = "", attributes = {}) {
  const space = ["svg", "rect", "text", "title", "g"].includes(name) ? "http://www.w3.org/2000/svg" : null;
  const element = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (content) element.textContent = content;
  return element;
}

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const request = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  const response = await fetch(path, request);
  const answer = await response.json();
  if (response.ok) return answer;
  if (response.status === 401) $("key-label").hidden = false;
  throw new Error(answer.error?.message ?? answer.error ?? response.statusText);
}

function cosines(vectors) {
  const lengths = vectors.map((vector) => Math.hypot(...vector) || 1);
  const dot = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
  return vectors.map((a, row) => vectors.map((b, column) => dot(a, b) / lengths[row] / lengths[column]));
}

// Cells are shaded between the least and the largest cosine of two different sentences.
function heatMap(title, values) {
  const count = values.length;
  const others = values.flatMap((row, at) => row.filter((_, column) => column !== at));
  const least = Math.min(...others, 1);
  const span = Math.max(...others, least + 1e-6) - least;
  const svg = make("svg", "", { viewBox: `0 0 ${count * 40 + 24} ${count * 40 + 24}`, role: "img", "aria-label": title });
  values.forEach((row, y) => {
    svg.append(make("text", String(y + 1), { x: 14, y: y * 40 + 49, class: "name" }));
    svg.append(make("text", String(y + 1), { x: y * 40 + 44, y: 16, class: "name" }));
    row.forEach((value, x) => {
      const share = x === y ? 0 : Math.min(1, Math.max(0, (value - least) / span));
      const cell = make("g", "", { class: x === y ? "same" : "cell" });
      const place = { x: x * 40 + 25, y: y * 40 + 25, width: 38, height: 38, "fill-opacity": 0.06 + 0.84 * share };
      cell.append(make("rect", "", place), make("title", `${y + 1} and ${x + 1}: ${value.toFixed(4)}`));
      const ink = { x: x * 40 + 44, y: y * 40 + 49, class: share > 0.6 ? "light" : "dark" };
      cell.append(make("text", String(Math.round(100 * value)), ink));
      svg.append(cell);
    });
  });
  const figure = make("figure");
  figure.append(make("figcaption", title), svg);
  return figure;
}

function pairList(title, values, texts) {
  const pairs = values.flatMap((row, a) => row.slice(a + 1).map((value, at) => [value, a, a + 1 + at]));
  const list = make("ol");
  for (const [value, a, b] of pairs.sort((one, other) => other[0] - one[0]).slice(0, 5)) {
    const item = make("li");
    item.append(make("strong", value.toFixed(3)), make("span", texts[a]), make("span", texts[b]));
    list.append(item);
  }
  const part = make("section");
  part.append(make("h3", title), list);
  return part;
}

async function compare() {
  const texts = $("sentences").value.split("\n").map((line) => line.trim()).filter(Boolean).slice(0, MOST);
  if (texts.length < 2) throw new Error("Write at least two sentences, each on a line.");
  const name = $("model").value;
  const plain = [...$("model").options].some((option) => option.value === name + CAUSAL);
  const found = [];
  for (const model of plain ? [name, name + CAUSAL] : [name]) {
    const answer = await ask("v1/embeddings", { model, input: texts });
    found.push([model.endsWith(CAUSAL) ? "causal" : plain ? "opened" : model, cosines(answer.data.map((each) => each.embedding))]);
  }
  $("maps").replaceChildren(...found.map(([title, values]) => heatMap(title, values)));
  $("pairs").replaceChildren(...found.map(([title, values]) => pairList(title, values, texts)));
  $("result").hidden = false;
}

async function search() {
  const answer = await ask("search", { query: $("query").value });
  $("hits").replaceChildren(
    ...answer.hits.map((hit) => {
      const item = make("li");
      item.append(make("strong", hit.score.toFixed(3)), make("span", hit.text ?? hit.id ?? `row ${hit.row}`));
      return item;
    }),
  );
}

async function begin() {
  const info = await ask("info");
  $("model").replaceChildren(...Object.keys(info.models).map((name) => make("option", name, { value: name })));
  $("search-part").hidden = !info.has_index;
}

async function run(task) {
  $("message").textContent = "…";
  try {
    if (!$("model").options.length) await begin();
    await task();
    $("message").textContent = "";
  } catch (error) {
    $("message").textContent = error.message;
  }
}

for (const [form, task] of [["compare", compare], ["search", search]]) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    run(task);
  });
}
run(begin);
