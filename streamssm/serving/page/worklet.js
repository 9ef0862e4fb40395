// Runs on the audio thread: gathers samples into chunks and hands them over, nothing else.

class Capture extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.chunk = new Float32Array(processorOptions.size);
    this.filled = 0;
    this.running = true;
    this.port.onmessage = () => this.#stop();
  }

  process([input]) {
    const channel = input[0];
    if (channel && this.running) this.#take(channel);
    return this.running;
  }

  #take(channel) {
    for (let at = 0; at < channel.length;) {
      const part = channel.subarray(at, at + this.chunk.length - this.filled);
      this.chunk.set(part, this.filled);
      this.filled += part.length;
      at += part.length;
      if (this.filled === this.chunk.length) this.#send();
    }
  }

  #send() {
    this.port.postMessage(this.chunk.slice(0, this.filled));
    this.filled = 0;
  }

  #stop() {
    this.running = false;
    if (this.filled) this.#send();
    this.port.postMessage(null); // after the last samples
  }
}

registerProcessor("capture", Capture);
