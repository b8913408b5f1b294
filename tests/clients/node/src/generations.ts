import { createHash, randomUUID } from "node:crypto";

import type { ServiceError } from "@grpc/grpc-js";

import { send } from "./connect.js";
import {
  CancelGenerationRequest,
  CreateGenerationRequest,
  type Generation,
  type GenerationServiceClient,
  generationStateToJSON,
} from "./generated/pixyproxy/v1/generation_service.js";
import { refusalOf, repeat } from "./refusal.js";
import { watch } from "./watch.js";

/** Start a generation at one server, and watch it at another one. */
export async function watches(here: GenerationServiceClient, there: GenerationServiceClient, deadline: Date) {
  const { guid } = await start(here, deadline);
  const states: string[] = [];
  const partials: string[] = [];
  const ended = await watch(
    there,
    guid,
    deadline,
    ({ state }) => states.push(generationStateToJSON(state)),
    ({ contentType }, data) => partials.push(`${contentType} ${createHash("sha256").update(data).digest("hex")}`),
  );
  return { guid, states, partials, image: ended.image!.guid };
}

/** Start a generation, cancel it twice, and try to cancel one that has ended. */
export async function cancels(generations: GenerationServiceClient, another: string, deadline: Date) {
  const cancel = (guid: string) =>
    send(generations, generations.cancelGeneration, CancelGenerationRequest.create({ guid }), { deadline });
  const started = await start(generations, deadline);
  const cancelled = [await cancel(started.guid), await cancel(started.guid)].map(({ generation }) => generation!);
  const refused = await cancel(another).then(
    () => "",
    (error: ServiceError) => refusalOf(error).reason,
  );
  const states = [started, ...cancelled].map(({ state }) => generationStateToJSON(state));
  return { guid: started.guid, states, refused };
}

async function start(generations: GenerationServiceClient, deadline: Date): Promise<Generation> {
  const request = CreateGenerationRequest.create({
    request: { prompt: "A lighthouse", requestId: randomUUID(), options: { size: "64x64", partialImages: 2 } },
  });
  const { generation } = await repeat(deadline, () =>
    send(generations, generations.createGeneration, request, { deadline }),
  );
  return generation!;
}
