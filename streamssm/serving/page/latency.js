// Latency percentiles of the last results.

const KEPT = 1000;

/** A window of the latest values, with percentiles. */
export class Percentiles {
  constructor() {
    this.values = [];
    this.next = 0;
  }

  add(value) {
    this.values[this.next] = value;
    this.next = (this.next + 1) % KEPT;
  }

  /** The value that a part `p` of the window does not exceed, or null before the first one. */
  at(p) {
    if (!this.values.length) return null;
    const sorted = Float64Array.from(this.values).sort();
    return sorted[Math.min(sorted.length - 1, Math.ceil(p * sorted.length) - 1)];
  }
}

/** When each position of the input was sent, to tell how long its result took. */
export class Marks {
  constructor() {
    this.marks = [];
  }

  /** Input up to `frame` was sent now. */
  sent(frame) {
    this.marks.push([frame, performance.now()]);
  }

  /** Milliseconds since the chunk that completed `frame` was sent; null if it is not known. */
  answered(frame) {
    let at = null;
    while (this.marks.length && this.marks[0][0] < frame) this.marks.shift();
    if (this.marks.length) [, at] = this.marks[0];
    return at === null ? null : performance.now() - at;
  }
}
