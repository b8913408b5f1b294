import { randomUUID } from "node:crypto";
import { truncate } from "node:fs/promises";
import { join } from "node:path";

import { Metadata, type ServiceError } from "@grpc/grpc-js";

import { send } from "./connect.js";
import { download } from "./download.js";
import {
  CreateImageRequest,
  DeleteImageRequest,
  GetImageContentRequest,
  GetImageRequest,
  type ImageDetail,
  type ImageServiceClient,
  ListImagesRequest,
  UpdateImageRequest,
  visibilityToJSON,
} from "./generated/pixyproxy/v1/image_service.js";
import {
  GetQuotaRequest,
  SummarizeUsageRequest,
  UsageGrouping,
  type UsageServiceClient,
} from "./generated/pixyproxy/v1/usage_service.js";
import { refusalOf, repeat } from "./refusal.js";

const SIZE = "64x64";
const MAX_SIGN_INS = 10;
const RESUME_OFFSET = 100_000;

type Connect = (username?: string, password?: string) => ImageServiceClient;
type Hear = (header: Metadata) => void;

/** Take a picture from its creation to its end, and provoke every error that a client can. */
export async function journey(
  images: ImageServiceClient,
  usage: UsageServiceClient,
  words: string[],
  deadline: Date,
  connectAs: Connect,
) {
  const [folder, word, others, damaged] = words;
  const request = createRequest(word);
  const created = await create(images, request, deadline);
  const again = await send(images, images.createImage, request, { deadline });
  let header = new Metadata();
  const getRequest = GetImageRequest.create({ guid: created.guid });
  const got = await send(images, images.getImage, getRequest, { deadline }, (heard) => (header = heard));
  const pages = await list(images, word, deadline);
  const search = ListImagesRequest.create({ prompt: `lighthouse ${word}` });
  const found = await send(images, images.listImages, search, { deadline });
  const path = join(folder, "picture.png");
  const received = await download(images, created.guid, path, deadline);
  await truncate(path, RESUME_OFFSET);
  const resumed = await download(images, created.guid, path, deadline);
  const change = UpdateImageRequest.create({
    guid: created.guid,
    filename: "not in the mask.png",
    tags: ["night"],
    updateMask: ["tags"],
  });
  const updated = await send(images, images.updateImage, change, { deadline });
  const refusals = await provoke(images, created, request, { word, others, damaged }, deadline, connectAs);
  await send(images, images.deleteImage, DeleteImageRequest.create({ guid: created.guid }), { deadline });
  return {
    created: describe(created),
    again: again.image!.guid,
    got: describe(got.image!),
    request_id: header.get("x-request-id")[0],
    pages,
    found: guids(found.images),
    path,
    received,
    resumed,
    updated: describe(updated.image!),
    refusals,
    usage: await summarize(usage, deadline),
    quotas: await getQuotas(usage, deadline),
  };
}

async function summarize(usage: UsageServiceClient, deadline: Date) {
  const groupBy = [UsageGrouping.USAGE_GROUPING_AUTHOR, UsageGrouping.USAGE_GROUPING_DAY];
  const request = SummarizeUsageRequest.create({ groupBy });
  const { rows } = await send(usage, usage.summarizeUsage, request, { deadline });
  return rows.map(({ author, day, images, unknownOutcomes }) => ({
    author,
    day,
    images,
    unknown_outcomes: unknownOutcomes,
  }));
}

async function getQuotas(usage: UsageServiceClient, deadline: Date) {
  const { quotas } = await send(usage, usage.getQuota, GetQuotaRequest.create(), { deadline });
  return quotas.map(({ name, limit, used, resetsAt }) => ({
    name,
    limit,
    used,
    resets_at: resetsAt ? resetsAt.getTime() / 1000 : 0,
  }));
}

export function createRequest(word: string): CreateImageRequest {
  return CreateImageRequest.create({
    prompt: `A lighthouse in a storm 🌊 ${word} [[fault:large=300000]]`,
    tags: ["sea", "日の出"],
    requestId: randomUUID(),
    options: { size: SIZE },
  });
}

export async function create(
  images: ImageServiceClient,
  request: CreateImageRequest,
  deadline: Date,
): Promise<ImageDetail> {
  const { image } = await repeat(deadline, () => send(images, images.createImage, request, { deadline }));
  return image!;
}

async function list(images: ImageServiceClient, tag: string, deadline: Date): Promise<string[][]> {
  const pages = [];
  const request = ListImagesRequest.create({ tags: [tag], pageSize: 2 });
  do {
    const page = await send(images, images.listImages, request, { deadline });
    pages.push(guids(page.images));
    request.pageToken = page.nextPageToken;
  } while (request.pageToken);
  return pages;
}

const guids = (images: ImageDetail[]) => images.map(({ guid }) => guid);

export function describe(image: ImageDetail) {
  return {
    guid: image.guid,
    prompt: image.prompt,
    filename: image.filename,
    tags: image.tags,
    author: image.author,
    visibility: visibilityToJSON(image.visibility),
    size_bytes: image.sizeBytes,
    sha256: image.sha256,
  };
}

/** Make a call for each reason that an error can have, and return the errors by the reasons they should have. */
async function provoke(
  images: ImageServiceClient,
  image: ImageDetail,
  used: CreateImageRequest,
  { word, others, damaged }: { word: string; others: string; damaged: string },
  deadline: Date,
  connectAs: Connect,
) {
  const asNobody = connectAs();
  const asStranger = connectAs(`stranger-${word}`, "a wrong password");
  const creating = (prompt: string) => (hear: Hear) =>
    send(
      images,
      images.createImage,
      CreateImageRequest.create({ prompt: prompt + word, options: { size: SIZE } }),
      { deadline },
      hear,
    );
  const reading = (guid: string, readOffset: number) => async (hear: Hear) => {
    const request = GetImageContentRequest.create({ guid, readOffset });
    for await (const _ of images.getImageContent(request, new Metadata(), { deadline }).on("metadata", hear));
  };
  const signingIn = (hear: Hear) =>
    send(asStranger, asStranger.listImages, ListImagesRequest.create(), { deadline }, hear);

  const provocations: { [reason: string]: (hear: Hear) => Promise<unknown> } = {
    INVALID_FIELD: (hear) =>
      send(images, images.createImage, CreateImageRequest.create({ filename: "a/b" }), { deadline }, hear),
    CREDENTIALS_MISSING: (hear) =>
      send(asNobody, asNobody.deleteImage, DeleteImageRequest.create({ guid: image.guid }), { deadline }, hear),
    CREDENTIALS_INVALID: signingIn,
    TOO_MANY_SIGN_INS: async (hear) => {
      for (let failed = 1; failed < MAX_SIGN_INS; failed++) await signingIn(() => {}).catch(() => {});
      return signingIn(hear);
    },
    NOT_YOURS: (hear) =>
      send(
        images,
        images.updateImage,
        UpdateImageRequest.create({ guid: others, tags: ["mine"] }),
        { deadline },
        hear,
      ),
    IMAGE_NOT_FOUND: (hear) =>
      send(
        images,
        images.getImage,
        GetImageRequest.create({ guid: "00000000-0000-0000-0000-000000000000" }),
        { deadline },
        hear,
      ),
    REQUEST_ID_REUSED: (hear) =>
      send(
        images,
        images.createImage,
        CreateImageRequest.create({ prompt: "another", requestId: used.requestId }),
        { deadline },
        hear,
      ),
    OFFSET_OUT_OF_RANGE: reading(image.guid, image.sizeBytes + 1),
    CONTENT_DAMAGED: reading(damaged, 0),
    PROMPT_REFUSED: creating("[[fault:moderation_blocked:stage=input:categories=violence,hate]]"),
    PROVIDER_RATE_LIMITED: creating("[[fault:429:retry-after=3000]]"),
    PROVIDER_QUOTA: creating("[[fault:429:code=insufficient_quota]]"),
    PROVIDER_MISCONFIGURED: creating("[[fault:401]]"),
    PROVIDER_UNAVAILABLE: creating("[[fault:502]]"),
    PROVIDER_TIMEOUT: creating("[[fault:504]]"),
    OUTCOME_UNKNOWN: creating("[[fault:drop]]"),
  };
  const refusals: { [reason: string]: object } = {};
  for (const [reason, provocation] of Object.entries(provocations)) {
    let header = new Metadata();
    try {
      await provocation((heard) => (header = heard));
    } catch (error) {
      refusals[reason] = explain(error as ServiceError, header);
    }
  }
  asNobody.close();
  asStranger.close();
  return refusals;
}

function explain(error: ServiceError, header: Metadata) {
  const { requestId, retryAfter, ...refusal } = refusalOf(error);
  return {
    ...refusal,
    request_id: requestId,
    header_request_id: header.get("x-request-id"),
    retry_after: retryAfter / 1000,
  };
}
