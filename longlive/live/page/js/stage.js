/** The video and what is said over it. */

import { makePlayer } from "./players/choose.js";

export class Stage {
  constructor(root) {
    this._root = root;
    this._screen = root.querySelector("#screen");
    this._poster = root.querySelector("#poster");
    this._title = root.querySelector("#poster-title");
    this._text = root.querySelector("#poster-text");
    this._chip = root.querySelector("#chip");
    this._preview = root.querySelector("#preview");
    this._player = null;
    root.querySelector("#full").addEventListener("click", () => this.toggleFullScreen());
  }

  /** Take a `video` message: pictures of this form follow. The old picture stays until then. */
  expect(video, shown) {
    this._player?.close();
    const player = makePlayer(video, (header, now) => {
      if (player !== this._player) return;
      this._show(player.element);
      shown(header, now);
    });
    player.element.setAttribute("aria-label", "Video");
    // A video element decodes only inside the document.
    if (player.element instanceof HTMLVideoElement) this._screen.append(player.element);
    this._player = player;
    this._root.style.setProperty("--aspect", `${video.width} / ${video.height}`);
  }

  push(picture) {
    this._player?.push(picture);
  }

  describe(prompt) {
    this._player?.element.setAttribute("aria-label", prompt ? `Video: ${prompt}` : "Video");
  }

  /** @param {"idle" | "waiting" | "running" | "lost"} state */
  set state(state) {
    this._root.dataset.state = state;
  }

  /** A card instead of the video; null takes it away. */
  poster(title, text) {
    this._poster.hidden = title === null;
    if (title === null) return;
    this._title.textContent = title;
    this._text.textContent = text;
  }

  /** A line over the video; an empty one takes it away. */
  chip(text) {
    this._chip.hidden = !text;
    this._chip.textContent = text;
  }

  /** A still over the video; null takes it away. */
  preview(picture) {
    this._preview.hidden = !picture;
    if (picture) this._preview.src = picture;
  }

  /** Color the surroundings a little like a picture. */
  async tint(picture) {
    if (!picture) return;
    const image = new Image();
    image.src = picture;
    await image.decode();
    const dot = new OffscreenCanvas(1, 1).getContext("2d");
    dot.imageSmoothingQuality = "high";
    dot.drawImage(image, 0, 0, 1, 1);
    const [r, g, b] = dot.getImageData(0, 0, 1, 1).data;
    this._root.style.setProperty("--tint", `rgb(${r} ${g} ${b})`);
  }

  toggleFullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this._root.requestFullscreen?.().catch(() => {});
  }

  _show(element) {
    if (this._screen.childElementCount === 1 && element.parentElement === this._screen) return;
    this._screen.replaceChildren(element);
  }
}
