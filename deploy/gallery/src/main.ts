/** Connects the parts of the page. */

import { signIn, signOut, textOf } from "./api.js";
import { leaveAll, start } from "./creation.js";
import { Grid } from "./grid.js";
import { ImageList } from "./list.js";
import { element } from "./page.js";
import { view } from "./viewer.js";

/** Milliseconds without a key before a search. */
const TYPING_PAUSE = 150;

const grid = new Grid(
  element("grid"),
  () => void list.more(),
  (image) => void view(image),
);
const list = new ImageList((images, isComplete, isNew) => grid.show(images, isComplete, isNew));

const search = element<HTMLFormElement>("search");
let typing = 0;

function find(): void {
  clearTimeout(typing);
  grid.dropCalls();
  void list.search(String(new FormData(search).get("prompt")));
}

search.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(find, TYPING_PAUSE);
});
search.addEventListener("submit", (event) => {
  event.preventDefault();
  find();
});

const signInForm = element<HTMLFormElement>("sign-in");
const signInProblem = element("sign-in-problem");
const create = element<HTMLFormElement>("create");

function showUser(username: string): void {
  signInForm.hidden = Boolean(username);
  element("signed-in").hidden = create.hidden = !username;
  element("user").textContent = username;
  grid.clear();
  find();
}

signInForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  const fields = new FormData(signInForm);
  signInProblem.textContent = "";
  try {
    await signIn(String(fields.get("username")), String(fields.get("password")));
  } catch (error) {
    signInProblem.textContent = textOf(error);
    return;
  }
  signInForm.reset();
  showUser(String(fields.get("username")));
  create.querySelector("textarea")!.focus();
});

element("sign-out").addEventListener("click", () => {
  signOut();
  leaveAll();
  showUser("");
  signInForm.querySelector("input")!.focus();
});

create.addEventListener("submit", (event) => {
  event.preventDefault();
  void start(create, (image) => list.add(image));
});

find();
