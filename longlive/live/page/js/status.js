/** What the page says about the state of things; functions of one view, and where their words go. */

/**
 * @typedef {object} View
 * @property {{state: string, text: string, reason?: string}} link
 * @property {number | null} position - In the queue; 0 has the model, null is not known yet.
 * @property {number} waiting
 * @property {"idle" | "starting" | "playing" | "paused"} state
 * @property {boolean} isRecording
 * @property {boolean} hasVideo - Whether any block is known.
 * @property {number | null} heldBlock - The block gone back to.
 * @property {string} ending - Why the video ended.
 */

/** What Enter does. */
export function verb({ state, heldBlock }) {
  if (heldBlock !== null) return "Branch";
  return state === "idle" ? "Start" : "Switch";
}

/** Title and text of the card that stands in for the video; a title of null is no card. */
export function card({ link, position, state, hasVideo }) {
  const isOpen = link.state === "open";
  if (link.reason === "taken_over") {
    return ["This session goes on elsewhere", "Another window of this browser has taken it over."];
  }
  if (link.state === "closed") return ["Your turn has ended", sentence(link.text)];
  if (hasVideo && (!isOpen || position === 0)) return [null, ""];
  if (link.reason === "refused") {
    return ["The server refuses this page", "Open the address that longlive serve printed, with its token."];
  }
  if (link.state === "connecting") return ["Connecting", ""];
  if (!isOpen) return ["No connection", sentence(link.text)];
  if (position > 0) {
    const place = position === 1 ? "You are next" : `${position - 1} before you`;
    return [place, "One viewer at a time has the model. It is your turn as soon as it is free."];
  }
  if (state === "idle") {
    return ["Type a prompt and watch it happen", "The video follows what you write while it plays."];
  }
  return ["Starting", "The first frame is being made."];
}

/** The line over the video; an empty one is none. */
export function chip({ link, state, hasVideo, heldBlock, ending }) {
  if (!hasVideo) return "";
  if (link.state !== "open") return link.text;
  if (heldBlock !== null) return `Back at block ${heldBlock}: a new prompt branches from here`;
  if (state === "paused") return "Paused";
  return state === "idle" ? ending : "";
}

/** Bring the page's controls and words in line with the view. */
export function show(view, { stage, composer, keeping }) {
  const { link, position, state, hasVideo } = view;
  const isFirst = link.state === "open" && position === 0;
  const isRunning = isFirst && state !== "idle";
  composer.allow(isFirst, verb(view));
  keeping.set(view.isRecording, isRunning, isFirst && hasVideo);
  enable("start", isFirst);
  const isHeld = view.heldBlock !== null;
  enable("pause", isFirst && (isHeld || state === "playing" || state === "paused"));
  enable("stop", isRunning);
  enable("restart", isRunning);
  showPause(isHeld || state === "paused");
  showLink(view);
  stage.poster(...card(view));
  stage.chip(chip(view));
  stage.state = stageState(view);
  at("start").hidden = !(isFirst && state === "idle");
}

function stageState({ link, position, state, hasVideo }) {
  if (!hasVideo) return state === "idle" ? "idle" : "waiting";
  if (link.state !== "open") return "lost";
  return position > 0 ? "idle" : "running";
}

function showLink({ link, position, waiting }) {
  const place = at("link");
  const [state, text] = linkWords(link, position, waiting);
  place.dataset.state = state;
  write(place, text);
  at("again").hidden = link.state !== "closed";
  write(at("again"), link.reason === "taken_over" ? "Take it back" : "Connect again");
}

function linkWords(link, position, waiting) {
  if (link.state !== "open") return [link.state, link.text];
  if (position === null) return ["connecting", "Connecting"];
  return position > 0 ? ["queued", `In line: ${position} of ${waiting}`] : ["open", link.text];
}

function showPause(isPaused) {
  const button = at("pause");
  const name = isPaused ? "Go on" : "Pause";
  if (button.ariaLabel === name) return;
  button.ariaLabel = name;
  button.title = `${name} (Space)`;
  button.querySelector("use").setAttribute("href", isPaused ? "#icon-play" : "#icon-pause");
}

/** The time of a frame, beside the timeline. */
export function showClock(seconds) {
  const whole = Math.floor(seconds);
  write(at("clock"), `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`);
}

/** What became of the last request. */
export function say(text) {
  write(at("said"), text);
}

/** What went wrong; an empty text takes it away. */
export function complain(text) {
  at("trouble").hidden = !text;
  write(at("trouble"), text);
}

/** A server's line as a sentence. */
export function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(whole) ? whole : `${whole}.`;
}

function enable(id, isEnabled) {
  at(id).disabled = !isEnabled;
}

/** Screen readers repeat what is written again, so only news is. */
function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

function at(id) {
  return document.getElementById(id);
}
