// The table of events and gaps.

import { clockText } from "./draw.js";

const SHOWN = 500; // rows in the table; what is saved has all of them

export class EventList {
  constructor(body, empty, scroll, count, choose) {
    Object.assign(this, { body, empty, scroll, count, choose });
    this.rows = new Map();
    this.events = 0;
  }

  clear() {
    this.body.replaceChildren();
    this.rows.clear();
    this.events = 0;
    this.empty.hidden = false;
    this.count.textContent = "0";
  }

  /** A new entry, or one that has ended. */
  put(entry) {
    const follows = this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight < 60;
    const row = this.rows.get(entry) ?? this.#add(entry);
    this.#fill(row, entry, entry.to);
    if (follows) this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  /** An event that goes on shows how long it has. */
  grow(entry, until) {
    const row = this.rows.get(entry);
    if (row) row.cells[3].textContent = lengthText(Math.max(0, until - entry.from));
  }

  #add(entry) {
    const row = this.body.insertRow();
    const button = document.createElement("button");
    button.type = "button";
    button.addEventListener("click", () => this.choose(entry));
    row.insertCell().append(button);
    for (let cell = 0; cell < 3; cell += 1) row.insertCell();
    this.rows.set(entry, row);
    this.events += entry.gap ? 0 : 1;
    this.count.textContent = String(this.events);
    this.empty.hidden = true;
    if (this.rows.size > SHOWN) this.#dropOldest();
    return row;
  }

  #fill(row, entry, to) {
    const open = to === null;
    row.className = entry.gap ? "gap" : (open ? "open" : "");
    const button = row.cells[0].firstChild;
    button.textContent = entry.label;
    button.setAttribute("aria-label", `Show ${entry.label} from ${clockText(entry.from, 2)}`);
    row.cells[1].textContent = clockText(entry.from, 2);
    row.cells[2].textContent = open ? "…" : clockText(to, 2) + (entry.cut ? " (cut)" : "");
    row.cells[3].textContent = open ? "" : lengthText(to - entry.from);
  }

  #dropOldest() {
    const [entry, row] = this.rows.entries().next().value;
    row.remove();
    this.rows.delete(entry);
  }
}

function lengthText(seconds) {
  return seconds < 60 ? `${seconds.toFixed(2)} s` : clockText(seconds, 1);
}
