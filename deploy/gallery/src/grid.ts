/** A grid of thumbnails that has elements only for the rows in view, however many images there are. */

import type { ImageDetail } from "./generated/pixyproxy/v1/image_service_pb.js";
import { make } from "./page.js";
import { drawPlaceholder } from "./placeholder.js";
import { type Thumbnail, Thumbnails } from "./thumbnails.js";

const MIN_COLUMNS = 2;
const CELL_WIDTH = 180;
const GAP = 8;
/** Rows beyond the edges of the window. */
const MARGIN = 2;
const CAPTION_LENGTH = 200;

export class Grid {
  private images: ImageDetail[] = [];
  private isComplete = false;
  private readonly rows = new Map<number, HTMLElement>();
  private readonly thumbnails = new Thumbnails((guid, thumbnail) => this.showThumbnail(guid, thumbnail));
  private columns = MIN_COLUMNS;
  private rowHeight = 1;
  /** The image that Tab leads to; the arrow keys lead from it to others. */
  private current = 0;
  private isScheduled = false;

  /**
   * @param root the element of the grid
   * @param needMore is called when the last images come near; may be called again at any time
   * @param open is called for the image that was chosen
   */
  constructor(
    private readonly root: HTMLElement,
    private readonly needMore: () => void,
    private readonly open: (image: ImageDetail) => void,
  ) {
    new ResizeObserver(() => this.layOut()).observe(root);
    document.addEventListener("scroll", () => this.schedule(), { passive: true });
    root.addEventListener("keydown", (event) => this.move(event));
    root.addEventListener("click", (event) => {
      const index = indexOf(event.target);
      if (index === undefined) return;
      this.setCurrent(index);
      this.open(this.images[index]);
    });
  }

  /** Show these images. `isNew` says that they are others than before, and not those with more behind. */
  show(images: ImageDetail[], isComplete: boolean, isNew: boolean): void {
    const hadFocus = this.hasFocus();
    const lastRow = Math.floor((this.images.length - 1) / this.columns);
    this.images = images;
    this.isComplete = isComplete;
    if (isNew) {
      this.current = 0;
      this.removeRows();
    } else {
      // It may have been incomplete.
      this.removeRow(lastRow);
    }
    this.layOut();
    if (hadFocus && !this.hasFocus() && images.length) this.focus(this.current);
  }

  /** Show other images from now on, and forget all that is known of those before. */
  clear(): void {
    this.thumbnails.clear();
    this.show([], true, true);
  }

  /** End the calls for images that are no longer wanted. */
  dropCalls(): void {
    this.thumbnails.want([]);
  }

  private layOut(): void {
    const width = this.root.clientWidth;
    const columns = Math.max(MIN_COLUMNS, Math.floor((width + GAP) / (CELL_WIDTH + GAP)));
    const rowHeight = (width + GAP) / columns;
    if (columns !== this.columns || rowHeight !== this.rowHeight) {
      const hadFocus = this.hasFocus();
      this.removeRows();
      Object.assign(this, { columns, rowHeight });
      if (hadFocus) this.focus(this.current);
    }
    const rowCount = Math.ceil(this.images.length / columns);
    this.root.style.height = `${rowCount * rowHeight}px`;
    this.root.setAttribute("aria-rowcount", String(this.isComplete ? rowCount : -1));
    this.root.setAttribute("aria-colcount", String(columns));
    this.render();
  }

  private hasFocus(): boolean {
    return this.root.contains(document.activeElement);
  }

  private schedule(): void {
    if (this.isScheduled) return;
    this.isScheduled = true;
    requestAnimationFrame(() => {
      this.isScheduled = false;
      this.render();
    });
  }

  /** Make the rows in view, and remove all others but that with the focus. */
  private render(): void {
    const rowCount = Math.ceil(this.images.length / this.columns);
    const top = -this.root.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / this.rowHeight) - MARGIN);
    const last = Math.min(rowCount - 1, Math.floor((top + innerHeight) / this.rowHeight) + MARGIN);
    for (const [number, row] of this.rows) {
      if ((number < first || number > last) && !row.contains(document.activeElement)) this.removeRow(number);
    }
    const guids = [];
    for (let number = first; number <= last; number++) {
      if (!this.rows.has(number)) this.addRow(number);
      for (const { guid } of this.imagesIn(number)) guids.push(guid);
    }
    this.thumbnails.want(guids);
    if (!this.isComplete && top + 3 * innerHeight > rowCount * this.rowHeight) this.needMore();
  }

  private imagesIn(row: number): ImageDetail[] {
    return this.images.slice(row * this.columns, (row + 1) * this.columns);
  }

  private addRow(number: number): void {
    const row = make("div");
    row.role = "row";
    row.ariaRowIndex = String(number + 1);
    row.style.transform = `translateY(${number * this.rowHeight}px)`;
    row.append(...this.imagesIn(number).map((image, column) => this.cell(image, number * this.columns + column)));
    this.rows.set(number, row);
    // In the order in which screen readers read them.
    const after = Math.min(...[...this.rows.keys()].filter((other) => other > number));
    this.root.insertBefore(row, this.rows.get(after) ?? null);
  }

  private cell(image: ImageDetail, index: number): HTMLElement {
    const cell = make("div");
    cell.role = "gridcell";
    cell.ariaColIndex = String((index % this.columns) + 1);
    cell.style.width = cell.style.height = `${this.rowHeight - GAP}px`;
    const button = make("button");
    button.type = "button";
    button.tabIndex = index === this.current ? 0 : -1;
    button.dataset.index = String(index);
    button.dataset.guid = image.guid;
    const canvas = make("canvas");
    canvas.width = canvas.height = 1;
    drawPlaceholder(canvas, image.placeholder);
    const picture = make("img");
    picture.alt = "";
    button.append(canvas, picture, make("span", image.prompt.slice(0, CAPTION_LENGTH) || image.filename));
    cell.append(button);
    const thumbnail = this.thumbnails.get(image.guid);
    if (thumbnail) fill(button, thumbnail);
    return cell;
  }

  private showThumbnail(guid: string, thumbnail: Thumbnail): void {
    const button = this.root.querySelector<HTMLElement>(`[data-guid="${CSS.escape(guid)}"]`);
    if (button) fill(button, thumbnail);
  }

  private removeRow(number: number): void {
    this.rows.get(number)?.remove();
    this.rows.delete(number);
  }

  private removeRows(): void {
    for (const number of this.rows.keys()) this.removeRow(number);
  }

  private move(event: KeyboardEvent): void {
    if (event.altKey || event.metaKey) return;
    const rowsInView = Math.max(1, Math.floor(innerHeight / this.rowHeight) - 1);
    const last = this.images.length - 1;
    const rowStart = this.current - (this.current % this.columns);
    const target = {
      ArrowLeft: this.current - 1,
      ArrowRight: this.current + 1,
      ArrowUp: this.current - this.columns,
      ArrowDown: this.current + this.columns,
      PageUp: this.current - rowsInView * this.columns,
      PageDown: this.current + rowsInView * this.columns,
      Home: event.ctrlKey ? 0 : rowStart,
      End: event.ctrlKey ? last : rowStart + this.columns - 1,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    this.focus(Math.min(Math.max(target, 0), last));
  }

  private focus(index: number): void {
    this.setCurrent(index);
    const row = Math.floor(index / this.columns);
    if (!this.rows.has(row)) this.addRow(row);
    const button = this.rows.get(row)!.querySelector<HTMLElement>(`[data-index="${index}"]`)!;
    button.focus({ preventScroll: true });
    button.scrollIntoView({ block: "nearest" });
    this.schedule();
  }

  private setCurrent(index: number): void {
    for (const button of this.root.querySelectorAll<HTMLElement>('[tabindex="0"]')) button.tabIndex = -1;
    this.current = index;
    const button = this.root.querySelector<HTMLElement>(`[data-index="${index}"]`);
    if (button) button.tabIndex = 0;
  }
}

function indexOf(target: EventTarget | null): number | undefined {
  const button = (target as HTMLElement).closest<HTMLElement>("[data-index]");
  return button ? Number(button.dataset.index) : undefined;
}

function fill(button: HTMLElement, { url, error }: Thumbnail): void {
  if (url) button.querySelector("img")!.src = url;
  else button.querySelector("span")!.append(` – no thumbnail (${error})`);
}
