/** Thumbnails of the images in view, a batch at a time. */

import { images, persist, textOf } from "./api.js";
import { problemOf } from "./page.js";

const BATCH = 60;
const KEPT = 500;

/** A thumbnail: the URL of its bytes, or the reason why there is none. */
export interface Thumbnail {
  url: string;
  error: string;
}

export class Thumbnails {
  // In the order of their last use.
  private readonly kept = new Map<string, Thumbnail>();
  private wanted: string[] = [];
  private loading?: AbortController;
  private readonly show = problemOf("thumbnails");

  /** @param loaded is called for each thumbnail that has come */
  constructor(private readonly loaded: (guid: string, thumbnail: Thumbnail) => void) {}

  /** Return a thumbnail that is here. */
  get(guid: string): Thumbnail | undefined {
    const found = this.kept.get(guid);
    if (found) {
      this.kept.delete(guid);
      this.kept.set(guid, found);
    }
    return found;
  }

  /** Load the thumbnails of the images in view; those asked for before, and not here yet, are no longer wanted. */
  want(guids: string[]): void {
    this.wanted = guids;
    if (!this.loading) void this.load();
  }

  /** Forget all, and end the call that is made. */
  clear(): void {
    this.wanted = [];
    this.loading?.abort();
    for (const { url } of this.kept.values()) URL.revokeObjectURL(url);
    this.kept.clear();
  }

  private async load(): Promise<void> {
    const controller = (this.loading = new AbortController());
    const { signal } = controller;
    try {
      for (let guids; (guids = this.missing()).length; ) {
        const { thumbnails } = await persist(signal, this.show, () => {
          guids = this.missing();
          return images.batchGetThumbnails({ guids }, { signal });
        });
        signal.throwIfAborted();
        for (const { guid, data, contentType, error } of thumbnails) {
          const url = error ? "" : URL.createObjectURL(new Blob([data as BlobPart], { type: contentType }));
          this.keep(guid, { url, error });
        }
      }
    } catch (error) {
      if (!signal.aborted) this.show(textOf(error));
    } finally {
      this.loading = undefined;
      // What was wanted while the call ended.
      if (signal.aborted && this.missing().length) void this.load();
    }
  }

  /** The next ones to ask for, after what is no longer in view was dropped. */
  private missing(): string[] {
    return this.wanted.filter((guid) => !this.kept.has(guid)).slice(0, BATCH);
  }

  private keep(guid: string, thumbnail: Thumbnail): void {
    this.kept.set(guid, thumbnail);
    this.loaded(guid, thumbnail);
    for (const [oldest, { url }] of this.kept) {
      if (this.kept.size <= KEPT) break;
      URL.revokeObjectURL(url);
      this.kept.delete(oldest);
    }
  }
}
