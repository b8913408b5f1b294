/** Does what its first argument says with a server, and prints in JSON what came of it: it is how the client is tested. */

import { credentials } from "@grpc/grpc-js";

import { calls, repeats } from "./calls.js";
import { connect, connectGenerations, connectUsage } from "./connect.js";
import { cancels, watches } from "./generations.js";
import { edits } from "./edits.js";
import { journey } from "./journey.js";

const { PIXY_ADDRESS, PIXY_USERNAME, PIXY_PASSWORD } = process.env;

const [command, ...words] = process.argv.slice(2);
const deadline = new Date(Date.now() + 60_000);
const connectAs = (username = "", password = "") => connect(PIXY_ADDRESS!, credentials.createInsecure(), username, password);
const generationsOf = (address: string) =>
  connectGenerations(address, credentials.createInsecure(), PIXY_USERNAME, PIXY_PASSWORD);
const images = connectAs(PIXY_USERNAME, PIXY_PASSWORD);
const generations = generationsOf(PIXY_ADDRESS!);
const usage = connectUsage(PIXY_ADDRESS!, credentials.createInsecure(), PIXY_USERNAME, PIXY_PASSWORD);
const commands: { [name: string]: () => Promise<unknown> } = {
  journey: () => journey(images, usage, words, deadline, connectAs),
  calls: () => calls(images, generations, usage, deadline),
  repeats: () => repeats(images, words, deadline),
  watches: () => watches(generations, generationsOf(words[0]), deadline),
  edits: () => edits(images, words, deadline),
  cancels: () => cancels(generations, words[0], deadline),
};
console.log(JSON.stringify(await commands[command]()));
// The connections would keep the program from ending for a while.
process.exit();
