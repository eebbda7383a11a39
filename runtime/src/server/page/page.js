// The page at `/`: asks this server how it is from time to time, and lets people try its models. Everything is kept in
// this tab's memory, the key too, and goes away with it. Nothing but this server is asked.

const POLL_MS = 2000;
/** Models and version are asked for every so many times. */
const SELDOM = 5;
/** Samples that are kept: five minutes. */
const MOST_SAMPLES = 150;
/** Samples over which times are taken: half a minute. */
const WINDOW = 15;

const at = (id) => document.getElementById(id);
let key = "";

/** A new element with attributes and children; texts become texts, never markup. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  element.append(...children);
  return element;
}

function drawn(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  element.textContent = text;
  return element;
}

function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  return fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
}

// Numbers as people read them.

function bytes(n) {
  if (!Number.isFinite(n)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1000 && unit + 1 < units.length) {
    n /= 1024;
    unit += 1;
  }
  return `${unit && n < 99.95 ? n.toPrecision(3) : Math.round(n)} ${units[unit]}`;
}

function short(n) {
  if (n === null || !Number.isFinite(n)) return "–";
  if (n >= 10000) return `${(n / 1000).toFixed(0)}k`;
  return n >= 99.95 || Number.isInteger(n) ? n.toFixed(0) : n.toFixed(n < 9.995 ? 2 : 1);
}

// Metrics: the text format of Prometheus, as this server writes it.

const SAMPLE = /^([a-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/i;
const LABEL = /([a-z_]\w*)="((?:[^"\\]|\\.)*)"/gi;

/** Families by name: lists of labels and value. */
function parseMetrics(text) {
  const families = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : line.match(SAMPLE);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    if (!families.has(match[1])) families.set(match[1], []);
    families.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  return families;
}

/** The sum of a family's values, of those with these labels. */
function sum(families, name, labels = {}) {
  const wanted = Object.entries(labels);
  const found = (families.get(name) ?? []).filter((sample) => wanted.every(([label, value]) => sample.labels[label] === value));
  return found.reduce((total, sample) => total + sample.value, 0);
}

/** Counts up to each bound of a histogram, over all labels. */
function buckets(families, name) {
  const counts = new Map();
  for (const { labels, value } of families.get(`${name}_bucket`) ?? []) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return [...counts].sort((a, b) => a[0] - b[0]);
}

/** The time in ms within which the share `part` of what was counted between two looks fell; null of nothing. */
function quantile(before, now, part) {
  const earlier = new Map(before);
  const counts = now.map(([bound, n]) => [bound, n - (earlier.get(bound) ?? 0)]);
  const all = counts.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  let [lower, below] = [0, 0];
  for (const [bound, n] of counts) {
    if (n >= part * all) {
      if (bound === Infinity) return lower * 1000;
      return (lower + ((part * all - below) / Math.max(n - below, 1)) * (bound - lower)) * 1000;
    }
    [lower, below] = [bound, n];
  }
  return null;
}

// Plots.

const PLOTS = [
  { title: "Tokens per second", names: ["written", "read"], of: (rate) => [rate("farpost_generated_tokens_total"), rate("farpost_prompt_tokens_total")] },
  { title: "Answers", names: ["written", "waiting"], of: (_, __, families) => [sum(families, "farpost_running"), sum(families, "farpost_queue_depth")] },
  { title: "First token, ms", names: ["median", "95 %"], of: (_, times) => [times("farpost_time_to_first_token_seconds", 0.5), times("farpost_time_to_first_token_seconds", 0.95)] },
  { title: "Between tokens, ms", names: ["median", "95 %"], of: (_, times) => [times("farpost_inter_token_seconds", 0.5), times("farpost_inter_token_seconds", 0.95)] },
  { title: "Cache of keys and values, % used", names: ["used"], of: (_, __, families) => {
    const used = sum(families, "farpost_kv_tokens", { state: "used" });
    return [(100 * used) / Math.max(used + sum(families, "farpost_kv_tokens", { state: "free" }), 1)];
  } },
  { title: "Time in steps, %", names: ["busy"], of: (rate) => [scaled(rate("farpost_step_seconds_total"), 100)] },
];
const TIMES = ["farpost_time_to_first_token_seconds", "farpost_inter_token_seconds"];

function scaled(value, factor) {
  return value === null ? null : value * factor;
}

/** Samples of the last minutes, the oldest first. */
let samples = [];

function take(families) {
  const sample = { at: performance.now() / 1000, families, buckets: Object.fromEntries(TIMES.map((name) => [name, buckets(families, name)])) };
  const last = samples.at(-1);
  // A server that began anew counts from zero.
  const uptime = (of) => sum(of.families, "farpost_uptime_seconds");
  if (last && uptime(sample) < uptime(last)) samples = [];
  const before = samples.at(-1);
  const old = samples.at(-WINDOW) ?? samples[0];
  const rate = (name) => (before ? Math.max(sum(families, name) - sum(before.families, name), 0) / Math.max(sample.at - before.at, 0.001) : null);
  const times = (name, part) => (old ? quantile(old.buckets[name], sample.buckets[name], part) : null);
  sample.values = PLOTS.map((plot) => plot.of(rate, times, families));
  // Only what differences are taken of is kept whole.
  if (before) before.families = new Map([...before.families].filter(([name]) => name === "farpost_uptime_seconds"));
  samples.push(sample);
  samples = samples.slice(-MOST_SAMPLES);
}

/** 1, 2 or 5 times a power of ten, no less than `value`. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((digit) => digit * power).find((bound) => bound >= value * 0.999999);
}

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [320, 110, 34, 6, 6, 16];

function plot({ title, names }, number) {
  const lines = names.map((_, line) => samples.map((sample) => sample.values[number][line]));
  const most = ceiling(Math.max(...lines.flat().filter((value) => value !== null), 1e-9)) || 1;
  const top = most < 1 ? 1 : most;
  const x = (place) => LEFT + ((MOST_SAMPLES - samples.length + place) / (MOST_SAMPLES - 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM);
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  for (const tick of [0, top / 2, top]) {
    svg.append(drawn("path", { class: "grid", d: `M${LEFT} ${y(tick)}H${WIDTH - RIGHT}` }));
    svg.append(drawn("text", { x: LEFT - 4, y: y(tick) + 3.5, "text-anchor": "end" }, short(tick)));
  }
  svg.append(drawn("text", { x: LEFT, y: HEIGHT - 3 }, "5 min ago"));
  svg.append(drawn("text", { x: WIDTH - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }, "now"));
  lines.forEach((values, line) => {
    let path = "";
    let isOpen = false;
    values.forEach((value, place) => {
      if (value !== null) path += `${isOpen ? "L" : "M"}${x(place).toFixed(1)} ${y(value).toFixed(1)}`;
      isOpen = value !== null;
    });
    svg.append(drawn("path", { class: `s${line}`, d: path }));
  });
  const legend = names.map((name, line) => make("span", { class: `s${line}` }, `${name} ${short(lines[line].at(-1) ?? null)}`));
  return make("figure", {}, make("figcaption", {}, make("b", {}, title), ...legend), svg);
}

// What is asked from time to time.

function showHealth(state) {
  const words = { ready: "ready", loading: "loading", draining: "shutting down", stalled: "stalled", away: "not reachable" };
  if (at("health").dataset.state === state) return;
  at("health").dataset.state = state;
  at("health").lastElementChild.textContent = words[state] ?? state;
}

async function lookAtHealth() {
  try {
    const answer = await (await ask("/readyz")).json();
    showHealth(String(answer.status));
    return true;
  } catch {
    showHealth("away");
    return false;
  }
}

/** What is asked less often than the rest: the version with the models, and the models this key may ask. */
let version = null;
let isAllowed = true;
let looks = 0;

async function lookAtMetrics() {
  const response = await ask("/metrics");
  isAllowed = response.ok;
  at("locked").hidden = isAllowed;
  at("plots").hidden = at("tables").hidden = !isAllowed;
  if (!isAllowed) {
    samples = [];
    return;
  }
  const families = parseMetrics(await response.text());
  take(families);
  at("plots").replaceChildren(...PLOTS.map(plot));
  showModels(families);
  showCounts(families);
}

async function lookAtVersion() {
  const response = await ask("/version");
  version = response.ok ? await response.json() : null;
  at("version").textContent = version ? `version ${version.version}` : "";
}

function showModels(families) {
  const row = (model) => {
    const memory = (...kinds) => bytes(kinds.reduce((total, kind) => total + sum(families, "farpost_memory_bytes", { model: model.name, kind }), 0));
    const cells = model.state === "loaded"
      ? [model.context_tokens.toLocaleString("en"), bytes(model.size_bytes), memory("weights_mapped", "weights_packed_mapped"), memory("kv"), memory("scratch")]
      : Array(5).fill("–");
    return make("tr", {}, make("th", { scope: "row" }, model.name), make("td", {}, model.state), ...cells.map((cell) => make("td", {}, cell)));
  };
  at("models").replaceChildren(...(version?.models ?? []).map(row));
}

function showCounts(families) {
  const requests = (outcome) => sum(families, "farpost_requests_total", { outcome });
  const counts = [
    ["done", requests("done")],
    ["cancelled", requests("cancelled")],
    ["failed", requests("failed")],
    ["refused", sum(families, "farpost_refused_total")],
    ["tokens read", sum(families, "farpost_prompt_tokens_total")],
    ["of them cached", sum(families, "farpost_prefix_hit_tokens_total")],
    ["tokens written", sum(families, "farpost_generated_tokens_total")],
  ].map(([name, n]) => [name, n.toLocaleString("en")]);
  const cap = sum(families, "farpost_memory_cap_bytes");
  if (cap) counts.push(["memory cap", bytes(cap)]);
  at("counts").replaceChildren(...counts.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text))));
}

async function lookAtModels() {
  const response = await ask("/v1/models");
  const names = response.ok ? (await response.json()).data.map((model) => model.id) : [];
  const select = at("model");
  const known = [...select.options].map((option) => option.value);
  if (names.join("\n") !== known.join("\n")) {
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    if (names.includes(chosen)) select.value = chosen;
  }
  setAnswering(answering !== null);
  at("prompt").placeholder = names.length ? "Say something" : "A key with the scope infer is needed";
}

let isLooking = false;

async function look() {
  if (isLooking || document.hidden) return;
  isLooking = true;
  try {
    if (await lookAtHealth()) {
      const isThorough = looks++ % SELDOM === 0;
      if (isThorough) {
        await lookAtModels();
        await lookAtVersion();
      }
      // What was refused is not asked for all the time.
      if (isAllowed || isThorough) await lookAtMetrics();
    }
  } catch {
    showHealth("away");
  } finally {
    isLooking = false;
  }
}

// The playground.

let messages = [];
/** What stops the answer that is being written. */
let answering = null;

/** The data of each event of a stream, which may be cut anywhere. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:"));
      if (data.length) yield data.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

function shownMessage(role, text) {
  const element = make("p", { class: `said ${role}` }, text);
  at("conversation").append(element);
  at("conversation").scrollTop = at("conversation").scrollHeight;
  return element;
}

function request(history) {
  const body = { model: at("model").value, messages: history, stream: true, stream_options: { include_usage: true } };
  const most = Number.parseInt(at("most").value, 10);
  if (most > 0) body.max_tokens = most;
  if (at("temperature").value !== "") body.temperature = Number(at("temperature").value);
  return body;
}

async function answer(text) {
  messages.push({ role: "user", content: text });
  shownMessage("user", text);
  const place = shownMessage("assistant", "");
  const thinking = make("span", { class: "thinking" });
  const said = make("span");
  place.append(thinking, said);
  const control = new AbortController();
  answering = control;
  setAnswering(true);
  const start = performance.now();
  let first = null;
  let usage = null;
  let problem = null;
  try {
    const response = await ask("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(request(messages)),
      signal: control.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") break;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const delta = event.choices?.[0]?.delta ?? {};
      if (delta.content || delta.reasoning_content) first ??= performance.now();
      thinking.append(delta.reasoning_content ?? "");
      said.append(delta.content ?? "");
      const log = at("conversation");
      // Whoever has scrolled up to read is left there.
      if (log.scrollHeight - log.scrollTop - log.clientHeight < 80) log.scrollTop = log.scrollHeight;
    }
  } catch (error) {
    if (!control.signal.aborted) problem = error.message;
  }
  answering = null;
  setAnswering(false);
  said.normalize();
  if (problem !== null) {
    place.append(make("span", { class: "problem" }, problem));
  }
  // What was not answered is not said again with the next message.
  if (said.textContent) messages.push({ role: "assistant", content: said.textContent });
  else messages.pop();
  showFigures(start, first, usage, control.signal.aborted);
}

function showFigures(start, first, usage, isStopped) {
  const parts = isStopped ? ["stopped"] : [];
  if (first !== null) parts.push(`first token after ${short(first - start)} ms`);
  if (usage) {
    const seconds = (performance.now() - (first ?? start)) / 1000;
    parts.push(`${usage.prompt_tokens} tokens read`, `${usage.completion_tokens} written`);
    if (usage.completion_tokens > 1 && seconds > 0) parts.push(`${short((usage.completion_tokens - 1) / seconds)} tokens/s`);
  }
  at("figures").textContent = parts.join(", ");
}

function setAnswering(is) {
  at("send").disabled = is || at("model").options.length === 0;
  at("stop").disabled = !is;
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("prompt").value.trim();
  if (!text || answering || at("send").disabled) return;
  at("prompt").value = "";
  answer(text);
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => event.key === "Escape" && answering?.abort());
at("stop").addEventListener("click", () => answering?.abort());
at("clear").addEventListener("click", () => {
  answering?.abort();
  messages = [];
  at("conversation").replaceChildren();
  at("figures").textContent = "";
  at("prompt").focus();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  looks = 0;
  look();
});
document.addEventListener("visibilitychange", look);
setInterval(look, POLL_MS);
look();
