/** Which transports this browser can show, best first, and the player of each. */

import { JpegPlayer } from "./jpeg.js";
import { canPlay as canPlayMse, MsePlayer } from "./mse.js";
import { canPlay as canPlayWebCodecs, WebCodecsPlayer } from "./webcodecs.js";

const PLAYERS = { webcodecs: WebCodecsPlayer, mse: MsePlayer, jpeg: JpegPlayer };

export const NAMES = { webcodecs: "WebCodecs", mse: "MSE", jpeg: "JPEG" };

export async function playableTransports() {
  const transports = [];
  if (await canPlayWebCodecs()) transports.push("webcodecs");
  if (canPlayMse()) transports.push("mse");
  transports.push("jpeg");
  return transports;
}

/** The same transports with one of them first; unchanged if it cannot be played. */
export function preferring(transports, first) {
  if (!transports.includes(first)) return transports;
  return [first, ...transports.filter((name) => name !== first)];
}

/** @param {object} video - The `video` message. */
export function makePlayer(video, shown) {
  return new PLAYERS[video.transport](video, shown);
}
