/** One image, large, with its detail. */

import { timestampDate } from "@bufbuild/protobuf/wkt";

import { images, persist, STREAM_TIMEOUT, textOf } from "./api.js";
import { type ImageDetail, Rendition, Visibility } from "./generated/pixyproxy/v1/image_service_pb.js";
import { element, make } from "./page.js";
import { drawPlaceholder } from "./placeholder.js";

const SMALL_WINDOW = 1024;

/** Open the dialog for an image, until the user closes it. */
export async function view(image: ImageDetail): Promise<void> {
  const dialog = element<HTMLDialogElement>("viewer");
  const progress = element<HTMLProgressElement>("viewer-progress");
  const picture = dialog.querySelector("img")!;
  const closed = new AbortController();
  let url = "";
  picture.removeAttribute("src");
  picture.alt = image.prompt || image.filename;
  element("viewer-prompt").textContent = image.prompt;
  dialog.querySelector("dl")!.replaceChildren(...describe(image));
  const frame = dialog.querySelector<HTMLElement>(".picture")!;
  frame.style.aspectRatio = `${image.width} / ${image.height}`;
  const canvas = dialog.querySelector("canvas")!;
  canvas.getContext("2d")!.clearRect(0, 0, canvas.width, canvas.height);
  drawPlaceholder(canvas, image.placeholder);
  dialog.addEventListener(
    "close",
    () => {
      closed.abort();
      URL.revokeObjectURL(url);
    },
    { once: true },
  );
  dialog.showModal();
  const showProblem = (text: string) => (element("viewer-problem").textContent = text);
  progress.hidden = false;
  try {
    const content = await persist(closed.signal, showProblem, () =>
      read(image.guid, closed.signal, (part) => (progress.value = part)),
    );
    closed.signal.throwIfAborted();
    picture.src = url = URL.createObjectURL(content);
  } catch (error) {
    if (!closed.signal.aborted) showProblem(textOf(error));
  } finally {
    // A dialog that was opened again has a progress of its own.
    if (!closed.signal.aborted) progress.hidden = true;
  }
}

async function read(guid: string, signal: AbortSignal, show: (part: number) => void): Promise<Blob> {
  const pixels = innerWidth * devicePixelRatio;
  const rendition = pixels <= SMALL_WINDOW ? Rendition.RENDITION_1024 : Rendition.RENDITION_2048;
  const parts: BlobPart[] = [];
  let size = 0;
  let received = 0;
  let type = "";
  for await (const { info, data } of images.getImageContent({ guid, rendition }, { signal, timeoutMs: STREAM_TIMEOUT })) {
    if (info) {
      size = Number(info.sizeBytes);
      type = info.contentType;
    }
    parts.push(data as BlobPart);
    received += data.length;
    show(size && received / size);
  }
  return new Blob(parts, { type });
}

function describe(image: ImageDetail): HTMLElement[] {
  const size = `${image.width} × ${image.height}, ${Math.ceil(Number(image.sizeBytes) / 1024)} KiB`;
  const rows = {
    File: image.filename,
    Author: image.author,
    Visibility: image.visibility === Visibility.PUBLIC ? "public" : "private",
    Created: image.createdAt ? timestampDate(image.createdAt).toLocaleString() : "",
    Size: `${size}, ${image.contentType}`,
    Tags: image.tags.join(", "),
    Model: image.model,
  };
  return Object.entries(rows).flatMap(([name, value]) => (value ? [make("dt", name), make("dd", value)] : []));
}
