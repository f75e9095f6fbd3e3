// Keeps the page fresh: the server makes its parts, this puts them in place, draws the charts and filters the requests.
/* global uPlot: the chart library, loaded before this module */

const KEPT_S = 300, SHOWN = 100, MOST_WAITING = 60, TYPING_MS = 250, ASKED_EVERY_MS = 2000;
const place = (id) => document.getElementById(id);
const charts = new Map();
const came = document.body.dataset;
let series = { time: [] }, lastTime = Number(came.time), lastNews = performance.now() - 1000 * Number(came.age);
let typing = 0, asked = 0, waiting = [];

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function replace(id, html) {
  const target = place(id);
  if (target.dataset.html !== undefined && target.lastHtml === html) return;
  target.dataset.html = "";
  target.lastHtml = html;
  target.innerHTML = html;
}

// Tiles keep their elements, because the charts live in them: only their texts change.
function showTiles(html) {
  const made = document.createElement("template");
  made.innerHTML = html;
  for (const fresh of made.content.querySelectorAll(".tile")) {
    const shown = document.querySelector(`[data-tile="${fresh.dataset.tile}"]`);
    if (!shown) place("tiles").append(fresh);
    else for (const part of [".value", ".peak"]) shown.querySelector(part).replaceChildren(...fresh.querySelector(part).childNodes);
  }
}

function drawCharts() {
  for (const tile of document.querySelectorAll(".tile")) {
    const key = tile.dataset.tile;
    if (!series[key]) continue;
    const data = [series.time, series[key]];
    if (charts.has(key)) {
      charts.get(key).setData(data);
      continue;
    }
    const holder = tile.querySelector(".chart");
    holder.replaceChildren();
    charts.set(key, new uPlot({
      width: Math.max(60, holder.clientWidth), height: holder.clientHeight || 44, padding: [3, 0, 1, 0],
      cursor: { show: false }, legend: { show: false }, axes: [{ show: false }, { show: false }],
      scales: { x: { time: true, range: (_, low, high) => [high - KEPT_S, high] }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(high ?? 0, 0.001) * 1.1] } },
      series: [{}, { stroke: color("--accent"), fill: color("--accent-faint"), width: 1.5, points: { show: false } }],
    }, data, holder));
  }
}

function forgetCharts() {
  for (const chart of charts.values()) chart.destroy();
  charts.clear();
  drawCharts();
}

// Rows come newest first, but not always after all that are shown: a page that was opened long ago, or comes back to
// another worker, is given older ones too. A client may send one id with many requests: the moment belongs to the key.
//
// While somebody points at a row, or goes through the rows with the keyboard, they stay where they are.
function addRequests(html) {
  if (html) waiting.push(html);
  if (waiting.length > MOST_WAITING) waiting.shift();
  const list = place("requests");
  const held = list.querySelector(":focus-visible") || (matchMedia("(hover: hover)").matches && list.matches(":hover"));
  place("held").textContent = held && waiting.length ? "Newer ones wait while you read." : "";
  if (!held) for (const one of waiting.splice(0)) mergeRequests(list, one);
}

function mergeRequests(list, html) {
  const made = document.createElement("template");
  made.innerHTML = html;
  const key = (row) => `${row.dataset.id} ${row.dataset.ended}`;
  const known = new Set([...list.children].map(key));
  let at = list.firstElementChild;
  for (const row of [...made.content.children]) {
    if (known.has(key(row))) continue;
    while (at && Number(at.dataset.ended) >= Number(row.dataset.ended)) at = at.nextElementSibling;
    list.insertBefore(row, at);
  }
  filterRequests();
  for (const hidden of [false, true]) {
    const rows = [...list.children].filter((row) => row.hidden === hidden);
    for (const row of rows.slice(SHOWN)) if (!row.open) row.remove();
  }
}

function wanted() {
  const fields = [...new FormData(place("filter"))].map(([name, value]) => [name, value.trim()]);
  return new URLSearchParams(fields.filter(([, value]) => value)).toString();
}

// At once of what is here; the server, which remembers more than is shown, is asked for the rest.
function filterRequests() {
  const { status, model, backend } = Object.fromEntries(new FormData(place("filter")));
  const has = (value, part) => value.toLowerCase().includes(part.trim().toLowerCase());
  let shown = 0;
  for (const row of place("requests").children) {
    const its = row.dataset;
    row.hidden = !((!status || its.status === status)
      && (has(its.model, model) || has(its.asked, model)) && has(its.backend, backend));
    shown += !row.hidden;
  }
  place("no-requests").hidden = shown > 0;
}

async function askForRequests() {
  const query = wanted();
  asked = performance.now();
  const answer = await fetch(`./?${query}`).catch(() => null);
  if (!answer?.ok || query !== wanted()) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const rows = page.getElementById("requests");
  if (rows && query === wanted()) addRequests(rows.innerHTML);
}

function filterChanged() {
  filterRequests();
  clearTimeout(typing);
  typing = setTimeout(askForRequests, TYPING_MS);
}

function say(text) {
  if (place("connection").textContent !== text) place("connection").textContent = text;
}

function tick(state) {
  if (state.time === lastTime) return;
  lastTime = state.time;
  lastNews = performance.now();
  say("");
  for (const [key, html] of Object.entries(state.parts)) if (key !== "tiles") replace(key, html);
  showTiles(state.parts.tiles);
  if (series.time.at(-1) !== state.time) {
    for (const [key, value] of Object.entries({ time: state.time, ...state.now })) (series[key] ??= []).push(value);
    while (series.time[0] < state.time - KEPT_S) for (const values of Object.values(series)) values.shift();
  }
  drawCharts();
  addRequests(state.rows);
  if (state.rows && wanted() && performance.now() - asked > ASKED_EVERY_MS) askForRequests();
}

function listen() {
  const source = new EventSource("v1/live");
  source.addEventListener("history", (event) => {
    const history = JSON.parse(event.data);
    series = history.series;
    drawCharts();
    addRequests(history.rows);
  });
  source.addEventListener("tick", (event) => tick(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 1000);
  });
}

// Told once, and not anew each second: it is read aloud to whoever listens.
setInterval(() => {
  const late = performance.now() - lastNews;
  if (late > 1000 * Number(came.late) && !place("connection").textContent) {
    say("No news for some seconds: what is shown may be out of date. Do the gateway and its health process run?");
  }
}, 1000);
place("filter").addEventListener("input", filterChanged);
place("filter").addEventListener("submit", (event) => event.preventDefault());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", forgetCharts);
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) width = innerWidth, forgetCharts(); });
filterRequests();
listen();
