/** What is drawn until an image is loaded. */

import { thumbHashToRGBA } from "thumbhash";

/** Draw a ThumbHash; nothing where there is none. */
export function drawPlaceholder(canvas: HTMLCanvasElement, hash: Uint8Array): void {
  if (!hash.length) return;
  const { w, h, rgba } = thumbHashToRGBA(hash);
  canvas.width = w;
  canvas.height = h;
  canvas.getContext("2d")!.putImageData(new ImageData(new Uint8ClampedArray(rgba), w, h), 0, 0);
}
