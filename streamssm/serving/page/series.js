// Values at a fixed rate, in memory that stays bounded however long a microphone is open.

/** Rows of `width` numbers, `rate` of them a second; beyond `limit` rows the older half is let go. */
export class Series {
  constructor(rate, width, limit) {
    this.rate = rate;
    this.width = width;
    this.first = 0; // the number of the oldest row that is kept
    this.limit = Math.max(2, Math.ceil(limit));
    this.rows = 0;
    this.data = new Float32Array(1024 * width);
  }

  /** The number of the next row. */
  get end() { return this.first + this.rows; }

  /** Append whole rows, one after the other in a flat array. */
  append(values) {
    const rows = Math.floor(values.length / this.width);
    for (let at = 0; at < rows; at += this.limit >> 1) {
      const some = Math.min(rows - at, this.limit >> 1);
      this.#reserve(some);
      const part = values.subarray ? values.subarray(at * this.width, (at + some) * this.width)
        : values.slice(at * this.width, (at + some) * this.width);
      this.data.set(part, this.rows * this.width);
      this.rows += some;
    }
  }

  /** Say that nothing is known before row number `row`. */
  skipTo(row) {
    const missing = Math.max(0, row - this.end);
    if (missing > this.limit) { // nothing of what is here would be kept
      this.first = row;
      this.rows = 0;
    } else if (missing) {
      this.append(new Float32Array(missing * this.width).fill(NaN));
    }
  }

  /** One value, NaN where there is none. */
  value(column, row) {
    const at = row - this.first;
    return at >= 0 && at < this.rows ? this.data[at * this.width + column] : NaN;
  }

  /** The least and the largest value of a column in rows from..to-1, or null. */
  extent(column, from, to) {
    let low = Infinity;
    let high = -Infinity;
    const last = Math.min(to - this.first, this.rows);
    for (let at = Math.max(0, from - this.first); at < last; at += 1) {
      const value = this.data[at * this.width + column];
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return low <= high ? [low, high] : null;
  }

  /** The mean of a column in rows from..to-1, NaN where there is none. */
  mean(column, from, to) {
    let sum = 0;
    let count = 0;
    const last = Math.min(to - this.first, this.rows);
    for (let at = Math.max(0, from - this.first); at < last; at += 1) {
      const value = this.data[at * this.width + column];
      if (!Number.isNaN(value)) {
        sum += value;
        count += 1;
      }
    }
    return count ? sum / count : NaN;
  }

  #reserve(rows) {
    if (this.rows + rows > this.limit) {
      const drop = Math.min(this.rows, Math.max(this.limit >> 1, this.rows + rows - this.limit));
      this.data.copyWithin(0, drop * this.width, this.rows * this.width);
      this.rows -= drop;
      this.first += drop;
    }
    const needed = (this.rows + rows) * this.width;
    if (needed <= this.data.length) return;
    const grown = new Float32Array(Math.max(needed, 2 * this.data.length));
    grown.set(this.data.subarray(0, this.rows * this.width));
    this.data = grown;
  }
}

/** A waveform as the least and largest sample of every hundredth of a second. */
export class Envelope {
  constructor(rate, seconds) {
    this.size = Math.max(1, Math.round(rate / 100)); // samples a row
    this.series = new Series(rate / this.size, 2, (seconds * rate) / this.size + 2);
    this.samples = 0;
    this.#begin();
  }

  /** Take samples of one channel. */
  push(samples) {
    const rows = [];
    for (const sample of samples) {
      if (sample < this.low) this.low = sample;
      if (sample > this.high) this.high = sample;
      this.filled += 1;
      if (this.filled === this.size) {
        rows.push(this.low, this.high);
        this.#begin();
      }
    }
    this.samples += samples.length;
    this.series.append(rows);
  }

  #begin() {
    this.low = Infinity;
    this.high = -Infinity;
    this.filled = 0;
  }
}
