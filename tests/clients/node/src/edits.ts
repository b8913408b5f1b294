import { randomUUID } from "node:crypto";

import type { ServiceError } from "@grpc/grpc-js";

import { send } from "./connect.js";
import {
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

/** Import a picture twice under one request id, and a mask; edit the picture; and provoke refusals of both. */
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
  };
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
