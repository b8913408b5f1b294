/** Watching a generation. */

import { Metadata } from "@grpc/grpc-js";

import {
  type Generation,
  type GenerationServiceClient,
  GenerationState,
  type PartialImage,
  WatchGenerationRequest,
  type WatchGenerationResponse,
} from "./generated/pixyproxy/v1/generation_service.js";
import { repeat } from "./refusal.js";

/**
 * Follow a generation until it has ended, and return it.
 *
 * A stream that breaks is asked for again, of any server; `onState` and `onPartial` are called once for each state and
 * each partial image.
 */
export async function watch(
  generations: GenerationServiceClient,
  guid: string,
  deadline: Date,
  onState: (generation: Generation) => void,
  onPartial: (image: PartialImage, data: Buffer) => void,
): Promise<Generation> {
  const request = WatchGenerationRequest.create({ guid });
  let shown: Generation | undefined;
  let nextIndex = 0;

  async function read(): Promise<Generation | undefined> {
    let image: PartialImage | undefined;
    let data = Buffer.alloc(0);
    const stream: AsyncIterable<WatchGenerationResponse> = generations.watchGeneration(request, new Metadata(), {
      deadline,
    });
    for await (const message of stream) {
      const { generation } = message;
      if (generation && (generation.state !== shown?.state || generation.attempts !== shown.attempts)) {
        shown = generation;
        onState(generation);
      }
      if (message.partialImage) {
        image = message.partialImage;
        data = Buffer.alloc(0);
      }
      if (message.data && image) {
        data = Buffer.concat([data, message.data]);
        if (data.length === image.sizeBytes && image.index >= nextIndex) {
          nextIndex = image.index + 1;
          onPartial(image, data);
        }
      }
    }
    return shown;
  }

  for (;;) {
    const generation = await repeat(deadline, read);
    if (generation && isFinal(generation.state)) return generation;
  }
}

const isFinal = (state: GenerationState) =>
  state !== GenerationState.GENERATION_STATE_QUEUED && state !== GenerationState.GENERATION_STATE_SUBMITTED;
