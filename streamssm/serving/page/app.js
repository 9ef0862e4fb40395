// Joins the page's controls with a session.

import { clockText } from "./draw.js";
import { EventList } from "./eventlist.js";
import { microphoneMissing, MicrophoneError } from "./microphone.js";
import { decode, Player, RecordingError } from "./recording.js";
import { FileSession, LiveSession } from "./session.js";
import { address, request } from "./stream.js";
import { describe, Timeline } from "./timeline.js";

const TONES = {
  done: "good", live: "live", sending: "live", permission: "warn", connecting: "warn", finishing: "warn",
  full: "warn", lost: "warn",
};
const AUDIBLE = "samples"; // the kind of input that a microphone can give

const $ = (id) => document.getElementById(id);
const page = { models: [], session: null, player: null, token: takeToken(), mode: null };
const timeline = new Timeline($("timeline"), (seconds) => page.player && !page.session.active && play(seconds));
const list = new EventList($("events"), $("no-events"), $("scroll"), $("count"), choose);

/** The token of an address such as https://host/#token=..., else the one of this tab. */
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    history.replaceState(null, "", location.pathname + location.search);
    sessionStorage.setItem("streamssm.token", given);
  }
  return sessionStorage.getItem("streamssm.token");
}

// What can be chosen

async function loadModels() {
  status("connecting", "Connecting");
  let response;
  try {
    response = await request(address("v1/models"), page.token);
  } catch {
    return unreachable("The server does not answer.");
  }
  if (response.status === 401) return askToken();
  if (!response.ok) return unreachable(`The server answered ${response.status}.`);
  lock(false);
  offer((await response.json()).models);
  return undefined;
}

function unreachable(text) {
  status("failed", "Not connected");
  tell(`${text} Next try in 3 s.`, "bad");
  setTimeout(loadModels, 3000);
}

function offer(models) {
  page.models = models;
  const options = models.map((model) => {
    const usable = audible(model);
    const option = new Option(usable ? model.name : `${model.name} (reads ${model.input.kind})`, model.name);
    option.disabled = !usable;
    return option;
  });
  $("model").replaceChildren(...options);
  const first = models.find(audible);
  if (first) $("model").value = first.name;
  describeModel();
  status("idle", first ? "Ready" : "No audio model");
  tell(first ? microphoneMissing() : "None of the server's models reads audio.", first ? "quiet" : "warn");
  enable();
}

function audible({ input }) {
  return input.kind === AUDIBLE && input.rate !== null;
}

function chosen() {
  return page.models.find(({ name }) => name === $("model").value);
}

function describeModel() {
  const model = chosen();
  if (!model) return;
  const { rate, hop } = model.input;
  const facts = [`${rate / 1000} kHz`, `hop ${milliseconds((1000 * hop) / rate)}`];
  if (model.state_bytes) facts.push(`${Math.ceil(model.state_bytes / 1000)} kB of state`);
  $("model-about").replaceChildren(...[model.description, facts.join(" · ")].filter(Boolean).map((text) => {
    const line = document.createElement("span");
    line.textContent = text;
    return line;
  }));
  $("no-events").textContent = model.events ? "Events are listed here as they happen."
    : "This model has no event rule: the curves are its results.";
  const inherent = (1000 * (model.block + model.lookahead)) / rate;
  $("algorithmic").textContent = milliseconds(inherent);
}

function askToken(wrong = page.token !== null) {
  status("failed", "Token needed");
  lock(true);
  $("token-wrong").textContent = wrong ? "The server does not know this token." : "";
  enable();
  $("token").focus();
}

/** Nothing but the token can be entered until the server knows it. */
function lock(locked) {
  $("token-form").hidden = !locked;
  document.querySelector("main").classList.toggle("locked", locked);
}

// Runs

const hooks = {
  phase: (phase, text, detail) => {
    status(phase, text, detail);
    if (phase === "done") ended();
    enable();
  },
  entry: (entry) => {
    list.put(entry);
    if (page.mode === "follow") announce(entry);
    enable();
  },
  token: () => askToken(),
  failed: (text) => tell(text, "bad"),
};

async function startMicrophone() {
  open(new LiveSession(sessionModel(), page.token, hooks), "follow");
  try {
    await page.session.start();
  } catch (error) {
    if (!(error instanceof MicrophoneError)) throw error;
    page.session.fail(error.message);
  }
}

async function startFile(file) {
  if (page.session?.active || page.decoding || !chosen()) return;
  page.decoding = true;
  status("connecting", `Opening ${file.name}`);
  enable();
  try {
    const buffer = await decode(file, chosen().input.rate);
    page.decoding = false;
    open(new FileSession(sessionModel(), page.token, hooks, buffer, file.name), "fit");
    page.player = new Player(buffer, showPlayer);
    timeline.player = page.player;
    page.session.start();
  } catch (error) {
    if (!(error instanceof RecordingError)) throw error;
    status("idle", "Ready");
    tell(error.message, "bad");
  } finally {
    page.decoding = false;
    enable();
  }
}

function sessionModel() {
  const { name, block, input, events } = chosen();
  return { name, block, rate: input.rate, events: events ?? null };
}

function open(session, mode) {
  clear();
  page.session = session;
  page.mode = mode;
  timeline.show(session, mode);
  $("invitation").hidden = true;
  enable();
  requestAnimationFrame(follow);
}

function clear() {
  page.player?.close();
  page.player = null;
  page.session = null;
  list.clear();
  $("legend").replaceChildren();
  tell("");
  $("invitation").hidden = false;
  $("timeline").setAttribute("aria-label", "Waveform and probabilities: nothing yet");
  for (const id of ["trip", "server", "input"]) $(id).textContent = "–";
  $("trip-tail").textContent = "microphone only";
  $("server-tail").textContent = "microphone only";
  $("input-tail").textContent = "so far";
  timeline.show(null, "follow");
  showPlayer();
  enable();
}

function ended() {
  const { session } = page;
  if (page.mode === "follow" && session.wave && timeline.mode === "follow") timeline.fit();
  figures(session); // with the word that says so, not a picture later
  const events = session.entries.filter(({ gap }) => !gap).length;
  $("announce").textContent = `Finished: ${events} events`;
  if (session.wave) $("timeline").setAttribute("aria-label", describe(session));
  else clear(); // nothing was heard
}

/** While a session runs: pictures as often as they say something new, and the figures now and then. */
function follow(now) {
  const { session } = page;
  if (!session) return;
  if (session.active) requestAnimationFrame(follow);
  if (session.active && now - page.drawn < (page.mode === "follow" ? 30 : 100)) return;
  page.drawn = now;
  timeline.redraw();
  if (!page.shown || now - page.shown > 250 || !session.active) {
    page.shown = now;
    figures(session);
  }
  showLegend(session);
  $("fit").textContent = awayFromLive() ? "Live" : "Fit";
  const open = session.entries.findLast(({ to }) => to === null);
  if (open) list.grow(open, session.known);
  $("progress").hidden = page.mode === "follow" || !session.active;
  $("progress").value = session.heard ? session.known / session.heard : 0;
  if (!session.active) showPlayer();
}

function awayFromLive() {
  return page.mode === "follow" && page.session?.active && timeline.mode !== "follow";
}

function figures(session) {
  const { trips, stats, heard } = session;
  if (trips.at(0.5) !== null) {
    $("trip").textContent = milliseconds(trips.at(0.5));
    $("trip-tail").textContent = `p90 ${bare(trips.at(0.9))} · p99 ${milliseconds(trips.at(0.99))}`;
  }
  if (stats && stats.p50_ms !== null && page.mode === "follow") {
    $("server").textContent = milliseconds(stats.p50_ms);
    $("server-tail").textContent = `p99 ${milliseconds(stats.p99_ms)}`;
  }
  $("input").textContent = clockText(page.mode === "fit" ? session.known : heard);
  const speed = page.mode === "fit" && session.speed;
  $("input-tail").textContent = speed ? `${speed.toFixed(speed < 10 ? 1 : 0)} × real time` : "so far";
}

function showLegend({ curve }) {
  if (!curve || $("legend").childElementCount) return;
  const names = ["waveform", ...curve.labels.slice(0, 6)];
  $("legend").replaceChildren(...names.map((name, at) => {
    const item = document.createElement("li");
    item.textContent = name;
    if (at) item.className = `c${at}`;
    return item;
  }));
}

function choose(entry) {
  timeline.reveal(entry.from, entry.to ?? page.session.known);
  if (page.player && !page.session.active) play(entry.from);
}

// Playing a file

function play(seconds) {
  page.player.play(seconds);
  showPlayer();
}

function togglePlay() {
  if (page.player.playing) page.player.pause();
  else page.player.play();
  showPlayer();
}

function showPlayer() {
  const playing = Boolean(page.player?.playing);
  $("play").hidden = !page.player || page.session?.active;
  $("play").textContent = playing ? "Pause" : "Play";
  timeline.redraw();
}

// What the page says

function status(phase, text, detail = "") {
  $("status").dataset.tone = TONES[phase] ?? (phase === "failed" ? "bad" : "quiet");
  if ($("status-text").textContent !== text) $("status-text").textContent = text; // what is said again is read again
  $("status-detail").textContent = detail;
  page.phase = phase;
}

function tell(text, tone = "warn") {
  $("notice").hidden = !text;
  $("notice").textContent = text ?? "";
  $("notice").dataset.tone = tone;
}

function announce({ label, gap, from, to }) {
  const what = gap ? `gap: ${gap}` : label;
  $("announce").textContent = to === null || gap ? `${what} from ${clockText(from)}` : `${what} ended at ${clockText(to)}`;
}

function enable() {
  const busy = Boolean(page.session?.active);
  const open = !chosen() || !audible(chosen()) || !$("token-form").hidden || page.decoding;
  $("start").dataset.busy = String(busy);
  $("start-text").textContent = busy ? "Stop" : "Start microphone";
  $("start").disabled = page.phase === "finishing" || (!busy && Boolean(open || microphoneMissing()));
  $("choose").disabled = busy || open;
  $("model").disabled = busy || !page.models.length || page.decoding;
  $("save").disabled = !page.session?.rows.length;
  $("clear").disabled = busy || !page.session;
  for (const id of ["zoom-in", "zoom-out", "fit"]) $(id).disabled = !page.session;
}

function milliseconds(value) {
  if (value < 9.95) return `${value.toFixed(value < 0.995 ? 2 : 1)} ms`.replace(/\.0+ /, " ");
  return `${Math.round(value)} ms`;
}

function bare(value) {
  return milliseconds(value).replace(" ms", "");
}

function save() {
  const { session } = page;
  const lines = session.rows.map((row) => `${JSON.stringify(row)}\n`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.download = `${(session.name ?? session.model.name).replace(/\.\w+$/, "")}.events.jsonl`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// What a person does

$("start").addEventListener("click", () => (page.session?.active ? page.session.stop() : startMicrophone()));
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (file) startFile(file);
  target.value = ""; // the same file again is a change too
});
$("model").addEventListener("change", describeModel);
$("save").addEventListener("click", save);
$("clear").addEventListener("click", () => { clear(); status("idle", "Ready"); });
$("play").addEventListener("click", togglePlay);
$("fit").addEventListener("click", () => (awayFromLive() ? timeline.follow() : timeline.fit()));
$("zoom-in").addEventListener("click", () => timeline.zoom(0.5));
$("zoom-out").addEventListener("click", () => timeline.zoom(2));
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  page.token = $("token").value.trim();
  sessionStorage.setItem("streamssm.token", page.token);
  $("token").value = "";
  loadModels();
});
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape" && page.session?.active) page.session.stop();
});

let inside = 0; // drag events come for every element that is passed
const carriesFile = (event) => [...event.dataTransfer.types].includes("Files");
document.addEventListener("dragenter", (event) => {
  if (!carriesFile(event)) return;
  inside += 1;
  $("drop").hidden = $("choose").disabled;
});
document.addEventListener("dragleave", (event) => {
  if (!carriesFile(event)) return;
  inside -= 1;
  if (inside <= 0) $("drop").hidden = true;
});
document.addEventListener("dragover", (event) => {
  if (!carriesFile(event)) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = $("choose").disabled ? "none" : "copy";
});
document.addEventListener("drop", (event) => {
  event.preventDefault(); // the browser would leave the page for the file
  inside = 0;
  $("drop").hidden = true;
  const [file] = event.dataTransfer.files;
  if (file && !$("choose").disabled) startFile(file);
});

loadModels();
