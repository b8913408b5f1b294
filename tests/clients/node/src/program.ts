/** Does what its first argument says with a server, and prints in JSON what came of it: it is how the client is tested. */

import { credentials } from "@grpc/grpc-js";

import { calls, repeats } from "./calls.js";
import { connect } from "./connect.js";
import { journey } from "./journey.js";

const COMMANDS = { journey, calls, repeats };
const { PIXY_ADDRESS, PIXY_USERNAME, PIXY_PASSWORD } = process.env;

const [command, ...words] = process.argv.slice(2);
const deadline = new Date(Date.now() + 60_000);
const connectAs = (username = "", password = "") => connect(PIXY_ADDRESS!, credentials.createInsecure(), username, password);
const images = connectAs(PIXY_USERNAME, PIXY_PASSWORD);
try {
  console.log(JSON.stringify(await COMMANDS[command as keyof typeof COMMANDS](images, words, deadline, connectAs)));
} finally {
  images.close();
}
