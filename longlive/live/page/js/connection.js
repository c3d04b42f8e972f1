/** One WebSocket that comes back by itself, and says so. */

import { socketAddress, serverAddress } from "./address.js";
import { readPicture, VERSION } from "./protocol.js";

const DELAYS_MS = [300, 600, 1200, 2500, 5000, 8000];
const SESSION_KEY = "longlive-session";
const ENDS_SESSION = new Set(["idle", "shutdown"]);
/** After these, coming back by itself would be wrong. */
const FINAL = new Set(["taken_over", "version", "idle"]);

/**
 * Events: `message` (detail: the object), `picture` (detail: its header and payload), `link`
 * (detail: state `connecting`, `open`, `lost` or `closed`, and a text for people).
 */
export class Connection extends EventTarget {
  constructor(transports) {
    super();
    this.transports = transports;
    this.isOpen = false;
    this._attempt = 0;
    this._id = 0;
    this._socket = null;
    this._timer = 0;
    this._farewell = null;
    addEventListener("online", () => this._retryNow());
    document.addEventListener("visibilitychange", () => document.hidden || this._retryNow());
  }

  connect() {
    clearTimeout(this._timer);
    this._timer = 0;
    this._farewell = null;
    const socket = new WebSocket(socketAddress());
    socket.binaryType = "arraybuffer";
    this._socket = socket;
    socket.onopen = () => this._hello();
    socket.onmessage = ({ data }) => socket === this._socket && this._receive(data);
    socket.onclose = ({ code, reason }) => socket === this._socket && this._closed(code, reason);
  }

  /** Send a request; returns its id, or null without a connection. */
  request(type, fields = {}) {
    if (!this.isOpen) return null;
    this._id += 1;
    this._send({ type, id: this._id, ...fields });
    return this._id;
  }

  /** Say that the frame with this serial number was shown. */
  shown(serial) {
    if (this.isOpen) this._send({ type: "shown", serial });
  }

  /** Go on in a new connection with other transports, or after another took over. */
  reconnect(transports = this.transports) {
    this.transports = transports;
    const old = this._socket;
    this._socket = null;
    this.isOpen = false;
    old?.close(1000);
    this._say("connecting", "Connecting");
    this.connect();
  }

  _hello() {
    const session = sessionStorage.getItem(SESSION_KEY);
    this._send({
      type: "hello",
      version: VERSION,
      transports: this.transports,
      ...(session ? { session } : {}),
    });
  }

  _send(message) {
    if (this._socket?.readyState === WebSocket.OPEN) this._socket.send(JSON.stringify(message));
  }

  _receive(data) {
    if (typeof data !== "string") {
      const picture = readPicture(data);
      if (picture) this.dispatchEvent(new CustomEvent("picture", { detail: picture }));
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "welcome") this._welcomed(message);
    if (message.type === "error" && message.fatal) this._farewell = message;
    if (message.type === "ended" && ENDS_SESSION.has(message.reason)) {
      this._farewell = { code: message.reason, message: message.message };
    }
    this.dispatchEvent(new CustomEvent("message", { detail: message }));
  }

  _welcomed({ session, last_id: lastId }) {
    sessionStorage.setItem(SESSION_KEY, session);
    this._id = lastId;
    this._attempt = 0;
    this.isOpen = true;
    this._say("open", "Connected");
  }

  _closed(code, reason) {
    const wasOpen = this.isOpen;
    this.isOpen = false;
    this._socket = null;
    const why = this._farewell?.code;
    if (why === "unknown_session") {
      sessionStorage.removeItem(SESSION_KEY);
      this.connect();
    } else if (FINAL.has(why)) {
      this._say("closed", this._farewell.message, why);
    } else {
      this._later(wasOpen, why ? this._farewell.message : reason);
    }
  }

  _later(wasOpen, reason) {
    const delay = DELAYS_MS[Math.min(this._attempt, DELAYS_MS.length - 1)];
    this._attempt += 1;
    this._timer = setTimeout(() => this.connect(), delay);
    const lost = wasOpen || this._attempt > 1 ? "Connection lost, trying again" : "Trying again";
    this._say("lost", reason ? `${lost}: ${reason}` : lost);
    if (!wasOpen) this._explain();
  }

  /** The browser does not say why a socket was refused; the server's health tells which it is. */
  async _explain() {
    const attempt = this._attempt;
    const isUp = await fetch(serverAddress("healthz")).then((answer) => answer.ok, () => false);
    if (this.isOpen || attempt !== this._attempt) return;
    this._say("lost", isUp ? "Refused, trying again" : "No server, trying again", isUp ? "refused" : "down");
  }

  _retryNow() {
    if (this._timer) this.connect();
  }

  _say(state, text, reason = "") {
    this.dispatchEvent(new CustomEvent("link", { detail: { state, text, reason } }));
  }
}
