/** Elements of the page. */

/** Return the element with this id. */
export function element<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

/** Make an element with a text; markup in the text is not interpreted. */
export function make<K extends keyof HTMLElementTagNameMap>(name: K, text = ""): HTMLElementTagNameMap[K] {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

/** Show a text; screen readers announce it once they are done with what they are saying. */
export function announce(text: string): void {
  element("status").textContent = text;
}

const problems = new Map<string, string>();

/** Return a function that shows the problem of one part of the page; an empty text says that it is solved. */
export function problemOf(part: string): (text: string) => void {
  return (text) => {
    if (text) problems.set(part, text);
    else problems.delete(part);
    element("problem").textContent = problems.values().next().value ?? "";
    element("again").hidden = !problems.size;
  };
}
