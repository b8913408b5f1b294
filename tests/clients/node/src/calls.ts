import { randomUUID } from "node:crypto";
import { join } from "node:path";

import { Metadata, type ServiceError, status } from "@grpc/grpc-js";

import { send } from "./connect.js";
import { download } from "./download.js";
import {
  CancelGenerationRequest,
  CreateGenerationRequest,
  type GenerationServiceClient,
  GetGenerationRequest,
  ListGenerationsRequest,
  WatchGenerationRequest,
} from "./generated/pixyproxy/v1/generation_service.js";
import {
  BatchGetThumbnailsRequest,
  CreateImageRequest,
  DeleteImageRequest,
  GetImageContentRequest,
  GetImageRequest,
  type ImageServiceClient,
  ListImagesRequest,
  UpdateImageRequest,
} from "./generated/pixyproxy/v1/image_service.js";
import {
  GetQuotaRequest,
  SummarizeUsageRequest,
  type UsageServiceClient,
} from "./generated/pixyproxy/v1/usage_service.js";
import { create, createRequest } from "./journey.js";

/** Make each call once, and report with which codes they ended: what is sent again, gRPC itself sent again. */
export async function calls(
  images: ImageServiceClient,
  generations: GenerationServiceClient,
  usage: UsageServiceClient,
  deadline: Date,
) {
  const guid = randomUUID();
  const content = async () => {
    const request = GetImageContentRequest.create({ guid });
    for await (const _ of images.getImageContent(request, new Metadata(), { deadline }));
  };
  const importing = () =>
    new Promise<void>((resolve, reject) => {
      images.importImage(new Metadata(), { deadline }, (error) => (error ? reject(error) : resolve())).end();
    });
  const watching = async () => {
    const request = WatchGenerationRequest.create();
    for await (const _ of generations.watchGeneration(request, new Metadata(), { deadline }));
  };
  const made = {
    CreateImage: send(images, images.createImage, CreateImageRequest.create({ prompt: "a lighthouse" }), { deadline }),
    GetImage: send(images, images.getImage, GetImageRequest.create({ guid }), { deadline }),
    ListImages: send(images, images.listImages, ListImagesRequest.create(), { deadline }),
    GetImageContent: content(),
    UpdateImage: send(images, images.updateImage, UpdateImageRequest.create({ guid, tags: ["sea"] }), { deadline }),
    DeleteImage: send(images, images.deleteImage, DeleteImageRequest.create({ guid }), { deadline }),
    BatchGetThumbnails: send(
      images,
      images.batchGetThumbnails,
      BatchGetThumbnailsRequest.create({ guids: [guid] }),
      { deadline },
    ),
    ImportImage: importing(),
    CreateGeneration: send(generations, generations.createGeneration, CreateGenerationRequest.create(), { deadline }),
    GetGeneration: send(generations, generations.getGeneration, GetGenerationRequest.create(), { deadline }),
    ListGenerations: send(generations, generations.listGenerations, ListGenerationsRequest.create(), { deadline }),
    WatchGeneration: watching(),
    CancelGeneration: send(generations, generations.cancelGeneration, CancelGenerationRequest.create(), { deadline }),
    SummarizeUsage: send(usage, usage.summarizeUsage, SummarizeUsageRequest.create(), { deadline }),
    GetQuota: send(usage, usage.getQuota, GetQuotaRequest.create(), { deadline }),
  };
  const ended: { [method: string]: status } = {};
  await Promise.all(
    Object.entries(made).map(async ([method, call]) => {
      ended[method] = await call.then(
        () => status.OK,
        (error: ServiceError) => error.code,
      );
    }),
  );
  return ended;
}

/** Create and download a picture at a server that refuses once what it then does. */
export async function repeats(images: ImageServiceClient, [folder]: string[], deadline: Date) {
  const { guid } = await create(images, createRequest("again"), deadline);
  const path = join(folder, "picture.png");
  return { guid, path, received: await download(images, guid, path, deadline) };
}
