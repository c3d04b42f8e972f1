/** Between the server and the parts of the page: what people do, what it says, what was painted. */

import { Awaited } from "./awaited.js";
import { seconds } from "./overlay.js";
import { complain, say, sentence, show, showClock } from "./status.js";

/** After this many frames the server is told what was shown; it waits when it hears nothing. */
const SHOWN_EVERY = 4;

const HINT = "Every block appears here. Click one to go back to it.";
/** Between the welcome and the word whose turn it is. */
const UNKNOWN_QUEUE = { position: null, waiting: 0 };
const ENDINGS = { complete: "The video is complete", stopped: "Ended" };

export class Live {
  constructor(parts) {
    Object.assign(this, parts);
    this.state = "idle";
    this._isRecording = false;
    this._queue = UNKNOWN_QUEUE;
    this._link = { state: "connecting", text: "Connecting" };
    this._model = null;
    /** The block gone back to, and whether the video was playing before. */
    this._held = null;
    this._awaited = new Awaited();
    this._startId = null;
    this._isBeginning = false;
    this._lastShown = 0;
    this._ending = "";
    this._render();
  }

  // ---- What people do; times are when the key was pressed, in ms ----

  /** Start, switch, or branch, whichever a prompt means now. */
  send(prompt, time) {
    if (this.state === "idle" && !this._held) {
      this.start(prompt, time);
      return;
    }
    const { transition } = this.settings;
    const id = this._held
      ? this._branch({ prompt, transition })
      : this.connection.request("prompt", { prompt, transition });
    if (id === null) return;
    this._awaited.add(id, prompt, time);
    say("Sent");
    if (this.state === "paused") this.connection.request("resume");
  }

  start(prompt, time) {
    const id = this.connection.request("start", { prompt, ...this.settings.making });
    if (id === null) return;
    this._startId = id;
    this._isBeginning = true;
    this._awaited.add(id, prompt, time);
    say("Starting");
  }

  togglePause() {
    if (this._held) this._branch();
    else if (this.state === "playing") this.connection.request("pause");
    else if (this.state === "paused") this.connection.request("resume");
    this._render();
  }

  /** Go to a block and wait there; the server hears of it with the prompt that branches there. */
  goBack(branch, block) {
    if (!this.connection.isOpen || this._queue.position !== 0) return;
    const isRunning = this.state === "playing" || this.state === "starting";
    const resumes = this._held?.resumes ?? isRunning;
    if (isRunning && !this._held) this.connection.request("pause");
    this._held = { branch, block, resumes };
    this.timeline.setHeld(branch, block);
    this.stage.preview(this.timeline.pictureOf(branch, block));
    this.composer.focus();
    this._render();
  }

  /** Return to where the video was before a block was picked. */
  leaveBlock() {
    if (!this._held) return;
    if (this._held.resumes) this.connection.request("resume");
    this._release();
    this.stage.preview(null);
    this._render();
  }

  _branch(fields = {}) {
    const { branch, block } = this._held;
    const id = this.connection.request("back", { branch, block, ...fields });
    if (id !== null) this._release();
    return id;
  }

  // ---- What the server says ----

  take(message) {
    // The branches of a new video may come before the word that it has begun.
    if (message.type === "branches") this._beginVideo();
    if (this.session.take(message)) this.timeline.show(message);
    this[`_on_${message.type}`]?.(message);
    this._render();
  }

  linkChanged(link) {
    this._link = link;
    if (link.state !== "open") this.meter.rest();
    this._render();
  }

  _on_welcome(message) {
    const { model, limits } = message;
    this._model = model;
    this._forgetVideo();
    this._awaited.clear();
    this._queue = UNKNOWN_QUEUE;
    this._isBeginning = false;
    this._lastShown = 0;
    if (!message.resumed) this.state = "idle";
    this.meter.fps = model.fps;
    this.settings.offer(model.recipes, limits);
    this.composer.offer(model, limits);
    document.getElementById("model").textContent =
      `${model.name} · ${model.width} × ${model.height} · ${model.fps} fps`;
    document.getElementById("transport").value = message.transport;
    say(HINT);
    complain("");
  }

  _on_queue(message) {
    this._queue = message;
  }

  _on_state({ state, recording }) {
    if (state !== "playing") this.meter.rest();
    if (state !== "idle") this._ending = "";
    this.state = state;
    this._isRecording = recording;
  }

  _on_ack(ack) {
    complain("");
    this._awaited.drop(ack.replaces);
    if (ack.request === "start" && ack.id === this._startId) this._beginVideo();
    if (ack.request === "prompt" || ack.request === "back") this._promptAccepted(ack);
  }

  _promptAccepted({ id, branch, block, frame, unchanged }) {
    const prompt = this._awaited.promptOf(id);
    if (prompt === null) return;
    if (unchanged) {
      this._awaited.drop(id);
      say(`“${prompt}” is what the video shows`);
      return;
    }
    const where = this.session.branches.size > 1 ? ` of branch ${branch + 1}` : "";
    say(`“${prompt}” begins with block ${block}${where}, frame ${frame}`);
  }

  _on_video(video) {
    this.stage.expect(video, (header, now) => this._shown(header, now));
  }

  _on_stats(stats) {
    this.overlay.take(stats);
  }

  _on_files(files) {
    this.keeping.list(files, this._model.fps);
    if (files.kind === "recording") say("The recording is ready");
  }

  _on_error({ id, message, code }) {
    this._awaited.drop(id);
    if (id !== null && id === this._startId) this._isBeginning = false;
    if (code !== "unknown_session") complain(sentence(message));
  }

  _on_ended({ reason, message }) {
    this.state = "idle";
    this._ending = ENDINGS[reason] ?? sentence(message);
  }

  // ---- What was painted ----

  _shown(header, now) {
    this.meter.shown(now);
    showClock(header.frame / this._model.fps);
    if (!this._held) this.stage.preview(null);
    const ms = this._awaited.arrived(header.prompt, now);
    if (ms !== null) this._arrived(header.prompt, ms);
    const isNews = ms !== null || header.isFirstOfPrompt;
    if (isNews || header.serial - this._lastShown >= SHOWN_EVERY) {
      this._lastShown = header.serial;
      this.connection.shown(header.serial);
    }
    const owner = this.session.owner(header.branch, header.block) ?? header.branch;
    if (!this.timeline.setShown(owner, header.block)) return;
    this.stage.describe(this.session.promptAt(owner, header.block));
    this.stage.tint(this.timeline.pictureOf(owner, header.block));
  }

  _arrived(id, ms) {
    if (id === this._startId) {
      say(`First frame after ${seconds(ms)}`);
    } else {
      this.meter.promptToPixel = ms;
      say(`On screen after ${seconds(ms)}`);
    }
  }

  // ---- What follows from it ----

  _render() {
    const view = {
      ...this._queue,
      link: this._link,
      state: this.state,
      isRecording: this._isRecording,
      hasVideo: this.session.blocks.size > 0,
      heldBlock: this._held?.block ?? null,
      ending: this._ending,
    };
    show(view, this);
  }

  _beginVideo() {
    if (this._isBeginning) this._forgetVideo();
    this._isBeginning = false;
  }

  _forgetVideo() {
    this._release();
    this.session.clear();
    this.timeline.clear();
    this.stage.preview(null);
  }

  /** No block is held any more; its still stays until the next frame is painted. */
  _release() {
    this._held = null;
    this.timeline.setHeld(null);
  }
}
