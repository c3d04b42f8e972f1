/** The strip: a lane for each branch, a cell for each block, prompts above the cells. */

import { key } from "./session.js";

const FOLLOW_MARGIN_PX = 160;
/** Older blocks stay, without their pictures: a video may play for hours. */
const KEPT_PICTURES = 600;

export class Timeline {
  /**
   * @param {HTMLElement} strip
   * @param {import("./session.js").Session} session
   * @param {(branch: number, block: number) => void} onPick
   */
  constructor(strip, session, onPick) {
    this._strip = strip;
    this._session = session;
    this._lanes = new Map();
    this._cells = new Map();
    this._pictured = [];
    this._shown = null;
    this._held = null;
    this._isFollowing = true;
    strip.addEventListener("click", ({ target }) => {
      const cell = target.closest(".cell");
      if (cell) onPick(Number(cell.dataset.branch), Number(cell.dataset.block));
    });
    strip.addEventListener("keydown", (event) => this._onKey(event));
    strip.addEventListener("scroll", () => (this._isFollowing = this._isAtEnd()), { passive: true });
  }

  clear() {
    this._strip.replaceChildren();
    this._lanes.clear();
    this._cells.clear();
    this._pictured = [];
    this._shown = this._held = null;
    this._isFollowing = true;
  }

  /** Show a message that the session has taken in. */
  show(message) {
    if (message.type === "branches") {
      this._layOut();
      this._isFollowing = true;
    }
    if (message.type === "block") this._addCell(message);
    this._drawMarks(message.type === "branches" ? null : message.branch);
    this._follow();
  }

  /** Mark the block on screen. Returns whether it is another one than before. */
  setShown(branch, block) {
    const cell = this._cells.get(key(branch, block)) ?? null;
    if (!cell || cell === this._shown) return false;
    const prompt = this._promptOf(this._shown);
    this._shown?.classList.remove("is-shown");
    cell.classList.add("is-shown");
    this._shown = cell;
    if (this._promptOf(cell) !== prompt) this._markCurrent();
    return true;
  }

  /** Mark the block that was gone back to; null takes the mark away. */
  setHeld(branch, block) {
    this._held?.classList.remove("is-held");
    this._held = branch === null ? null : (this._cells.get(key(branch, block)) ?? null);
    this._held?.classList.add("is-held");
    this._strip.querySelector(".ghost")?.remove();
    if (this._held) this._showGhost(branch, block);
  }

  /** Where the branch that leaves here will be. */
  _showGhost(branch, block) {
    const lane = element("div", "lane ghost");
    lane.style.setProperty("--from", block);
    lane.style.setProperty("--blocks", block + 1);
    const parent = block > 0 ? this._session.owner(branch, block - 1) : null;
    if (parent !== null) {
      const rows = [...this._strip.querySelectorAll(".lane")];
      lane.append(makeFork(block, rows.length - rows.indexOf(this._lanes.get(parent))));
    }
    this._strip.append(lane);
    lane.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /** Put the focus on the block on screen. */
  focus() {
    (this._held ?? this._shown ?? this._strip.querySelector(".cell"))?.focus();
  }

  /** The picture of a block, or null. */
  pictureOf(branch, block) {
    return this._cells.get(key(branch, block))?.querySelector("img")?.src ?? null;
  }

  _layOut() {
    const { branches } = this._session;
    for (const [id, lane] of this._lanes) {
      if (branches.has(id)) continue;
      lane.remove();
      this._lanes.delete(id);
      for (const [name, cell] of this._cells) {
        if (Number(cell.dataset.branch) === id) this._cells.delete(name);
      }
    }
    const order = [...branches.keys()].sort((a, b) => a - b);
    order.forEach((id, row) => this._layOutLane(branches.get(id), row, order));
    for (const cell of this._cells.values()) this._markPath(cell);
  }

  _layOutLane(branch, row, order) {
    let lane = this._lanes.get(branch.id);
    if (!lane) {
      lane = element("div", "lane");
      lane.append(element("div", "marks"));
      this._lanes.set(branch.id, lane);
      this._strip.append(lane);
    }
    lane.style.setProperty("--from", branch.block);
    lane.style.setProperty("--blocks", branch.blocks);
    lane.querySelector(".fork")?.remove();
    if (branch.parent === null) return;
    const parent = this._session.owner(branch.parent, branch.block - 1) ?? branch.parent;
    lane.prepend(makeFork(branch.block, Math.max(row - order.indexOf(parent), 1)));
  }

  _addCell(message) {
    const name = key(message.branch, message.block);
    const lane = this._lanes.get(message.branch);
    if (!lane) return;
    let cell = this._cells.get(name);
    if (!cell) {
      cell = element("button", "cell");
      cell.type = "button";
      cell.tabIndex = this._cells.size ? -1 : 0;
      cell.dataset.branch = message.branch;
      cell.dataset.block = message.block;
      cell.style.setProperty("--at", message.block);
      this._cells.set(name, cell);
      lane.append(cell);
    }
    cell.replaceChildren();
    if (message.thumbnail) {
      const picture = new Image();
      picture.alt = "";
      picture.src = `data:image/jpeg;base64,${message.thumbnail}`;
      cell.append(picture);
      this._pictured.push(cell);
      if (this._pictured.length > KEPT_PICTURES) this._pictured.shift().replaceChildren();
    }
    cell.setAttribute("aria-label", this._describe(message));
    this._markPath(cell);
    lane.style.setProperty("--blocks", this._session.branches.get(message.branch).blocks);
  }

  _describe({ branch, block }) {
    const prompt = this._session.promptAt(branch, block);
    const where = this._session.branches.size > 1 ? `, branch ${branch + 1}` : "";
    return `Block ${block}${where}${prompt ? `: ${prompt}` : ""}`;
  }

  _markPath(cell) {
    const { branch, block } = cell.dataset;
    cell.classList.toggle("is-off", !this._session.isOnPath(Number(branch), Number(block)));
  }

  _drawMarks(only) {
    for (const [id, lane] of this._lanes) {
      if (only !== null && id !== only) continue;
      const marks = this._session.spans(id).map((span) => {
        const mark = element("span", "mark");
        const text = document.createElement("span");
        text.textContent = span.prompt;
        mark.append(text);
        mark.title = span.prompt;
        mark.dataset.prompt = span.id;
        mark.style.setProperty("--at", span.block);
        mark.style.setProperty("--span", span.end - span.block);
        return mark;
      });
      lane.querySelector(".marks").replaceChildren(...marks);
    }
    this._markCurrent();
  }

  _promptOf(cell) {
    if (!cell) return null;
    return this._session.blocks.get(key(cell.dataset.branch, cell.dataset.block))?.prompt ?? null;
  }

  _markCurrent() {
    const prompt = this._promptOf(this._shown);
    for (const mark of this._strip.querySelectorAll(".mark")) {
      const isOwn = mark.closest(".lane") === this._shown?.closest(".lane");
      mark.classList.toggle("is-current", isOwn && Number(mark.dataset.prompt) === prompt);
    }
  }

  _newest() {
    const branch = this._session.branches.get(this._session.current);
    return branch && this._cells.get(key(branch.id, branch.blocks - 1));
  }

  _isAtEnd() {
    const newest = this._newest();
    if (!newest) return true;
    const gap = newest.getBoundingClientRect().right - this._strip.getBoundingClientRect().right;
    return gap < FOLLOW_MARGIN_PX;
  }

  _follow() {
    if (!this._isFollowing || this._strip.contains(document.activeElement)) return;
    this._newest()?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  _onKey(event) {
    const from = event.target.closest(".cell");
    const to = from && this._neighbor(from, event.key);
    if (!to) return;
    event.preventDefault();
    to.focus();
    this._strip.querySelector('.cell[tabindex="0"]')?.setAttribute("tabindex", "-1");
    to.tabIndex = 0;
  }

  _neighbor(cell, pressed) {
    const branch = Number(cell.dataset.branch);
    const block = Number(cell.dataset.block);
    const lane = [...cell.parentElement.querySelectorAll(".cell")];
    const along = { ArrowLeft: -1, ArrowRight: 1 }[pressed];
    if (along) return this._cells.get(key(this._session.owner(branch, block + along), block + along));
    if (pressed === "Home") return lane[0];
    if (pressed === "End") return lane[lane.length - 1];
    const across = { ArrowUp: "previousElementSibling", ArrowDown: "nextElementSibling" }[pressed];
    const cells = [...(cell.parentElement[across]?.querySelectorAll(".cell") ?? [])];
    const distance = (other) => Math.abs(Number(other.dataset.block) - block);
    return cells.sort((a, b) => distance(a) - distance(b))[0];
  }
}

/** The line from the block before, so many rows above, to a branch's first one. */
function makeFork(block, rows) {
  const fork = element("span", "fork");
  fork.style.setProperty("--at", block);
  fork.style.setProperty("--rise", rows);
  return fork;
}

function element(tag, name) {
  const made = document.createElement(tag);
  made.className = name;
  return made;
}
