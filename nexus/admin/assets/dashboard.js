// Updates the page with parts that the server renders, draws the charts, filters the requests.
/* global uPlot: the chart library, loaded before this module */

const HISTORY_S = 300, MAX_ROWS = 100, MAX_WAITING = 60, TYPING_MS = 250, FETCH_EVERY_MS = 2000;
const element = (id) => document.getElementById(id);
const charts = new Map();
const page = document.body.dataset;
let series = { time: [] }, lastTime = Number(page.time), lastTickAt = performance.now() - 1000 * Number(page.age);
let typing = 0, fetchedAt = 0, waiting = [];

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function replace(id, html) {
  const target = element(id);
  if (target.dataset.html !== undefined && target.lastHtml === html) return;
  target.dataset.html = "";
  target.lastHtml = html;
  target.innerHTML = html;
}

// Tiles keep their elements, because the charts live in them: only their texts change.
function showTiles(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  for (const fresh of template.content.querySelectorAll(".tile")) {
    const shown = document.querySelector(`[data-tile="${fresh.dataset.tile}"]`);
    if (!shown) element("tiles").append(fresh);
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
      scales: { x: { time: true, range: (_, low, high) => [high - HISTORY_S, high] }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(high ?? 0, 0.001) * 1.1] } },
      series: [{}, { stroke: color("--accent"), fill: color("--accent-faint"), width: 1.5, points: { show: false } }],
    }, data, holder));
  }
}

function forgetCharts() {
  for (const chart of charts.values()) chart.destroy();
  charts.clear();
  drawCharts();
}

// New rows may be older than rows that are shown, for example after a reconnect to another worker.
// Clients may reuse an id, so the key has the time too. Rows do not move while somebody reads them.
function addRequests(html) {
  if (html) waiting.push(html);
  if (waiting.length > MAX_WAITING) waiting.shift();
  const list = element("requests");
  const held = list.querySelector(":focus-visible") || (matchMedia("(hover: hover)").matches && list.matches(":hover"));
  element("held").textContent = held && waiting.length ? "Newer ones wait while you read." : "";
  if (!held) for (const one of waiting.splice(0)) mergeRequests(list, one);
}

function mergeRequests(list, html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  const key = (row) => `${row.dataset.id} ${row.dataset.ended}`;
  const known = new Set([...list.children].map(key));
  let at = list.firstElementChild;
  for (const row of [...template.content.children]) {
    if (known.has(key(row))) continue;
    while (at && Number(at.dataset.ended) >= Number(row.dataset.ended)) at = at.nextElementSibling;
    list.insertBefore(row, at);
  }
  filterRequests();
  for (const hidden of [false, true]) {
    const rows = [...list.children].filter((row) => row.hidden === hidden);
    for (const row of rows.slice(MAX_ROWS)) if (!row.open) row.remove();
  }
}

function filterQuery() {
  const fields = [...new FormData(element("filter"))].map(([name, value]) => [name, value.trim()]);
  return new URLSearchParams(fields.filter(([, value]) => value)).toString();
}

// Filters the rows of the page at once; fetchRequests gets more from the server.
function filterRequests() {
  const { status, model, backend } = Object.fromEntries(new FormData(element("filter")));
  const has = (value, part) => value.toLowerCase().includes(part.trim().toLowerCase());
  let shown = 0;
  for (const row of element("requests").children) {
    const its = row.dataset;
    row.hidden = !((!status || its.status === status)
      && (has(its.model, model) || has(its.asked, model)) && has(its.backend, backend));
    shown += !row.hidden;
  }
  element("no-requests").hidden = shown > 0;
}

async function fetchRequests() {
  const query = filterQuery();
  fetchedAt = performance.now();
  const response = await fetch(`./?${query}`).catch(() => null);
  if (!response?.ok || query !== filterQuery()) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const rows = page.getElementById("requests");
  if (rows && query === filterQuery()) addRequests(rows.innerHTML);
}

function filterChanged() {
  filterRequests();
  clearTimeout(typing);
  typing = setTimeout(fetchRequests, TYPING_MS);
}

function showConnection(text) {
  if (element("connection").textContent !== text) element("connection").textContent = text;
}

function tick(state) {
  if (state.time === lastTime) return;
  lastTime = state.time;
  lastTickAt = performance.now();
  showConnection("");
  for (const [key, html] of Object.entries(state.parts)) if (key !== "tiles") replace(key, html);
  showTiles(state.parts.tiles);
  if (series.time.at(-1) !== state.time) {
    for (const [key, value] of Object.entries({ time: state.time, ...state.now })) (series[key] ??= []).push(value);
    while (series.time[0] < state.time - HISTORY_S) for (const values of Object.values(series)) values.shift();
  }
  drawCharts();
  addRequests(state.rows);
  if (state.rows && filterQuery() && performance.now() - fetchedAt > FETCH_EVERY_MS) fetchRequests();
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

// Set once and not every second, because screen readers read it aloud.
setInterval(() => {
  const late = performance.now() - lastTickAt;
  if (late > 1000 * Number(page.late) && !element("connection").textContent) {
    showConnection("No news for some seconds: what is shown may be out of date. Do the gateway and its health process run?");
  }
}, 1000);
element("filter").addEventListener("input", filterChanged);
element("filter").addEventListener("submit", (event) => event.preventDefault());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", forgetCharts);
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) width = innerWidth, forgetCharts(); });
filterRequests();
listen();
