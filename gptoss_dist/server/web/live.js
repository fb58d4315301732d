// The tiles and charts: /stats, asked for once a second while the page is seen.
import { LineChart } from "./chart.js";
import { age, count, duration, number } from "./words.js";

const POLL_MS = 1_000, PATIENCE_MS = 5_000;
const STATES = { ready: "Ready", loading: "Loading", draining: "Shutting down", failed: "Failed", stuck: "Stuck" };
const byId = (id) => document.getElementById(id);

export function watch() {
  const charts = {
    speed: new LineChart(byId("speed-chart"), "Tokens per second"),
    pages: new LineChart(byId("pages-chart"), "KV pages held in percent, full and sliding", 100),
  };
  poll(charts);
}

async function poll(charts) {
  await seen();
  try {
    const answer = await fetch("stats", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json(), charts);
  } catch {
    showLost();
  }
  setTimeout(poll, POLL_MS, charts);
}

function seen() {
  if (!document.hidden) return undefined;
  return new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
}

function show(stats, charts) {
  showState(stats.status === "ready" ? "ready" : "bad", STATES[stats.status] ?? stats.status,
    stats.status === "ready" ? null : `The server is not ready: ${stats.why ?? stats.status}`);
  showRequests(stats);
  showPages(stats.pages);
  showAbout(stats);
  const now = performance.now();
  charts.speed.add(now, [stats.tokens_per_s.generated]);
  charts.pages.add(now, ["full", "sliding"].map((pool) => share(stats.pages?.[pool])));
}

function showLost() {
  showState("bad", "No connection", "No connection to the server. Trying again every second; what is shown is old.");
}

function showState(state, word, why) {
  byId("status").dataset.state = state;
  set("status", word);
  if (why) set("banner", why);
  byId("banner").hidden = !why;
  byId("load").classList.toggle("is-stale", word === "No connection");
}

function showRequests({ requests, tokens_per_s: speed, latency_s: latency, ranks }) {
  set("running", count(requests.running));
  set("open", `${count(requests.open)} open`);
  set("queued", count(requests.queued));
  set("preemptions", `${count(requests.preemptions)} preempted`);
  set("speed", number(speed.generated));
  set("prompt-speed", speed.prompt === null ? "" : `prompts: ${number(speed.prompt)}`);
  for (const [id, one] of [["first-token", latency.first_token], ["inter-token", latency.inter_token]]) {
    set(id, duration(one.p50));
    set(`${id}-p99`, one.p99 === null ? "" : `p50; p99 ${duration(one.p99)}`);
  }
  set("ranks", `${ranks.total - ranks.dead.length} of ${ranks.total}`);
  byId("ranks").classList.toggle("is-bad", ranks.dead.length > 0);
  set("dead", ranks.dead.length ? `dead: ${ranks.dead.join(", ")}` : "");
}

function showPages(pages) {
  for (const name of ["full", "sliding"]) {
    const pool = pages?.[name];
    set(name, pool?.total ? count(pool.held) : "–");
    set(`${name}-detail`, pool?.total ? `of ${count(pool.total)}; ${count(pool.cached)} cached` : "");
  }
}

function showAbout({ model, about, uptime_s: uptime }) {
  set("model", model?.name ?? "");
  set("context", model ? `${count(model.context)} tokens` : "–");
  for (const name of ["plan", "kernels", "version"]) set(name, about[name] ?? "–");
  set("uptime", age(uptime));
}

// A text is only touched where it changes, so that screen readers hear changes alone.
function set(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

const share = (pool) => (pool?.total ? (100 * pool.held) / pool.total : null);
