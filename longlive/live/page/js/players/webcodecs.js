/** H.264 frame by frame through the browser's decoder: the least delay. */

import { makeScreen, Playout } from "./playout.js";

export async function canPlay() {
  if (!("VideoDecoder" in window)) return false;
  const config = { codec: "avc1.42C01E", codedWidth: 832, codedHeight: 480 };
  return VideoDecoder.isConfigSupported(config).then(({ supported }) => supported, () => false);
}

export class WebCodecsPlayer {
  constructor(video, shown) {
    const { canvas, paint } = makeScreen(video);
    this.element = canvas;
    this._codec = video.codec;
    this._headers = new Map();
    this._needsKey = true;
    this._playout = new Playout(video.fps, paint, shown);
  }

  push(header) {
    // After a mistake in the stream only a key frame can be decoded; there is one a second.
    if (this._needsKey && !header.isKey) return;
    if (this._decoder?.state !== "configured") this._configure();
    this._needsKey = false;
    this._headers.set(header.timeUs, header);
    this._decoder.decode(
      new EncodedVideoChunk({
        type: header.isKey ? "key" : "delta",
        timestamp: header.timeUs,
        data: header.payload,
      }),
    );
    header.payload = null;
  }

  close() {
    if (this._decoder?.state === "configured") this._decoder.close();
    this._playout.close();
  }

  _configure() {
    this._headers.clear();
    this._decoder = new VideoDecoder({
      output: (frame) => this._decoded(frame),
      error: () => (this._needsKey = true),
    });
    this._decoder.configure({ codec: this._codec, optimizeForLatency: true });
  }

  _decoded(frame) {
    const header = this._headers.get(frame.timestamp);
    this._headers.delete(frame.timestamp);
    if (header) this._playout.push(frame, header);
    else frame.close();
  }
}
