// Plays every scenario against a server, and prints one line of JSON about each: {"name", "error"?}.
//
//   node [--import ./without_ws.mjs] play.mjs ws|http ENDPOINT API_KEY IMAGE
//
// Scenarios share one client, and each gets a sandbox of its own, so they run at the same time, a few at once.

import { SandboxClient } from "langsmith/sandbox";

import { onlyWithoutWs, onlyWithWs, withOrWithoutWs } from "./scenarios.mjs";

const AT_ONCE = 4;
const DEADLINE_MS = 30_000;

const [transport, apiEndpoint, apiKey, image] = process.argv.slice(2);
const client = new SandboxClient({ apiEndpoint, apiKey });
const scenarios = Object.entries({ ...withOrWithoutWs, ...(transport === "ws" ? onlyWithWs : onlyWithoutWs) });

function deadline() {
  let timer;
  const passed = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not over after ${DEADLINE_MS} ms`)), DEADLINE_MS);
  });
  return { passed, cancel: () => clearTimeout(timer) };
}

async function play(scenario) {
  const sandbox = await client.createSandbox({ snapshotName: "host" });
  const { passed, cancel } = deadline();
  try {
    await Promise.race([scenario({ client, sandbox, apiEndpoint, apiKey, image }), passed]);
  } finally {
    cancel();
    await client.deleteSandbox(sandbox.name);
  }
}

async function playSome() {
  for (let next = scenarios.shift(); next !== undefined; next = scenarios.shift()) {
    const [name, scenario] = next;
    let error;
    await play(scenario).catch((reason) => (error = `${reason}`));
    console.log(JSON.stringify({ name, error }));
  }
}

await Promise.all(Array.from({ length: AT_ONCE }, playSome));
process.exit(0); // A handle whose command was left running would keep the loop, and this process, alive.
