/** Prompts that were sent and are not on screen yet, to time them from the key to the pixel. */

export class Awaited {
  constructor() {
    this._sent = new Map();
  }

  /** @param {number} time - When the key was pressed, in ms. */
  add(id, prompt, time) {
    this._sent.set(id, { prompt, time });
  }

  /** It will not be shown: another one came before its block, or it was refused. */
  drop(id) {
    this._sent.delete(id);
  }

  clear() {
    this._sent.clear();
  }

  /** The text of a request, or null. */
  promptOf(id) {
    return this._sent.get(id)?.prompt ?? null;
  }

  /** A frame of this prompt was painted at `now`; the time it took if that is news, else null. */
  arrived(id, now) {
    const found = this._sent.get(id);
    if (!found) return null;
    // Those sent before it can no longer come.
    for (const earlier of this._sent.keys()) if (earlier <= id) this._sent.delete(earlier);
    return now - found.time;
  }
}
