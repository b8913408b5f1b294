/** Signing in, and calls as promises. */

import { readFileSync } from "node:fs";

import {
  type CallOptions,
  type ChannelCredentials,
  type Client,
  type ClientUnaryCall,
  InterceptingCall,
  type Interceptor,
  Metadata,
  type ServiceError,
} from "@grpc/grpc-js";

import { GenerationServiceClient } from "./generated/pixyproxy/v1/generation_service.js";
import { ImageServiceClient } from "./generated/pixyproxy/v1/image_service.js";
import { UsageServiceClient } from "./generated/pixyproxy/v1/usage_service.js";

const SERVICE_CONFIG = readFileSync(new URL("../service_config.json", import.meta.url), "utf8");

/** Make a client that retries by the service config. Without a username nobody signs in. */
export function connect(
  address: string,
  transport: ChannelCredentials,
  username = "",
  password = "",
): ImageServiceClient {
  return new ImageServiceClient(address, transport, options(username, password));
}

/** The same for generations. */
export function connectGenerations(
  address: string,
  transport: ChannelCredentials,
  username = "",
  password = "",
): GenerationServiceClient {
  return new GenerationServiceClient(address, transport, options(username, password));
}

/** The same for usage. */
export function connectUsage(
  address: string,
  transport: ChannelCredentials,
  username = "",
  password = "",
): UsageServiceClient {
  return new UsageServiceClient(address, transport, options(username, password));
}

function options(username: string, password: string) {
  return {
    "grpc.service_config": SERVICE_CONFIG,
    interceptors: username ? [signingIn(username, password)] : [],
  };
}

function signingIn(username: string, password: string): Interceptor {
  const authorization = `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}`;
  return (options, next) =>
    new InterceptingCall(next(options), {
      start(metadata, listener, start) {
        metadata.set("authorization", authorization);
        start(metadata, listener);
      },
    });
}

type Unary<Request, Response> = (
  request: Request,
  metadata: Metadata,
  options: Partial<CallOptions>,
  callback: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

/** Make a unary call. `heard` is given the initial metadata, which holds x-request-id. */
export function send<Request, Response>(
  client: Client,
  method: Unary<Request, Response>,
  request: Request,
  options: Partial<CallOptions> = {},
  heard: (header: Metadata) => void = () => {},
): Promise<Response> {
  return new Promise((resolve, reject) => {
    method
      .call(client, request, new Metadata(), options, (error, response) => (error ? reject(error) : resolve(response)))
      .on("metadata", heard);
  });
}
