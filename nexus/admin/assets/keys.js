// Sends changes of keys as JSON. The token stays in its field, in the memory of this page only.

const FIELDS = ["name", "team", "expires"], LISTS = ["models", "endpoints"], LIMITS = ["requests", "tokens", "parallel"];
const element = (id) => document.getElementById(id);
const value = (id) => element(id).value.trim();
let edited = null;

class Refused extends Error {}

async function send(path, options = {}) {
  if (!value("token")) throw new Refused("Enter the operators' token first.");
  const headers = { authorization: `Bearer ${value("token")}`, "content-type": "application/json" };
  const response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Refused(error?.message ?? `The gateway responded ${response.status}.`);
}

async function change(method, path, body) {
  return (await send(path, { method, body: JSON.stringify(body) })).json();
}

async function refresh() {
  const page = new DOMParser().parseFromString(await (await send("keys")).text(), "text/html");
  element("listed").replaceWith(page.getElementById("listed"));
  showActions();
}

function showActions() {
  for (const actions of document.querySelectorAll(".actions")) actions.hidden = false;
}

// The fields as the endpoints take them. Models and endpoints of a key that is edited stay as they
// are if their field is empty; * stands for all.
function fields() {
  const body = {};
  for (const name of FIELDS) if (edited || value(name)) body[name] = value(name) || null;
  for (const name of LISTS) {
    const names = value(name).split(/[\s,]+/).filter(Boolean);
    if (names.length) body[name] = names.includes("*") ? null : names;
    if (!edited && body[name] === null) delete body[name];
  }
  const limits = {};
  for (const name of LIMITS) {
    const text = value(name), number = name === "parallel" && /^\d+$/.test(text) ? Number(text) : text;
    if (text) limits[name] = number;
    else if (edited?.dataset[name]) limits[name] = null;
  }
  return Object.keys(limits).length ? { ...body, limits } : body;
}

function edit(row) {
  edited = row;
  for (const name of [...FIELDS, ...LIMITS]) element(name).value = row?.dataset[name] ?? "";
  for (const name of LISTS) {
    element(name).value = "";
    element(name).placeholder = row ? "unchanged; * for all" : "all";
  }
  element("changes-title").textContent = row ? `Change the key ${row.dataset.id}` : "Make or change a key";
  element("make").hidden = Boolean(row);
  element("save").hidden = element("cancel").hidden = !row;
  if (row) element("name").focus();
}

function showSecret({ key }) {
  const base = `${location.protocol}//${location.hostname}:${document.body.dataset.port}`;
  element("key").textContent = key;
  element("lines").textContent = [
    "# Clients of OpenAI's API",
    `export OPENAI_BASE_URL=${base}/v1`,
    `export OPENAI_API_KEY=${key}`,
    "# Claude Code and clients of Anthropic's API",
    `export ANTHROPIC_BASE_URL=${base}`,
    `export ANTHROPIC_AUTH_TOKEN=${key}`,
    "# Codex, with OPENAI_API_KEY as above, in ~/.codex/config.toml",
    'model_provider = "nexus"',
    "[model_providers.nexus]",
    'name = "Nexus"',
    `base_url = "${base}/v1"`,
    'env_key = "OPENAI_API_KEY"',
    'wire_api = "responses"',
    "supports_websockets = false",
  ].join("\n");
  element("secret").hidden = false;
}

function hideSecret() {
  element("key").textContent = element("lines").textContent = "";
  element("secret").hidden = true;
}

async function run(work) {
  try {
    element("message").className = "";
    element("message").textContent = await work();
    await refresh();
  } catch (error) {
    element("message").className = "error";
    element("message").textContent = error instanceof Refused ? error.message : "The gateway does not respond.";
  }
}

const CHANGES = {
  async rotate(path, id) {
    const made = await change("POST", `${path}/rotate`, { grace_seconds: Number(value("grace")) });
    showSecret(made);
    return `The key ${id} was rotated.`;
  },
  async block(path, id) {
    await change("PATCH", path, { blocked: true });
    return `The key ${id} is blocked.`;
  },
  async end(path, id) {
    await change("PATCH", path, { blocked: "now" });
    return `The key ${id} is blocked, and its requests end.`;
  },
  async unblock(path, id) {
    await change("PATCH", path, { blocked: false });
    return `The key ${id} is accepted again.`;
  },
};

document.addEventListener("click", ({ target }) => {
  const name = target.dataset?.change, row = target.closest?.("tr");
  if (name === "edit") edit(row);
  else if (name) run(() => CHANGES[name](`admin/keys/${encodeURIComponent(row.dataset.id)}`, row.dataset.id));
});
element("make").addEventListener("click", () => run(async () => {
  const made = await change("POST", "admin/keys", fields());
  showSecret(made);
  edit(null);
  return `The key ${made.id} was made.`;
}));
element("save").addEventListener("click", () => run(async () => {
  const { id } = edited.dataset;
  await change("PATCH", `admin/keys/${encodeURIComponent(id)}`, fields());
  edit(null);
  return `The key ${id} was changed.`;
}));
element("cancel").addEventListener("click", () => edit(null));
element("done").addEventListener("click", hideSecret);
element("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(element("key").textContent);
    element("message").textContent = "The key is in the clipboard.";
  } catch {
    getSelection().selectAllChildren(element("key"));
    element("message").textContent = "The key is selected; copy it.";
  }
});
addEventListener("pagehide", () => {
  hideSecret();
  element("token").value = "";
});
element("changes").hidden = false;
showActions();
