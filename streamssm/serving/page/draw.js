// Paints the timeline: the waveform above, the model's curves below, events and gaps across both.

const LANE_GAP = 14;
const DETAIL = 6; // CSS pixels that an event needs for edges
const AXIS = 22;
const TOP = 20; // room for the labels of events
/** CSS pixels at the left for the scale of the curves. */
export const GUTTER = 26;
const STEPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];
const COLOURS = ["ground", "card", "text", "muted", "accent", "wave", "band", "edge", "gap", "bad", "grid", "cursor",
  "c1", "c2", "c3", "c4", "c5", "c6"];

/** The page's present colours. */
export function readTheme() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** Seconds as 0:04.2, 1:23:45; `digits` after the point. */
export function clockText(seconds, digits = 1) {
  const scaled = Math.round(seconds * 10 ** digits);
  const whole = Math.floor(scaled / 10 ** digits);
  const rest = digits ? `.${String(scaled % 10 ** digits).padStart(digits, "0")}` : "";
  const two = (value) => String(value).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return `${hours ? `${hours}:${two(minutes)}` : minutes}:${two(whole % 60)}${rest}`;
}

/** One picture of `scene` on `pen`, a 2d context scaled to CSS pixels. */
export class Painter {
  constructor(pen, width, height, scene) {
    Object.assign(this, { pen, width, height, scene, theme: scene.theme });
    this.perPixel = (scene.view.to - scene.view.from) / (width - GUTTER);
    this.dot = 1 / scene.ratio; // a pixel of the screen in CSS pixels
    this.left = Math.ceil(GUTTER * scene.ratio) / scene.ratio;
    const room = height - TOP - AXIS - LANE_GAP;
    this.waveLane = { top: TOP, height: Math.round(room * 0.55) };
    const top = TOP + this.waveLane.height + LANE_GAP;
    this.levelLane = { top, height: height - AXIS - top };
  }

  paint() {
    const { pen, width, height, scene } = this;
    pen.clearRect(0, 0, width, height);
    pen.font = "11px system-ui, sans-serif";
    this.#grid();
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER, 0, width - GUTTER, height);
    pen.clip();
    for (const entry of scene.entries) this.#span(entry);
    this.#wave();
    this.#levels();
    if (scene.cursor !== null) this.#line(scene.cursor, this.theme.cursor, 1.5);
    if (scene.pointer !== null) this.#readout(scene.pointer);
    pen.restore();
  }

  x(seconds) { return GUTTER + (seconds - this.scene.view.from) / this.perPixel; }

  #seconds(x) { return this.scene.view.from + (x - GUTTER) * this.perPixel; }

  #grid() {
    const { pen, width, height, theme } = this;
    const { from, to } = this.scene.view;
    const step = STEPS.find((each) => each / this.perPixel >= 64) ?? 7200;
    pen.fillStyle = theme.muted;
    pen.textAlign = "center";
    pen.textBaseline = "alphabetic";
    for (let tick = Math.max(0, Math.ceil(from / step)); tick * step <= to; tick += 1) {
      const x = Math.round(this.x(tick * step)) + 0.5;
      this.#stroke(theme.grid, 1, () => { pen.moveTo(x, TOP); pen.lineTo(x, height - AXIS); });
      const text = clockText(tick * step, step < 0.1 ? 2 : Number(step < 1));
      const half = pen.measureText(text).width / 2;
      if (x >= Math.min(half, GUTTER) && x <= width - half) pen.fillText(text, x, height - 7);
    }
    for (const lane of [this.waveLane, this.levelLane]) {
      const y = Math.round(lane.top + lane.height) + 0.5;
      this.#stroke(theme.grid, 1, () => { pen.moveTo(GUTTER, y); pen.lineTo(width, y); });
    }
    this.#scale();
  }

  #span({ label, gap, from, to }) {
    const { pen, theme, scene } = this;
    const left = this.x(from);
    const right = this.x(to ?? scene.known);
    if (right < GUTTER || left > this.width) return;
    const bottom = this.levelLane.top + this.levelLane.height;
    const wide = Math.max(1, right - left);
    pen.fillStyle = gap ? theme.gap : theme.band;
    pen.fillRect(left, TOP, wide, bottom - TOP);
    if (wide < DETAIL && to !== null) return; // edges would be all that is seen
    for (const at of to === null ? [left] : [left, left + wide]) {
      const x = Math.round(at) + 0.5;
      this.#stroke(gap ? theme.bad : theme.edge, 1, () => { pen.moveTo(x, TOP); pen.lineTo(x, bottom); });
    }
    this.#label(label, left, right, gap ? theme.bad : theme.accent);
  }

  #label(text, left, right, colour) {
    const { pen } = this;
    const start = Math.max(left, GUTTER) + 1;
    if (pen.measureText(text).width > Math.min(right, this.width) - start) return;
    pen.fillStyle = colour;
    pen.textAlign = "left";
    pen.textBaseline = "alphabetic";
    pen.fillText(text, start, TOP - 6);
  }

  #wave() {
    const { pen, theme, waveLane: lane } = this;
    const { series } = this.scene.wave;
    const middle = lane.top + lane.height / 2;
    const scale = (lane.height / 2) * this.scene.gain;
    pen.fillStyle = theme.wave;
    for (let x = this.left; x < this.width; x += this.dot) {
      const rows = this.#rows(series.rate, x, this.dot);
      const low = series.extent(0, ...rows);
      const high = series.extent(1, ...rows);
      if (!low) continue;
      const top = middle - Math.min(1, high[1] * this.scene.gain) * (lane.height / 2);
      const bottom = Math.min(lane.top + lane.height, middle - low[0] * scale);
      pen.fillRect(x, top, this.dot, Math.max(1, bottom - top));
    }
  }

  #levels() {
    const { levels, curve, rule } = this.scene;
    if (!curve) return;
    const y = this.#height();
    if (rule) this.#threshold(y(rule.onset));
    curve.labels.slice(0, 6).forEach((_, column) => this.#curve(levels, column, y));
  }

  /** The scale of the curves, beside them. */
  #scale() {
    const { pen, scene } = this;
    if (!scene.curve) return;
    const [low, high] = this.#range(scene.levels, scene.curve);
    pen.fillStyle = this.theme.muted;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const value of [low, high, ...(scene.rule ? [scene.rule.onset] : [])]) {
      pen.fillText(number(value), GUTTER - 6, this.#height()(value), GUTTER - 6);
    }
    pen.textAlign = "center";
  }

  /** Values to places. */
  #height() {
    const [low, high] = this.#range(this.scene.levels, this.scene.curve);
    const lane = this.levelLane;
    return (value) => lane.top + lane.height * (1 - (value - low) / (high - low));
  }

  #threshold(y) {
    const { pen } = this;
    pen.setLineDash([3, 4]);
    this.#stroke(this.theme.muted, 1, () => { pen.moveTo(GUTTER, y); pen.lineTo(this.width, y); });
    pen.setLineDash([]);
  }

  #curve(levels, column, y) {
    const { from, to } = this.scene.view;
    const colour = this.theme[`c${column + 1}`];
    const perPixel = levels.rate * this.perPixel;
    if (perPixel < 1) this.#polyline(colour, this.#items(levels, column, from, to), y);
    else if (perPixel < 8) this.#polyline(colour, this.#extents(levels, column), y);
    else { // lines would fill the lane
      this.#spread(colour, levels, column, y);
      this.#polyline(colour, this.#means(levels, column), y);
    }
  }

  #polyline(colour, points, y) {
    const { pen } = this;
    this.#stroke(colour, 1.75, () => {
      let drawing = false;
      for (const [x, value] of points) {
        if (Number.isNaN(value)) drawing = false;
        else if (drawing) pen.lineTo(x, y(value));
        else { pen.moveTo(x, y(value)); drawing = true; }
      }
    });
  }

  /** From the least to the largest item of each pixel, pale. */
  #spread(colour, levels, column, y) {
    const { pen } = this;
    pen.globalAlpha = 0.22;
    pen.fillStyle = colour;
    for (let x = this.left; x < this.width; x += this.dot) {
      const extent = levels.extent(column, ...this.#rows(levels.rate, x, this.dot));
      if (extent) pen.fillRect(x, y(extent[1]), this.dot, Math.max(1, y(extent[0]) - y(extent[1])));
    }
    pen.globalAlpha = 1;
  }

  /** The mean item of every two pixels. */
  * #means(levels, column) {
    for (let x = GUTTER; x < this.width; x += 2) {
      yield [x + 1, levels.mean(column, ...this.#rows(levels.rate, x, 2))];
    }
  }

  /** Every item in the middle of its time. */
  * #items(levels, column, from, to) {
    for (let row = Math.max(0, Math.floor(from * levels.rate) - 1); row <= Math.min(levels.end - 1, to * levels.rate + 1); row += 1) {
      yield [this.x((row + 0.5) / levels.rate), levels.value(column, row)];
    }
  }

  /** The least and the largest item of each pixel. */
  * #extents(levels, column) {
    for (let x = GUTTER; x < this.width; x += 1) {
      const extent = levels.extent(column, ...this.#rows(levels.rate, x, 1));
      if (!extent) yield [x, NaN];
      else yield* extent.map((value) => [x, value]);
    }
  }

  /** The rows under `wide` CSS pixels from x on. */
  #rows(rate, x, wide) {
    const from = Math.floor(this.#seconds(x) * rate);
    return [from, Math.max(from + 1, Math.floor(this.#seconds(x + wide) * rate))];
  }

  #range(levels, curve) {
    if (curve.kind === "probability") return [0, 1];
    const rows = [this.scene.view.from, this.scene.view.to].map((each) => Math.floor(each * levels.rate));
    const extents = curve.labels.slice(0, 6).map((_, column) => levels.extent(column, ...rows)).filter(Boolean);
    const low = Math.min(...extents.map(([least]) => least), 0);
    const high = Math.max(...extents.map(([, most]) => most), low + 1e-6);
    return [low, high];
  }

  #readout(x) {
    const { pen, theme, scene } = this;
    const seconds = this.#seconds(x);
    if (seconds < 0 || seconds > scene.heard) return;
    const row = scene.curve ? Math.floor(seconds * scene.levels.rate) : 0;
    const values = scene.curve
      ? scene.curve.labels.slice(0, 6).map((label, column) => [label, scene.levels.value(column, row)]) : [];
    const known = values.filter(([, value]) => !Number.isNaN(value));
    const text = [clockText(seconds, 2), ...known.map(([label, value]) => `${label} ${number(value)}`)].join("   ");
    this.#line(seconds, theme.muted, 1);
    const wide = pen.measureText(text).width + 14;
    const left = Math.min(Math.max(0, x + 8), this.width - wide);
    pen.fillStyle = theme.text;
    pen.beginPath();
    pen.roundRect(left, TOP + 2, wide, 20, 5);
    pen.fill();
    pen.fillStyle = theme.card;
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    pen.fillText(text, left + 7, TOP + 12.5);
  }

  #line(seconds, colour, width) {
    const x = Math.round(this.x(seconds)) + 0.5;
    this.#stroke(colour, width, () => { this.pen.moveTo(x, TOP); this.pen.lineTo(x, this.height - AXIS); });
  }

  #stroke(colour, width, trace) {
    const { pen } = this;
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.lineJoin = "round";
    pen.beginPath();
    trace();
    pen.stroke();
  }
}

function number(value) {
  return String(Number(value.toPrecision(3)));
}
