/** Puts the page together: what the server says goes to the parts, what people do goes to it. */

import { asked } from "./address.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { Keeping } from "./keeping.js";
import { listenForKeys } from "./keys.js";
import { Live } from "./live.js";
import { Meter } from "./meter.js";
import { Overlay } from "./overlay.js";
import { NAMES, playableTransports, preferring } from "./players/choose.js";
import { Session } from "./session.js";
import { Settings } from "./settings.js";
import { Stage } from "./stage.js";
import { Timeline } from "./timeline.js";

const at = (id) => document.getElementById(id);

const transports = await playableTransports();
const connection = new Connection(preferring(transports, asked("transport")));
const session = new Session();
const stage = new Stage(at("stage"));
const meter = new Meter(16);
const parts = {
  connection,
  session,
  stage,
  meter,
  settings: new Settings(document.querySelector(".dock")),
  overlay: new Overlay(at("overlay"), at("stats"), meter),
  keeping: new Keeping(document.querySelector(".dock"), (type) => connection.request(type)),
  composer: new Composer(at("composer"), at("samples"), (prompt, time) => live.send(prompt, time)),
  timeline: new Timeline(at("strip"), session, (branch, block) => live.goBack(branch, block)),
};
const live = new Live(parts);

connection.addEventListener("message", ({ detail }) => live.take(detail));
connection.addEventListener("picture", ({ detail }) => stage.push(detail));
connection.addEventListener("link", ({ detail }) => live.linkChanged(detail));

at("start").addEventListener("click", (event) => parts.composer.send(event.timeStamp));
at("pause").addEventListener("click", () => live.togglePause());
at("restart").addEventListener("click", (event) => live.start(parts.composer.prompt, event.timeStamp));
at("stop").addEventListener("click", () => connection.request("stop"));
at("again").addEventListener("click", () => connection.reconnect());
at("keys").addEventListener("click", () => at("help").showModal());

const choice = at("transport");
choice.replaceChildren(...transports.map((name) => new Option(NAMES[name], name)));
choice.value = connection.transports[0];
choice.addEventListener("change", () => {
  connection.reconnect(preferring(transports, choice.value));
});

listenForKeys(
  {
    "/": () => parts.composer.focus(),
    " ": () => live.togglePause(),
    t: () => parts.timeline.focus(),
    r: () => parts.keeping.toggle(),
    m: () => parts.overlay.toggle(),
    f: () => stage.toggleFullScreen(),
    "?": () => at("help").showModal(),
    escape: () => (parts.composer.hasFocus ? parts.composer.leave() : live.leaveBlock()),
  },
  at("help"),
  at("single-keys"),
);

connection.connect();
