/** The images that are found, page by page. */

import { images, persist, textOf } from "./api.js";
import type { ImageDetail } from "./generated/pixyproxy/v1/image_service_pb.js";
import { announce, problemOf } from "./page.js";

const PAGE_SIZE = 200;

export class ImageList {
  private found: ImageDetail[] = [];
  private prompt = "";
  private pageToken = "";
  private controller = new AbortController();
  private isLoading = false;
  private readonly showProblem = problemOf("list");

  /** @param show is given the images found so far, whether they are all, and whether they are others than before */
  constructor(private readonly show: (images: ImageDetail[], isComplete: boolean, isNew: boolean) => void) {}

  /** Find the images whose prompts have these words; the call for those before ends. */
  async search(prompt: string): Promise<void> {
    this.controller.abort();
    this.controller = new AbortController();
    this.prompt = prompt;
    await this.load(this.controller.signal, "");
  }

  /** Get the next page, unless it is on its way. */
  async more(): Promise<void> {
    if (!this.isLoading && this.pageToken) await this.load(this.controller.signal, this.pageToken);
  }

  /** Show an image that is new, before all others, where these are not the results of a search. */
  add(image: ImageDetail): void {
    if (this.prompt || this.found.some(({ guid }) => guid === image.guid)) return;
    this.found = [image, ...this.found];
    announce(this.summary());
    this.show(this.found, !this.pageToken, true);
  }

  private async load(signal: AbortSignal, pageToken: string): Promise<void> {
    this.isLoading = true;
    try {
      const page = await persist(signal, this.showProblem, () =>
        images.listImages({ prompt: this.prompt, pageSize: PAGE_SIZE, pageToken }, { signal }),
      );
      signal.throwIfAborted();
      this.found = pageToken ? [...this.found, ...page.images] : page.images;
      this.pageToken = page.nextPageToken;
      this.isLoading = false;
      if (!pageToken || !this.pageToken) announce(this.summary());
      this.show(this.found, !this.pageToken, !pageToken);
    } catch (error) {
      // A later search has begun, and loads.
      if (signal.aborted) return;
      this.isLoading = false;
      this.showProblem(textOf(error));
    }
  }

  private summary(): string {
    const count = this.found.length;
    if (!count) return "No images found.";
    return this.pageToken ? `${count} images, more below.` : `${count} ${count === 1 ? "image" : "images"}.`;
  }
}
