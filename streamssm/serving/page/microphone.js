// The browser's microphone as chunks of samples.

/** What went wrong, in words for the person in front of it. */
export class MicrophoneError extends Error {}

/** Why there can be no microphone here, or null. */
export function microphoneMissing() {
  if (!window.isSecureContext) {
    return "Browsers give the microphone only to pages from https or localhost. Files work here.";
  }
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) {
    return "This browser has no microphone for pages. Files work.";
  }
  return null;
}

/** An open microphone; `take` gets Float32Arrays of mono samples at `rate`. */
export class Microphone {
  /**
   * Ask for the microphone and start it.
   *
   * @param {number} wanted the model's rate; a browser that cannot give it has its own in `rate`
   * @param {number} seconds length of a chunk
   * @throws {MicrophoneError} refused, absent or in use
   */
  static async open(wanted, seconds, take, ended) {
    const microphone = new Microphone();
    microphone.media = await ask();
    try {
      await microphone.#connect(wanted, seconds, take);
    } catch (error) {
      microphone.#release();
      throw error instanceof MicrophoneError ? error
        : new MicrophoneError(`The microphone could not be started: ${error.message}`);
    }
    microphone.media.getAudioTracks()[0].addEventListener("ended", () => ended("The microphone went away."));
    microphone.#stayAwake();
    return microphone;
  }

  /** Stop, after handing over the last samples. */
  async stop() {
    if (this.stopped) return this.stopped;
    this.stopped = new Promise((resolve) => {
      this.done = resolve;
      setTimeout(resolve, 500); // an audio thread that was already gone does not answer
    });
    this.node.port.postMessage("stop");
    await this.stopped;
    this.#release();
    return undefined;
  }

  async #connect(wanted, seconds, take) {
    const source = this.#source(wanted);
    this.rate = this.context.sampleRate;
    await this.context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
    const size = Math.max(1, Math.round(seconds * this.rate));
    this.node = new AudioWorkletNode(this.context, "capture", {
      numberOfInputs: 1,
      channelCount: 1,
      channelCountMode: "explicit",
      processorOptions: { size },
    });
    this.node.port.onmessage = ({ data }) => (data === null ? this.done() : take(data));
    // its output is silence; a node that leads nowhere is not run by every browser
    source.connect(this.node).connect(this.context.destination);
    this.context.resume(); // where it waits for a gesture the page goes on, and hears when that comes
  }

  #source(wanted) {
    try {
      this.context = new AudioContext({ sampleRate: wanted, latencyHint: "interactive" });
      return this.context.createMediaStreamSource(this.media);
    } catch (error) {
      if (error.name !== "NotSupportedError") throw error;
      // some browsers do not convert between the device's rate and the context's: the server does
      this.context?.close();
      this.context = new AudioContext({ latencyHint: "interactive" });
      return this.context.createMediaStreamSource(this.media);
    }
  }

  /** A phone that falls asleep stops listening. */
  async #stayAwake() {
    this.lock = await navigator.wakeLock?.request("screen").catch(() => null);
    if (this.stopped) this.lock?.release();
  }

  #release() {
    this.lock?.release();
    for (const track of this.media.getTracks()) track.stop();
    if (this.context && this.context.state !== "closed") this.context.close();
  }
}

async function ask() {
  // what the browser does for telephony would hide from the model what there is to hear
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...plain } });
  } catch (error) {
    throw new MicrophoneError(REASONS[error.name] ?? `The microphone could not be opened: ${error.message}`);
  }
}

const REASONS = {
  NotAllowedError: "The microphone was refused. Allow it for this page in the browser's settings, then try again.",
  NotFoundError: "No microphone was found. Connect one, or choose a file.",
  NotReadableError: "The microphone is in use by another program.",
};
