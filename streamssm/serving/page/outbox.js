// Samples that the server has not answered yet, so that a connection that breaks costs none of them.

/** A queue of mono chunks by frame number, at most `limit` frames long. */
export class Outbox {
  constructor(limit) {
    this.limit = limit;
    this.chunks = [];
    this.start = 0; // the frame number of the oldest frame held
    this.end = 0; // one past the newest
  }

  push(samples) {
    this.chunks.push(samples);
    this.end += samples.length;
    if (this.end - this.start > this.limit) this.forget(this.end - this.limit);
  }

  /** Frames before number `frame` are not needed any more. */
  forget(frame) {
    while (this.chunks.length && this.start + this.chunks[0].length <= frame) {
      this.start += this.chunks.shift().length;
    }
    if (this.chunks.length && this.start < frame) {
      this.chunks[0] = this.chunks[0].subarray(frame - this.start);
      this.start = frame;
    }
  }
}
