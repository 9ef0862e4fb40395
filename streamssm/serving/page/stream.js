// One stream on the server: a websocket, and what to say when it does not open.

export const RETRY_SECONDS = 5; // when a server that is full does not say when to come again

/** An address beside this page, with a query. */
export function address(path, query = {}) {
  const url = new URL(path, document.baseURI);
  url.hash = "";
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  return url;
}

/** fetch() with the token where there is one. */
export function request(url, token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(url, { headers, cache: "no-store" });
}

/**
 * A stream of one model.
 *
 * `on` has a function for each type of message, and `closed({ finished, reason, retry, text })`,
 * called once: `reason` is "finished", "full", "token", "refused" or "lost".
 */
export class Stream {
  constructor({ model, rate, channels, token, events }, on) {
    this.query = {
      model,
      rate,
      channels,
      encoding: "f32le",
      emit: events ? "events" : "none",
      levels: 1,
      stats: 1,
    };
    this.token = token;
    this.on = on;
    this.ready = false;
    this.fatal = null;
    const url = address("v1/stream", token ? { ...this.query, token } : this.query);
    url.protocol = url.protocol.replace("http", "ws");
    this.socket = new WebSocket(url);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => this.#take(data);
    this.socket.onclose = ({ code }) => this.#closed(code);
  }

  /** Bytes that wait in the browser. */
  get waiting() { return this.socket.bufferedAmount; }

  send(samples) { this.#write(samples); }

  /** No more input: the server sends what is left and closes. */
  end() { this.#write(JSON.stringify({ type: "eof" })); }

  /** Give up; nothing more is called. */
  abandon() {
    this.on = null;
    this.socket.close();
  }

  #write(data) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(data);
  }

  #take(data) {
    if (typeof data !== "string" || !this.on) return;
    const { type, ...message } = JSON.parse(data);
    if (type === "ready") this.ready = true;
    if (type === "error" && message.fatal) this.fatal = message;
    else this.on[type]?.(message);
  }

  async #closed(code) {
    const outcome = await this.#outcome(code);
    this.on?.closed(outcome);
    this.on = null;
  }

  async #outcome(code) {
    if (this.fatal) return { reason: "refused", text: this.fatal.message };
    if (code === 1000) return { reason: "finished" };
    if (this.ready) return { reason: "lost" };
    return this.#diagnose();
  }

  /** A page is not told why a websocket did not open; the same request without one says it. */
  async #diagnose() {
    let response;
    try {
      response = await request(address("v1/stream", this.query), this.token);
    } catch {
      return { reason: "lost" };
    }
    if (response.status === 401 || response.status === 403) return { reason: "token" };
    if (response.status === 503) {
      return { reason: "full", retry: Number(response.headers.get("Retry-After")) || RETRY_SECONDS };
    }
    if (response.status === 426) return { reason: "lost" }; // it would be a stream now
    const { message } = await response.json().catch(() => ({}));
    return { reason: "refused", text: message ?? `The server answered ${response.status}.` };
  }
}
