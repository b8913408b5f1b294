/** Sending pictures into the store. */

import { createReadStream } from "node:fs";
import { Readable, type Writable } from "node:stream";

import { Metadata } from "@grpc/grpc-js";

import {
  type ImageDetail,
  type ImageServiceClient,
  type ImportImageInfo,
  ImportImageRequest,
} from "./generated/pixyproxy/v1/image_service.js";
import { repeat } from "./refusal.js";

const CHUNK_SIZE = 64 * 1024;

/**
 * Send a picture of the caller's own into the store, and return its detail.
 *
 * As the info has a requestId, it is sent again from its start where that may help.
 */
export function importImage(
  images: ImageServiceClient,
  info: ImportImageInfo,
  path: string,
  deadline: Date,
): Promise<ImageDetail> {
  return repeat(deadline, () => sendOnce(images, info, path, deadline));
}

function sendOnce(
  images: ImageServiceClient,
  info: ImportImageInfo,
  path: string,
  deadline: Date,
): Promise<ImageDetail> {
  return new Promise((resolve, reject) => {
    const messages = Readable.from(messagesOf(info, path));
    const call = images.importImage(new Metadata(), { deadline }, (error, response) => {
      messages.destroy();
      if (error) reject(error);
      else resolve(response.image!);
    });
    messages.on("error", (error) => {
      call.cancel();
      reject(error);
    });
    // Its type does not say that it is a stream of objects.
    messages.pipe(call as unknown as Writable);
  });
}

async function* messagesOf(info: ImportImageInfo, path: string): AsyncGenerator<ImportImageRequest> {
  yield ImportImageRequest.create({ info });
  for await (const data of createReadStream(path, { highWaterMark: CHUNK_SIZE })) {
    yield ImportImageRequest.create({ data });
  }
}
