/** The wire format, as docs/live-protocol.md describes it. */

export const VERSION = 1;

export const Kind = { H264: 0, MP4_HEADER: 1, MP4: 2, JPEG: 3 };
export const Flag = { KEY: 1, FIRST_OF_PROMPT: 2, JUMP: 4 };

const HEADER_BYTES = 32;

/** Take a binary message apart; null if it is not of this version. */
export function readPicture(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < HEADER_BYTES || view.getUint8(0) !== VERSION) return null;
  const flags = view.getUint8(2);
  return {
    kind: view.getUint8(1),
    isKey: Boolean(flags & Flag.KEY),
    isFirstOfPrompt: Boolean(flags & Flag.FIRST_OF_PROMPT),
    isJump: Boolean(flags & Flag.JUMP),
    serial: view.getUint32(4, true),
    branch: view.getUint32(8, true),
    block: view.getUint32(12, true),
    frame: view.getUint32(16, true),
    prompt: view.getUint32(20, true),
    timeUs: Number(view.getBigUint64(24, true)),
    payload: new Uint8Array(buffer, HEADER_BYTES),
  };
}
