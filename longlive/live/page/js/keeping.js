/** Recording, and the files that come of it. */

import { serverAddress } from "./address.js";

const KEPT = 4;

export class Keeping {
  /**
   * @param {HTMLElement} root
   * @param {(type: string) => void} request
   */
  constructor(root, request) {
    this._button = root.querySelector("#record");
    this._label = root.querySelector("#record-label");
    this._session = root.querySelector("#save-session");
    this._files = root.querySelector("#files");
    this._isRecording = false;
    this._button.addEventListener("click", () => request(this._isRecording ? "record_stop" : "record"));
    this._session.addEventListener("click", () => request("export"));
  }

  toggle() {
    this._button.click();
  }

  set(isRecording, canRecord, canExport) {
    this._isRecording = isRecording;
    this._button.disabled = !canRecord;
    this._session.disabled = !canExport;
    this._button.setAttribute("aria-pressed", String(isRecording));
    this._label.textContent = isRecording ? "Stop recording" : "Record";
  }

  /** List what a `files` message offers; a session that was asked for is downloaded at once. */
  list({ kind, frames, video, session, sheet }, fps) {
    const entry = document.createElement("li");
    const length = `${(frames / fps).toFixed(1)} s`;
    const links = [
      [video, `Video, ${length}`],
      [session, "Session"],
      [sheet, "Contact sheet"],
    ];
    for (const [address, text] of links) {
      if (!address) continue;
      if (entry.childNodes.length) entry.append(" · ");
      entry.append(link(address, text));
    }
    this._files.prepend(entry);
    while (this._files.children.length > KEPT) this._files.lastChild.remove();
    if (kind === "export") entry.querySelector("a").click();
  }
}

function link(address, text) {
  const made = document.createElement("a");
  made.href = serverAddress(address);
  made.download = address.split("/").pop();
  made.textContent = text;
  return made;
}
