/** Creating images: each generation has an entry with its state, its partial images, and a button to cancel it. */

import { Code, ConnectError } from "@connectrpc/connect";

import { generations, persist, STREAM_TIMEOUT, textOf } from "./api.js";
import { type Generation, GenerationState } from "./generated/pixyproxy/v1/generation_service_pb.js";
import type { ImageDetail } from "./generated/pixyproxy/v1/image_service_pb.js";
import { element, make } from "./page.js";
import { view } from "./viewer.js";

/** Without TLS a browser has at most six connections to a server, and each watch needs one. */
const AT_ONCE = 3;
const PARTIAL_IMAGES = 2;

const STATES: Record<GenerationState, string> = {
  [GenerationState.UNSPECIFIED]: "Sent",
  [GenerationState.QUEUED]: "Queued",
  [GenerationState.SUBMITTED]: "Generating",
  [GenerationState.SUCCEEDED]: "Done",
  [GenerationState.FAILED]: "Failed",
  [GenerationState.CANCELLED]: "Cancelled",
  [GenerationState.OUTCOME_UNKNOWN]: "Outcome unknown",
};

const running = new Set<Entry>();

/** Start what the form says. `created` is given the image. */
export async function start(form: HTMLFormElement, created: (image: ImageDetail) => void): Promise<void> {
  const fields = new FormData(form);
  const entry = new Entry(String(fields.get("prompt")), created);
  element("generations").prepend(entry.item);
  if (running.size >= AT_ONCE) {
    entry.showProblem(`Only ${AT_ONCE} images can be created at once. Wait for one of them.`);
    return;
  }
  running.add(entry);
  try {
    await entry.run(fields.has("partial-images") ? PARTIAL_IMAGES : 0);
  } finally {
    running.delete(entry);
  }
}

/** Watch no longer, and remove all entries. The generations themselves go on. */
export function leaveAll(): void {
  for (const entry of running) entry.leave();
  element("generations").replaceChildren();
}

class Entry {
  readonly item = make("li");
  private readonly state = make("p");
  private readonly problem = make("p");
  private readonly picture = make("img");
  private readonly cancel = make("button", "Cancel");
  private readonly left = new AbortController();
  private url = "";

  constructor(
    private readonly prompt: string,
    private readonly created: (image: ImageDetail) => void,
  ) {
    this.state.role = "status";
    this.problem.role = "alert";
    this.problem.className = "problem";
    this.picture.alt = "";
    this.picture.hidden = true;
    this.cancel.type = "button";
    this.cancel.hidden = true;
    this.item.tabIndex = -1;
    this.item.append(make("p", prompt), this.state, this.problem, this.picture, this.cancel);
  }

  readonly showProblem = (text: string) => {
    this.problem.textContent = text;
  };

  leave(): void {
    this.left.abort();
    URL.revokeObjectURL(this.url);
  }

  /** Start the generation, and watch it to its end. Under its request id, repeating the call starts no second one. */
  async run(partialImages: number): Promise<void> {
    const { signal } = this.left;
    const request = { prompt: this.prompt, requestId: crypto.randomUUID(), options: { partialImages } };
    try {
      const { generation } = await persist(signal, this.showProblem, () =>
        generations.createGeneration({ request }, { signal }),
      );
      this.cancel.addEventListener("click", () => void this.cancelIt(generation!.guid));
      const ended = await this.watch(generation!);
      if (ended.image) this.showImage(ended.image);
      if (ended.error) this.showProblem(`${ended.error.message} (${ended.error.reason})`);
    } catch (error) {
      if (!signal.aborted) this.showProblem(textOf(error));
    } finally {
      this.showCancel(false);
    }
  }

  private async watch(started: Generation): Promise<Generation> {
    const { signal } = this.left;
    let last = started;
    while (!isFinal(last)) {
      last = await persist(signal, this.showProblem, async () => {
        try {
          return await this.watchOnce(last);
        } catch (error) {
          // The stream took too long, but the generation goes on.
          if (ConnectError.from(error).code === Code.DeadlineExceeded) return last;
          throw error;
        }
      });
    }
    return last;
  }

  private async watchOnce(last: Generation): Promise<Generation> {
    const options = { signal: this.left.signal, timeoutMs: STREAM_TIMEOUT };
    let type = "";
    let missing = 0;
    let parts: BlobPart[] = [];
    const key = { case: "guid", value: last.guid } as const;
    this.showState(last);
    for await (const { event } of generations.watchGeneration({ key }, options)) {
      this.showProblem("");
      if (event.case === "generation") {
        last = event.value;
        this.showState(last);
      } else if (event.case === "partialImage") {
        type = event.value.contentType;
        missing = Number(event.value.sizeBytes);
        parts = [];
      } else if (event.case === "data") {
        parts.push(event.value as BlobPart);
        missing -= event.value.length;
        if (!missing) this.showPicture(new Blob(parts, { type }));
      }
    }
    return last;
  }

  private showState({ state }: Generation): void {
    this.state.textContent = STATES[state];
    this.showCancel(state === GenerationState.QUEUED);
    if (isFinalState(state)) this.hidePicture();
  }

  private showCancel(isShown: boolean): void {
    // A hidden button would lose the focus to the start of the page.
    if (!isShown && document.activeElement === this.cancel) this.item.focus();
    this.cancel.hidden = !isShown;
  }

  private showImage(image: ImageDetail): void {
    const button = make("button", "View");
    button.type = "button";
    button.addEventListener("click", () => void view(image));
    this.item.append(button);
    this.created(image);
  }

  private showPicture(data: Blob): void {
    URL.revokeObjectURL(this.url);
    this.picture.src = this.url = URL.createObjectURL(data);
    this.picture.hidden = false;
  }

  private hidePicture(): void {
    this.picture.hidden = true;
    URL.revokeObjectURL(this.url);
  }

  private async cancelIt(guid: string): Promise<void> {
    try {
      await generations.cancelGeneration({ guid }, { signal: this.left.signal });
    } catch (error) {
      this.showProblem(textOf(error));
    }
  }
}

function isFinal({ state }: Generation): boolean {
  return isFinalState(state);
}

function isFinalState(state: GenerationState): boolean {
  return state > GenerationState.SUBMITTED;
}
