// The view on a session: follows what is live, shows all of it, or the part that was chosen.

import { clockText, GUTTER, Painter, readTheme } from "./draw.js";

const WINDOW = { wide: 12, narrow: 6 }; // seconds in view while live
const NARROW = 560; // CSS pixels
const SHORTEST = 0.2; // seconds
const LONGEST = 120; // seconds in view while live
const CALM = 0.05; // peaks of less are not magnified further

export class Timeline {
  constructor(canvas, play) {
    this.canvas = canvas;
    this.play = play;
    this.session = null;
    this.mode = "follow";
    this.view = { from: 0, to: WINDOW.wide };
    this.pointer = null;
    this.fingers = new Map();
    this.player = null;
    this.theme = readTheme();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#recolour());
    new ResizeObserver(() => this.redraw()).observe(canvas);
    this.#listen();
  }

  /** Show another session: a microphone from now on, a file whole. */
  show(session, mode) {
    this.session = session;
    this.player = null;
    this.peak = CALM;
    this.mode = mode;
    this.span = null; // seconds in view while live, once they were chosen
    this.redraw();
  }

  follow() {
    this.mode = "follow";
    this.redraw();
  }

  /** Draw soon; any number of calls until then cost one picture. */
  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.#draw();
    });
  }

  fit() {
    this.mode = "fit";
    this.redraw();
  }

  /** Bring a stretch into view, neither too small nor too large to be looked at. */
  reveal(from, to) {
    const span = this.view.to - this.view.from;
    const length = to - from;
    const fits = length * 40 > span && length < span;
    if (fits && from >= this.view.from && to <= this.view.to && this.mode !== "follow") return;
    const room = fits ? span : Math.max(this.#usual, length * 1.4);
    this.#look((from + to - room) / 2, room);
  }

  /** Change how much is in view; `at` seconds stay where they are. */
  zoom(factor, at = (this.view.from + this.view.to) / 2) {
    const span = (this.view.to - this.view.from) * factor;
    if (this.mode === "follow") {
      this.span = Math.min(Math.max(SHORTEST, span), LONGEST);
      this.redraw();
      return;
    }
    this.#look(at - (at - this.view.from) * factor, span);
  }

  pan(part) {
    const span = this.view.to - this.view.from;
    this.#look(this.view.from + part * span, span);
  }

  get #window() { return this.span ?? this.#usual; }

  get #usual() { return this.canvas.clientWidth < NARROW ? WINDOW.narrow : WINDOW.wide; }

  get #whole() { return Math.max(0.5, this.session?.heard ?? 0); }

  #look(from, span) {
    if (!this.session?.wave) return;
    const whole = this.#whole;
    const shown = Math.min(Math.max(SHORTEST, span), Math.max(whole, this.#window));
    const least = Math.min(0, whole - shown);
    const start = Math.min(Math.max(from, least), Math.max(whole - shown, least));
    this.mode = shown >= whole ? "fit" : "free";
    this.view = { from: start, to: start + shown };
    this.redraw();
  }

  #place() {
    const whole = this.#whole;
    if (this.mode === "fit") this.view = { from: 0, to: whole };
    else if (this.mode === "follow") {
      const to = Math.max(whole, this.#window);
      this.view = { from: to - this.#window, to };
    }
  }

  #draw() {
    const { canvas, session } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (!session?.wave || !width) {
      pen.clearRect(0, 0, width, height);
      return;
    }
    this.#place();
    new Painter(pen, width, height, this.#scene(session, ratio)).paint();
    if (this.player?.playing) this.redraw();
  }

  #scene(session, ratio) {
    const { wave, levels, curve, entries, known, heard, model } = session;
    const { view, theme, pointer } = this;
    const rows = [view.from, view.to].map((each) => Math.floor(each * wave.series.rate));
    const low = wave.series.extent(0, ...rows);
    const high = wave.series.extent(1, ...rows);
    const peak = low ? Math.max(CALM, -low[0], high[1]) : CALM;
    // loud at once, softer gradually: the picture does not jump with every word
    this.peak = peak > this.peak || this.mode !== "follow" ? peak : this.peak * 0.98 + peak * 0.02;
    const gain = 0.94 / this.peak;
    const cursor = this.player?.time ?? null;
    return { view, theme, pointer, ratio, wave, levels, curve, entries, known, heard, gain, cursor, rule: model.events };
  }

  #recolour() {
    this.theme = readTheme();
    this.redraw();
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.#up(event));
    canvas.addEventListener("pointerleave", () => { this.pointer = null; this.redraw(); });
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  #seconds(x) {
    const part = (x - GUTTER) / (this.canvas.clientWidth - GUTTER);
    return this.view.from + part * (this.view.to - this.view.from);
  }

  #down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, event.offsetX);
    this.moved = 0;
  }

  #move(event) {
    const before = this.fingers.get(event.pointerId);
    this.pointer = event.pointerType === "mouse" ? event.offsetX : null;
    if (before !== undefined) {
      this.moved += Math.abs(event.offsetX - before);
      if (this.fingers.size === 2) this.#pinch(event, before);
      else if (this.moved > 4) this.pan((before - event.offsetX) / this.canvas.clientWidth);
      this.fingers.set(event.pointerId, event.offsetX);
    }
    this.redraw();
  }

  #pinch(event, before) {
    const [other] = [...this.fingers].find(([id]) => id !== event.pointerId).slice(1);
    const was = Math.max(20, Math.abs(before - other));
    const is = Math.max(20, Math.abs(event.offsetX - other));
    this.zoom(was / is, this.#seconds((event.offsetX + other) / 2));
  }

  #up(event) {
    const clicked = event.type === "pointerup" && this.fingers.size === 1 && this.moved <= 4;
    this.fingers.delete(event.pointerId);
    if (clicked) this.play(Math.max(0, this.#seconds(event.offsetX)));
  }

  #wheel(event) {
    if (!this.session?.wave) return;
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.pan(event.deltaX / this.canvas.clientWidth);
    else this.zoom(Math.exp(event.deltaY / 500), this.#seconds(event.offsetX));
  }

  #key(event) {
    const act = {
      ArrowLeft: () => this.pan(-0.2),
      ArrowRight: () => this.pan(0.2),
      "+": () => this.zoom(0.5),
      "=": () => this.zoom(0.5),
      "-": () => this.zoom(2),
      0: () => this.fit(),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  }
}

/** What the picture shows, in words. */
export function describe(session) {
  const events = session.entries.filter((entry) => !entry.gap);
  const last = events.at(-1);
  const tail = last ? `, the last ${last.label} from ${clockText(last.from, 2)}` : "";
  return `Waveform and probabilities: ${clockText(session.heard)} heard, ${events.length} events${tail}`;
}
