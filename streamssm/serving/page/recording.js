// A file's samples, decoded by the browser at the file's own rate, and a player for them.

/** What went wrong, in words for the person in front of it. */
export class RecordingError extends Error {}

/**
 * Decode an audio file.
 *
 * The browser would resample to any rate asked for, each in its own way. Where the rate is known
 * the samples stay as they are in the file, and the server converts them as it converts all others.
 *
 * @returns {Promise<AudioBuffer>}
 * @throws {RecordingError} not audio that this browser can read
 */
export async function decode(file, fallbackRate) {
  const bytes = await file.arrayBuffer();
  if (!bytes.byteLength) throw new RecordingError(`${file.name} is empty.`);
  const rate = sniffRate(new DataView(bytes)) ?? fallbackRate;
  try {
    return await context(rate, fallbackRate).decodeAudioData(bytes);
  } catch {
    throw new RecordingError(`${file.name} is not audio that this browser can read.`);
  }
}

function context(rate, fallbackRate) {
  try {
    return new OfflineAudioContext(1, 1, rate);
  } catch { // a rate that the browser does not take
    return new OfflineAudioContext(1, 1, fallbackRate);
  }
}

/** Samples a second according to the file's header; null if it is of a kind not known here. */
export function sniffRate(view) {
  const tag = (at) => (at + 4 <= view.byteLength ? String.fromCharCode(...bytesOf(view, at, 4)) : "");
  if (tag(0) === "RIFF" && tag(8) === "WAVE") return waveRate(view, tag);
  if (tag(0) === "fLaC" && view.byteLength >= 22) return view.getUint32(18) >>> 12;
  if (tag(0) === "OggS") return oggRate(view, tag);
  return mp3Rate(view, tag(0).startsWith("ID3"));
}

function bytesOf(view, at, count) {
  return new Uint8Array(view.buffer, view.byteOffset + at, count);
}

function waveRate(view, tag) {
  for (let at = 12; at + 16 <= view.byteLength;) {
    if (tag(at) === "fmt ") return view.getUint32(at + 12, true) || null;
    at += 8 + view.getUint32(at + 4, true);
    at += at % 2; // chunks begin at even places
  }
  return null;
}

function oggRate(view, tag) {
  const packet = 27 + (view.byteLength > 26 ? view.getUint8(26) : 0);
  if (tag(packet) === "Opus") return 48000;
  const isVorbis = tag(packet + 1) === "vorb" && packet + 16 <= view.byteLength;
  return isVorbis ? view.getUint32(packet + 12, true) || null : null;
}

// by version bits (2.5, reserved, 2, 1) and rate bits of an MPEG frame header
const MP3_RATES = [[11025, 12000, 8000], [], [22050, 24000, 16000], [44100, 48000, 32000]];

function mp3Rate(view, tagged) {
  let at = 0;
  if (tagged && view.byteLength > 10) {
    at = 10 + bytesOf(view, 6, 4).reduce((size, byte) => (size << 7) | (byte & 127), 0);
  }
  if (at + 4 > view.byteLength || (view.getUint16(at) & 0xffe0) !== 0xffe0) return null;
  return MP3_RATES[(view.getUint8(at + 1) >> 3) & 3][(view.getUint8(at + 2) >> 2) & 3] ?? null;
}

/** One mono mix of a decoded file, for the picture. */
export function mix(buffer) {
  const mixed = buffer.getChannelData(0).slice();
  for (let channel = 1; channel < buffer.numberOfChannels; channel += 1) {
    const other = buffer.getChannelData(channel);
    for (let at = 0; at < mixed.length; at += 1) mixed[at] += other[at];
  }
  if (buffer.numberOfChannels > 1) for (let at = 0; at < mixed.length; at += 1) mixed[at] /= buffer.numberOfChannels;
  return mixed;
}

/** Frames from..to-1 with their channels interleaved, as the server reads them. */
export function interleave(buffer, from, to) {
  const channels = buffer.numberOfChannels;
  if (channels === 1) return buffer.getChannelData(0).slice(from, to);
  const frames = new Float32Array((to - from) * channels);
  for (let channel = 0; channel < channels; channel += 1) {
    const samples = buffer.getChannelData(channel);
    for (let at = from; at < to; at += 1) frames[(at - from) * channels + channel] = samples[at];
  }
  return frames;
}

/** Plays a decoded file from any place. */
export class Player {
  constructor(buffer, ended) {
    this.buffer = buffer;
    this.ended = ended;
    this.source = null;
    this.place = 0; // where it was paused
  }

  get playing() { return this.source !== null; }

  /** Where it plays or was paused, in seconds; null at the beginning. */
  get time() {
    if (!this.playing) return this.place || null;
    return Math.min(this.buffer.duration, this.context.currentTime - this.began);
  }

  /** Play from a place, or from where it was paused. */
  play(from = this.place) {
    this.pause();
    this.context ??= new AudioContext();
    this.context.resume();
    const source = this.context.createBufferSource();
    source.buffer = this.buffer;
    source.connect(this.context.destination);
    source.onended = () => this.#over(source);
    source.start(0, from);
    this.began = this.context.currentTime - from;
    this.source = source;
  }

  pause() {
    const { source } = this;
    if (!source) return;
    this.place = this.time;
    this.source = null;
    source.stop();
  }

  close() {
    this.pause();
    this.context?.close();
    this.context = null;
  }

  #over(source) {
    if (this.source !== source) return;
    this.source = null;
    this.place = 0;
    this.ended();
  }
}
