/** Reading errors, and repeating what may be repeated. */

import { setTimeout } from "node:timers/promises";

import { type ServiceError, status } from "@grpc/grpc-js";

import { BadRequest, ErrorInfo, QuotaFailure, RequestInfo, ResourceInfo, RetryInfo } from "./generated/google/rpc/error_details.js";
import { Status } from "./generated/google/rpc/status.js";

const MAX_ATTEMPTS = 5;
const FIRST_BACKOFF = 500;

/** What an error of the server says to programs. Parts that it does not have are empty. */
export interface Refusal {
  code: status;
  reason: string;
  domain: string;
  metadata: { [key: string]: string };
  requestId: string;
  /** Descriptions by field. */
  violations: { [field: string]: string };
  resource: string;
  quota: string[];
  /** Milliseconds. */
  retryAfter: number;
}

/** Read a call's error, with its google.rpc details. */
export function refusalOf(error: ServiceError): Refusal {
  const refusal: Refusal = {
    code: error.code,
    reason: "",
    domain: "",
    metadata: {},
    requestId: "",
    violations: {},
    resource: "",
    quota: [],
    retryAfter: 0,
  };
  for (const packed of error.metadata.get("grpc-status-details-bin")) {
    for (const { typeUrl, value } of Status.decode(packed as Buffer).details) {
      read(refusal, typeUrl.slice(typeUrl.lastIndexOf("/") + 1), value);
    }
  }
  return refusal;
}

function read(refusal: Refusal, type: string, value: Uint8Array): void {
  switch (type) {
    case "google.rpc.ErrorInfo":
      Object.assign(refusal, ErrorInfo.decode(value));
      break;
    case "google.rpc.RequestInfo":
      refusal.requestId = RequestInfo.decode(value).requestId;
      break;
    case "google.rpc.BadRequest":
      for (const { field, description } of BadRequest.decode(value).fieldViolations) {
        refusal.violations[field] = description;
      }
      break;
    case "google.rpc.ResourceInfo":
      refusal.resource = ResourceInfo.decode(value).resourceName;
      break;
    case "google.rpc.QuotaFailure":
      refusal.quota = QuotaFailure.decode(value).violations.map(({ subject }) => subject);
      break;
    case "google.rpc.RetryInfo": {
      const { seconds, nanos } = RetryInfo.decode(value).retryDelay ?? { seconds: 0, nanos: 0 };
      refusal.retryAfter = seconds * 1000 + nanos / 1e6;
    }
  }
}

/**
 * Make a call up to five times, as long as its errors pass with time and the deadline leaves enough.
 *
 * It is for calls that may be made twice: reads, UpdateImage, and CreateImage with a request_id.
 */
export async function repeat<Response>(deadline: Date, call: () => Promise<Response>): Promise<Response> {
  let backoff = FIRST_BACKOFF;
  for (let attempt = 1; ; attempt++) {
    try {
      return await call();
    } catch (error) {
      if (!isServiceError(error) || attempt === MAX_ATTEMPTS) throw error;
      const { code, retryAfter } = refusalOf(error);
      if (!retryAfter && code !== status.UNAVAILABLE && code !== status.ABORTED) throw error;
      const wait = retryAfter || backoff;
      if (Date.now() + wait > deadline.getTime()) throw error;
      backoff *= 2;
      await setTimeout(wait);
    }
  }
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "metadata" in error;
}
