/** What the viewer sees, measured where it is painted: frames a second, gaps, stalls, prompt to pixel. */

const WINDOW_MS = 2000;
const KEPT_GAPS = 160;
/** A gap of this many frames is a stall. */
export const STALL_FRAMES = 3;

export class Meter {
  constructor(fps) {
    this.fps = fps;
    this.gaps = [];
    this.stalls = 0;
    this.promptToPixel = null;
    this._times = [];
    this._last = null;
  }

  /** A frame has been painted at `now` (ms). The first after a pause opens no gap. */
  shown(now) {
    if (this._last !== null) {
      const gap = now - this._last;
      this.gaps.push(gap);
      if (this.gaps.length > KEPT_GAPS) this.gaps.shift();
      if (gap > (STALL_FRAMES * 1000) / this.fps) this.stalls += 1;
    }
    this._last = now;
    this._times.push(now);
    while (this._times[0] < now - WINDOW_MS) this._times.shift();
  }

  /** Playback stops on purpose: the gap that follows is no stall. */
  rest() {
    this._last = null;
    this._times = [];
  }

  /** Frames a second over the last two seconds, or null where too few were painted. */
  rate(now) {
    const times = this._times.filter((time) => time >= now - WINDOW_MS);
    if (times.length < 2) return null;
    return ((times.length - 1) * 1000) / (times[times.length - 1] - times[0]);
  }

  /** The middle gap in ms, or null. */
  middleGap() {
    if (!this.gaps.length) return null;
    const sorted = [...this.gaps].sort((a, b) => a - b);
    return sorted[sorted.length >> 1];
  }
}
