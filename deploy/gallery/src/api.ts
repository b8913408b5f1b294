/** Calls of PixyProxy by gRPC-Web: sign-in, the texts of errors, and retries. */

import { create } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { ErrorInfoSchema, RetryInfoSchema } from "./generated/google/rpc/error_details_pb.js";
import { GenerationService } from "./generated/pixyproxy/v1/generation_service_pb.js";
import { ImageService, ListImagesRequestSchema } from "./generated/pixyproxy/v1/image_service_pb.js";
import { element } from "./page.js";

const CALL_TIMEOUT = 30_000;
/** Milliseconds that a stream may take; a generation may take minutes. */
export const STREAM_TIMEOUT = 600_000;
const FIRST_BACKOFF = 500;
const MAX_BACKOFF = 10_000;

// The credentials are here only: they end with the page.
let authorization = "";

const transport = createGrpcWebTransport({
  baseUrl: document.querySelector<HTMLMetaElement>("meta[name=pixyproxy]")!.content,
  defaultTimeoutMs: CALL_TIMEOUT,
  interceptors: [
    (next) => (request) => {
      if (authorization) request.header.set("authorization", authorization);
      return next(request);
    },
  ],
});

export const images = createClient(ImageService, transport);
export const generations = createClient(GenerationService, transport);

/** Send these credentials with all calls from now on; a call checks them first, and may fail. */
export async function signIn(username: string, password: string): Promise<void> {
  signOut();
  const bytes = new TextEncoder().encode(`${username}:${password}`);
  authorization = `Basic ${btoa(String.fromCharCode(...bytes))}`;
  try {
    await images.listImages(create(ListImagesRequestSchema, { pageSize: 1 }));
  } catch (error) {
    signOut();
    throw error;
  }
}

/** Forget the credentials. */
export function signOut(): void {
  authorization = "";
}

/** Return what the server says about an error, with its reason. */
export function textOf(error: unknown): string {
  if (isUnreachable(error)) return "The server cannot be reached.";
  const { rawMessage, code } = ConnectError.from(error);
  const delay = delayOf(error);
  const when = delay === undefined ? "" : ` Try again in ${Math.ceil(delay / 1000)} s.`;
  return `${rawMessage} (${reasonOf(error) ?? Code[code]})${when}`;
}

function reasonOf(error: unknown): string | undefined {
  return ConnectError.from(error).findDetails(ErrorInfoSchema)[0]?.reason;
}

/** Return after how many milliseconds the server says that another attempt makes sense. */
function delayOf(error: unknown): number | undefined {
  const delay = ConnectError.from(error).findDetails(RetryInfoSchema)[0]?.retryDelay;
  return delay && durationMs(delay);
}

/** Whether no response of PixyProxy came, but an error of the browser, which does not say why, or of a proxy. */
function isUnreachable(error: unknown): boolean {
  const { cause, code } = ConnectError.from(error);
  return cause instanceof TypeError || (code === Code.Unavailable && !reasonOf(error));
}

/**
 * Call until it succeeds or fails for good. An error with RetryInfo is retried after the time that it names; an
 * unavailable server is, with a growing pause. The button "Try again now" ends a pause.
 *
 * @param signal ends it with an error, as it ends the call
 * @param show is given what went wrong, and at the end an empty text
 */
export async function persist<T>(
  signal: AbortSignal,
  show: (problem: string) => void,
  call: () => Promise<T>,
): Promise<T> {
  try {
    for (let backoff = FIRST_BACKOFF; ; backoff = Math.min(2 * backoff, MAX_BACKOFF)) {
      try {
        return await call();
      } catch (error) {
        signal.throwIfAborted();
        const named = delayOf(error);
        const isAway = isUnreachable(error) || ConnectError.from(error).code === Code.Unavailable;
        if (named === undefined && !isAway) throw error;
        show(textOf(error));
        // Random, so that many pages do not return at the same moment. Never earlier than named.
        await pause(named ?? backoff * (0.5 + Math.random() / 2), signal);
      }
    }
  } finally {
    show("");
  }
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const ended = new AbortController();
    const end = (settle: () => void) => () => {
      ended.abort();
      clearTimeout(timer);
      settle();
    };
    const timer = setTimeout(end(resolve), milliseconds);
    element("again").addEventListener("click", end(resolve), { signal: ended.signal });
    signal.addEventListener("abort", end(() => reject(signal.reason)), { signal: ended.signal });
  });
}
