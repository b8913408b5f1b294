/** Streaming a picture into a file. */

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, type FileHandle } from "node:fs/promises";
import { pipeline } from "node:stream/promises";

import { Metadata } from "@grpc/grpc-js";

import {
  type ContentInfo,
  GetImageContentRequest,
  type GetImageContentResponse,
  type ImageServiceClient,
} from "./generated/pixyproxy/v1/image_service.js";
import { repeat } from "./refusal.js";

/**
 * Stream a picture into a file, and return how many bytes came.
 *
 * It goes on where the file ends, also after the connection was lost on the way. A file with other bytes than the
 * picture's is an error.
 */
export async function download(
  images: ImageServiceClient,
  guid: string,
  path: string,
  deadline: Date,
): Promise<number> {
  await using file = await open(path, "a");
  const start = (await file.stat()).size;
  const info = await repeat(deadline, () => appendRest(images, guid, file, deadline));
  await check(path, info);
  return (await file.stat()).size - start;
}

async function appendRest(
  images: ImageServiceClient,
  guid: string,
  file: FileHandle,
  deadline: Date,
): Promise<ContentInfo> {
  const request = GetImageContentRequest.create({ guid, readOffset: (await file.stat()).size });
  let info: ContentInfo | undefined;
  const stream: AsyncIterable<GetImageContentResponse> = images.getImageContent(request, new Metadata(), { deadline });
  for await (const message of stream) {
    info ??= message.info;
    await file.appendFile(message.data);
  }
  return info!;
}

async function check(path: string, info: ContentInfo): Promise<void> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path), hash);
  const found = hash.digest("hex");
  if (found !== info.sha256) throw new Error(`${path} has the SHA-256 ${found}, not the picture's ${info.sha256}`);
}
