/** Fragmented MP4 into a video element: where WebCodecs is absent, as it is on plain http. */

import { Kind } from "../protocol.js";

/** Behind the newest frame by more than this, playback jumps to it. */
const MAX_BEHIND_SECONDS = 0.5;
const BEHIND_AFTER_JUMP_SECONDS = 0.1;
const KEPT_SECONDS = 8;

const Source = window.ManagedMediaSource ?? window.MediaSource;

export function canPlay() {
  return Boolean(Source?.isTypeSupported('video/mp4; codecs="avc1.42C01E"'));
}

export class MsePlayer {
  constructor(video, shown) {
    this._fps = video.fps;
    this._shown = shown;
    this._mime = video.mime;
    this._pending = [];
    this._headers = [];
    this._isClosed = false;
    this._makeElement();
    this._open();
    this._watch();
  }

  push(picture) {
    if (picture.kind === Kind.MP4) this._headers.push(picture);
    this._pending.push(picture.payload);
    picture.payload = null;
    this._append();
  }

  close() {
    this._isClosed = true;
    URL.revokeObjectURL(this.element.src);
    this.element.removeAttribute("src");
    this.element.load();
  }

  _makeElement() {
    this.element = document.createElement("video");
    this.element.muted = true;
    this.element.playsInline = true;
    this.element.disableRemotePlayback = true;
  }

  _open() {
    this._source = new Source();
    this.element.src = URL.createObjectURL(this._source);
    this._source.addEventListener("sourceopen", () => {
      if (this._buffer || this._isClosed) return;
      this._buffer = this._source.addSourceBuffer(this._mime);
      // Frames follow each other without gaps, so the nth appended is shown at n / fps.
      this._buffer.mode = "sequence";
      this._buffer.addEventListener("updateend", () => {
        this._keepUp();
        this._append();
      });
      this._append();
    });
  }

  _append() {
    if (!this._buffer || this._buffer.updating || this._source.readyState !== "open") return;
    const { buffered } = this._buffer;
    const now = this.element.currentTime;
    if (buffered.length && now - buffered.start(0) > 2 * KEPT_SECONDS) {
      this._buffer.remove(0, now - KEPT_SECONDS);
    } else if (this._pending.length) {
      this._buffer.appendBuffer(join(this._pending.splice(0)));
    }
  }

  _keepUp() {
    const { buffered } = this._buffer;
    if (!buffered.length) return;
    const end = buffered.end(buffered.length - 1);
    if (end - this.element.currentTime > MAX_BEHIND_SECONDS) {
      this.element.currentTime = end - BEHIND_AFTER_JUMP_SECONDS;
    }
    if (this.element.paused) this.element.play().catch(() => {});
  }

  _watch() {
    this.element.requestVideoFrameCallback((now, { mediaTime }) => {
      if (this._isClosed) return;
      this._report(mediaTime);
      this._watch();
    });
  }

  /** Tell of the newest frame shown, and of every first one of a prompt on the way to it. */
  _report(mediaTime) {
    this._passed ??= 0;
    const shown = Math.round(mediaTime * this._fps) + 1 - this._passed;
    const headers = this._headers.splice(0, Math.max(shown, 0));
    this._passed += headers.length;
    const newest = headers.pop();
    const now = performance.now();
    headers.filter((header) => header.isFirstOfPrompt).forEach((header) => this._shown(header, now));
    if (newest) this._shown(newest, now);
  }
}

function join(parts) {
  if (parts.length === 1) return parts[0];
  const whole = new Uint8Array(parts.reduce((bytes, part) => bytes + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
