// What is heard and what the model says about it: from a microphone, or from a file.

import { Marks, Percentiles } from "./latency.js";
import { Microphone } from "./microphone.js";
import { Outbox } from "./outbox.js";
import { interleave, mix } from "./recording.js";
import { Envelope, Series } from "./series.js";
import { Stream } from "./stream.js";

const HOUR = 3600; // seconds of a microphone that stay in view
const HELD = 10; // seconds kept for a server that is away
const BACKOFF = { least: 0.5, most: 10 }; // seconds between tries
const FINISH = 10; // seconds that a server may take for the last results
const UNSENT = 1 << 19; // bytes of a file that may wait in the browser
const PIECE = { seconds: 0.1, bytes: 1 << 18 }; // of a file in one message

/**
 * One run of one model. `hooks` has phase(name, text, detail), entry(entry), token() and failed(text).
 *
 * An entry is an event or a gap: `{ label, gap, from, to, cut }` in seconds, `to` null while it lasts.
 * Frames are samples of the source; items are the model's results.
 */
class Session {
  constructor(model, token, hooks) {
    this.model = model;
    this.token = token;
    this.hooks = hooks;
    this.rows = []; // as `streamssm run` writes them
    this.entries = [];
    this.trips = new Percentiles();
    this.origin = 0; // the frame with which the present stream began
    this.answered = 0; // frames whose results are here
    this.tries = 0;
    this.over = false;
  }

  get active() { return !this.over; }

  /** Seconds heard, and seconds with results. */
  get heard() { return this.wave ? this.wave.samples / this.rate : 0; }

  get known() { return this.answered / (this.rate || 1); }

  connect() {
    this.hooks.phase("connecting", "Connecting");
    const { rate, channels, token } = this;
    this.stream = new Stream({ model: this.model.name, rate, channels, token, events: this.model.events !== null }, {
      ready: (message) => this.#begin(message),
      row: (row) => this.#row(row),
      levels: (message) => this.#levels(message),
      stats: (message) => { this.stats = message; },
      error: ({ message }) => this.fail(message), // what it would not take is missing: times would be wrong
      closed: (outcome) => this.closed(outcome),
    });
  }

  retry(phase, text, seconds) {
    const until = performance.now() + 1000 * seconds;
    const tick = () => {
      const left = Math.ceil((until - performance.now()) / 1000);
      if (left <= 0) this.connect();
      else {
        this.hooks.phase(phase, text, `next try in ${left} s`);
        this.timer = setTimeout(tick, Math.min(1000, until - performance.now()));
      }
    };
    tick();
  }

  finish(text = "Finished") {
    if (this.over) return;
    this.over = true;
    clearTimeout(this.timer);
    this.stream?.abandon();
    this.cut();
    this.hooks.phase("done", text);
  }

  fail(text) {
    this.finish("Stopped");
    this.hooks.failed(text);
  }

  /** An event that was open when the results stopped ends there. */
  cut() {
    const open = this.entries.findLast((entry) => !entry.gap && entry.to === null);
    if (!open || !this.curve) return;
    const index = Math.max(0, this.levels.end - 1);
    this.#keep({ event: "end", label: open.label, ...this.#place(index), cut: true });
  }

  closed({ reason, retry, text }) {
    if (reason === "token") {
      this.finish("Token needed");
      this.hooks.token();
    } else if (reason === "full") this.retry("full", "All streams are taken", retry);
    else if (reason === "refused") this.fail(text);
    else this.lost();
  }

  /** The first frame at or after `frame` with which an item begins. */
  align(frame) {
    return this.curve ? Math.ceil(this.#item(frame, Math.ceil) / this.curve.perFrame - 1e-6) : frame;
  }

  gap(reason, from, to) {
    const seconds = (to - from) / this.rate;
    const items = Math.round(seconds * this.model.rate);
    this.#keep({ gap: reason, items, seconds: micro(seconds), time: micro(from / this.rate) });
  }

  #begin(message) {
    this.ready = message;
    this.tries = 0;
    if (!this.curve) this.#chooseCurve(message);
    this.began();
    this.base = this.#item(this.origin, Math.round);
  }

  #chooseCurve({ outputs, rate, lookahead }) {
    const of = this.model.events?.output;
    const output = outputs.find(({ name }) => name === of) ?? outputs[0]; // of which levels are sent
    const labels = labelsOf(output);
    const perFrame = (output.per_item * rate) / this.rate;
    this.curve = { name: output.name, kind: output.kind, labels, perFrame, itemRate: output.per_item * rate };
    this.lookahead = (lookahead * this.rate) / rate; // in frames
    this.levels = new Series(this.curve.itemRate, labels.length, this.history * this.curve.itemRate + 2);
  }

  #item(frame, round) {
    // 1e-6: a product that misses a whole number by rounding is that number
    return round(frame * this.curve.perFrame + (round === Math.ceil ? -1e-6 : 0));
  }

  #levels({ output, start, values }) {
    if (output !== this.curve.name) return;
    const flat = values.flat(Infinity);
    const first = this.base + start;
    this.levels.skipTo(first);
    this.levels.append(flat);
    const items = first + flat.length / this.levels.width;
    this.answered = Math.max(this.answered, Math.round(items / this.curve.perFrame));
    this.heardBack();
  }

  #row(row) {
    const moved = { ...row };
    if (row.index !== undefined) moved.index += this.base;
    if (row.time !== undefined) moved.time = micro(row.time + this.origin / this.rate);
    this.#keep(moved);
  }

  #place(index) {
    return this.curve.itemRate ? { time: micro(index / this.curve.itemRate), index } : { index };
  }

  #keep(row) {
    this.rows.push(row);
    const at = row.time ?? row.index;
    if (row.event === "end") {
      const open = this.entries.findLast((entry) => !entry.gap && entry.to === null && entry.label === row.label);
      if (!open) return;
      Object.assign(open, { to: at, cut: Boolean(row.cut) });
      this.hooks.entry(open);
    } else if (row.event === "start" || row.gap) {
      const gap = row.gap ?? null;
      const entry = { label: gap ?? row.label, gap, from: at, to: gap ? at + (row.seconds ?? 0) : null, cut: false };
      this.entries.push(entry);
      this.hooks.entry(entry);
    }
  }
}

/** A run on the microphone; it goes on, without loss if it can, when the server was away. */
export class LiveSession extends Session {
  history = HOUR;

  channels = 1;

  async start() {
    this.marks = new Marks();
    this.hooks.phase("permission", "Waiting for the microphone");
    const seconds = Math.max(0.01, this.model.block / this.model.rate);
    const waiting = []; // what comes before the rate is known
    let take = (samples) => waiting.push(samples);
    const microphone = await Microphone.open(
      this.model.rate, seconds, (samples) => take(samples), (text) => this.#unplugged(text));
    this.microphone = microphone;
    if (this.over) { // stopped while the browser asked
      await microphone.stop();
      return;
    }
    this.rate = microphone.rate;
    this.wave = new Envelope(this.rate, HOUR);
    this.outbox = new Outbox(HELD * this.rate);
    take = (samples) => this.#take(samples);
    waiting.forEach(take);
    this.connect();
  }

  /** Stop listening, and wait for what is left. */
  async stop() {
    if (this.ending) return;
    this.ending = true;
    if (!this.microphone) {
      this.finish("Ready");
      return;
    }
    this.hooks.phase("finishing", "Finishing");
    await this.microphone.stop();
    if (!this.stream?.ready) {
      this.finish();
      return;
    }
    this.stream.end();
    this.timer = setTimeout(() => this.finish(), 1000 * FINISH);
  }

  finish(text) {
    super.finish(text);
    this.microphone?.stop();
  }

  closed(outcome) {
    this.connected = false;
    if (this.ending) this.finish();
    else super.closed(outcome);
  }

  lost() {
    this.cut();
    const seconds = Math.min(BACKOFF.most, BACKOFF.least * 2 ** this.tries);
    this.tries += 1;
    this.retry("lost", "Connection lost", seconds);
  }

  /** A new stream: it gets everything that has no result yet. */
  began() {
    const { outbox, answered } = this;
    this.origin = outbox.start ? this.align(outbox.start) : 0;
    outbox.forget(this.origin);
    if (this.origin > answered) this.gap("disconnected", answered, this.origin);
    this.marks = new Marks();
    let frame = this.origin;
    for (const chunk of outbox.chunks) {
      this.stream.send(chunk);
      frame += chunk.length;
      this.marks.sent(frame);
    }
    this.connected = true;
    this.hooks.phase("live", "Listening");
  }

  heardBack() {
    const trip = this.marks.answered(this.answered + this.lookahead);
    if (trip !== null && !this.ending) this.trips.add(trip);
    this.outbox.forget(this.answered);
  }

  #take(samples) {
    if (this.over) return;
    this.wave.push(samples);
    this.outbox.push(samples);
    if (!this.connected) return;
    this.stream.send(samples);
    this.marks.sent(this.outbox.end);
  }

  #unplugged(text) {
    if (this.over || this.ending) return;
    this.stop();
    this.hooks.failed(text);
  }
}

/** A run on a decoded file, as fast as the server takes it. */
export class FileSession extends Session {
  constructor(model, token, hooks, buffer, name) {
    super(model, token, hooks);
    this.buffer = buffer;
    this.name = name;
    this.rate = buffer.sampleRate;
    this.channels = buffer.numberOfChannels;
    this.history = Math.max(HOUR, buffer.duration);
    this.wave = new Envelope(this.rate, this.history);
    this.wave.push(mix(buffer));
  }

  start() {
    this.connect();
  }

  stop() {
    this.finish("Stopped");
  }

  /** How many times faster than real time the results come. */
  get speed() {
    const seconds = ((this.ended ?? performance.now()) - this.beganAt) / 1000;
    return this.beganAt && seconds > 0 ? this.known / seconds : null;
  }

  closed(outcome) {
    if (outcome.reason === "finished" && this.ending) this.finish();
    else super.closed(outcome);
  }

  lost() {
    this.fail(`The connection was lost at ${this.known.toFixed(1)} s of ${this.name}. Choose the file again.`);
  }

  began() {
    this.beganAt = performance.now();
    this.hooks.phase("sending", `Reading ${this.name}`);
    this.#pump();
  }

  heardBack() {
    this.ended = performance.now();
  }

  async #pump() {
    const { stream, buffer } = this;
    const most = Math.floor(PIECE.bytes / (4 * this.channels));
    const piece = Math.max(1, Math.min(most, Math.round(PIECE.seconds * this.rate)));
    for (let at = 0; at < buffer.length && !this.over; at += piece) {
      while (stream.waiting > UNSENT && !this.over) await rest(10);
      stream.send(interleave(buffer, at, Math.min(at + piece, buffer.length)));
    }
    this.ending = true;
    if (!this.over) stream.end();
  }
}

/** A name for each number of an item. */
function labelsOf({ name, labels, shape }) {
  const width = shape.reduce((product, size) => product * size, 1);
  if (labels.length === width) return labels;
  return width === 1 ? [name] : Array.from({ length: width }, (_, at) => `${name}.${at}`);
}

function micro(seconds) {
  return Math.round(seconds * 1e6) / 1e6;
}

function rest(milliseconds) {
  return new Promise((resolve) => { setTimeout(resolve, milliseconds); });
}
