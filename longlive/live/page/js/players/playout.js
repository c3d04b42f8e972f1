/** Paints decoded pictures one display refresh at a time, so that a burst is not seen as one. */

/** More than this wait only after a hiccup of the network; then the oldest are skipped. */
const MAX_WAITING = 8;
const CATCH_UP_ABOVE = 3;
/** Of the time a frame lasts: the server paces the frames, this only keeps a burst apart. */
const LEAST_SPACING = 0.75;
const MAX_REFRESH_MS = 200;

export class Playout {
  /**
   * @param {number} fps
   * @param {(picture: object) => void} paint
   * @param {(header: object, now: number) => void} shown
   */
  constructor(fps, paint, shown) {
    this._spacing = (1000 / fps) * LEAST_SPACING;
    this._paint = paint;
    this._shown = shown;
    this._waiting = [];
    this._last = -Infinity;
    this._request = 0;
    this._asked = 0;
  }

  push(picture, header) {
    if (header.isJump) this._drop(this._waiting.length);
    this._waiting.push([picture, header]);
    this._drop(this._waiting.length - MAX_WAITING);
    const now = performance.now();
    // A window that is covered gets no refresh, and the server waits for frames to be shown.
    if (document.hidden || (this._request && now - this._asked > MAX_REFRESH_MS)) this._next(now);
    else if (!this._request) this._ask(now);
  }

  close() {
    cancelAnimationFrame(this._request);
    this._drop(this._waiting.length);
  }

  _tick(now) {
    this._request = 0;
    const isDue = now - this._last >= this._spacing || this._waiting.length > CATCH_UP_ABOVE;
    if (isDue) this._next(now);
    if (this._waiting.length) this._ask(now);
  }

  _ask(now) {
    this._asked = now;
    this._request = requestAnimationFrame((time) => this._tick(time));
  }

  _next(now) {
    const next = this._waiting.shift();
    if (!next) return;
    const [picture, header] = next;
    this._paint(picture);
    picture.close();
    this._last = now;
    this._shown(header, performance.now());
  }

  _drop(count) {
    for (const [picture] of this._waiting.splice(0, Math.max(count, 0))) picture.close();
  }
}

/** A canvas of the video's size, and how to paint on it. */
export function makeScreen({ width, height }) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.setAttribute("role", "img");
  const context = canvas.getContext("2d", { alpha: false });
  return { canvas, paint: (picture) => context.drawImage(picture, 0, 0, width, height) };
}
