/** The measurements over the video. */

import { drawSparkline } from "./sparkline.js";

const REFRESH_MS = 250;

export class Overlay {
  constructor(root, button, meter) {
    this._root = root;
    this._meter = meter;
    this._stats = null;
    this._button = button;
    button.addEventListener("click", () => this.toggle());
    setInterval(() => root.hidden || this._draw(), REFRESH_MS);
  }

  toggle() {
    this._root.hidden = !this._root.hidden;
    this._button.setAttribute("aria-pressed", String(!this._root.hidden));
    this._draw();
  }

  set meter(meter) {
    this._meter = meter;
  }

  /** @param {object} stats - The latest `stats` message. */
  take(stats) {
    this._stats = stats;
  }

  _draw() {
    const { _meter: meter, _stats: stats } = this;
    const rate = meter.rate(performance.now());
    const gap = meter.middleGap();
    this._set("m-fps", rate === null ? "–" : rate.toFixed(1));
    this._set("m-gap", gap === null ? "–" : `${gap.toFixed(0)} ms`);
    this._set("m-pixel", meter.promptToPixel === null ? "–" : seconds(meter.promptToPixel));
    this._set("m-stalls", String(meter.stalls));
    this._set("m-memory", stats ? memory(stats) : "–");
    drawSparkline(document.getElementById("m-spark"), meter.gaps, 1000 / meter.fps);
  }

  _set(id, text) {
    const place = document.getElementById(id);
    if (place.textContent !== text) place.textContent = text;
  }
}

export function seconds(ms) {
  return `${(ms / 1000).toFixed(2)} s`;
}

function memory({ memory_mib: host, device_memory_mib: device }) {
  return device === null ? size(host) : `${size(host)} + ${size(device)} GPU`;
}

function size(mib) {
  return mib < 1024 ? `${mib.toFixed(0)} MiB` : `${(mib / 1024).toFixed(1)} GiB`;
}
