import { randomUUID } from "node:crypto";

import type { ServiceError } from "@grpc/grpc-js";

import { send } from "./connect.js";
import {
  BatchGetThumbnailsRequest,
  CreateImageRequest,
  type ImageDetail,
  type ImageServiceClient,
  ImportImageInfo,
  originToJSON,
} from "./generated/pixyproxy/v1/image_service.js";
import { importImage } from "./import.js";
import { describe } from "./journey.js";
import { refusalOf, repeat } from "./refusal.js";

const NOBODYS = "00000000-0000-0000-0000-000000000000";

/** Import a picture twice under one request id, and a mask; edit the picture; get thumbnails; and provoke refusals. */
export async function edits(images: ImageServiceClient, [photo, maskFile]: string[], deadline: Date) {
  const info = ImportImageInfo.create({ prompt: "a photo", tags: ["holiday"], requestId: randomUUID() });
  const imported = await importImage(images, info, photo, deadline);
  const again = await importImage(images, info, photo, deadline);
  const mask = await importImage(images, ImportImageInfo.create({ requestId: randomUUID() }), maskFile, deadline);
  const request = CreateImageRequest.create({
    prompt: "The same by night",
    requestId: randomUUID(),
    inputs: [{ guid: imported.guid }],
    mask: { guid: mask.guid },
    options: { quality: "high" },
  });
  const edited = await repeat(deadline, () => send(images, images.createImage, request, { deadline }));
  const wrong = ImportImageInfo.create({ requestId: randomUUID(), sha256: `00${imported.sha256.slice(2)}` });
  const inputs = [{ guid: imported.guid }, { guid: NOBODYS }];
  return {
    imported: describeSource(imported),
    again: again.guid,
    edited: describeSource(edited.image!),
    damaged: await refused(importImage(images, wrong, photo, deadline)),
    missing: await refused(
      send(images, images.createImage, CreateImageRequest.create({ prompt: "Nothing", inputs }), { deadline }),
    ),
    thumbnails: await thumbnailsOf(images, [imported.guid, NOBODYS, edited.image!.guid], deadline),
  };
}

/** Ask for thumbnails until all have come: a call may leave some to the next one. */
async function thumbnailsOf(images: ImageServiceClient, wanted: string[], deadline: Date) {
  const found = [];
  for (let guids = wanted; guids.length; ) {
    const request = BatchGetThumbnailsRequest.create({ guids });
    const { thumbnails, nextGuids } = await send(images, images.batchGetThumbnails, request, { deadline });
    for (const { guid, contentType, width, height, data, error } of thumbnails) {
      found.push({ guid, content_type: contentType, width, height, is_there: data.length > 0, error });
    }
    guids = nextGuids;
  }
  return found;
}

function describeSource(image: ImageDetail) {
  return {
    ...describe(image),
    origin: originToJSON(image.origin),
    source_guids: image.sourceGuids,
    quality: image.options?.quality ?? "",
  };
}

const refused = (call: Promise<unknown>) =>
  call.then(
    () => ({}),
    (error: ServiceError) => refusalOf(error),
  );
