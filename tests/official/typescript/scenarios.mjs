// What the official TypeScript client must find on our server. Each scenario gets {client, sandbox, apiEndpoint, apiKey,
// image} with a sandbox of its own and the name of an image with a Python in a registry, and throws if anything is not
// as it should be.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import {
  LangSmithCommandTimeoutError,
  LangSmithResourceCreationError,
  LangSmithResourceNotFoundError,
  LangSmithSandboxAuthenticationError,
  LangSmithSandboxError,
  LangSmithSandboxOperationError,
  SandboxClient,
} from "langsmith/sandbox";

const MIB = 1 << 20;
const decoder = new TextDecoder();

async function until(condition) {
  for (const end = Date.now() + 15_000; !(await condition()); ) {
    assert.ok(Date.now() < end, `never came true: ${condition}`);
    await sleep(50);
  }
}

// How many processes in the sandbox go by `name`.
async function processes(sandbox, name) {
  const pattern = `[${name[0]}]${name.slice(1)}`; // Does not match itself, in the command line of this very look-up.
  const found = await sandbox.run(`cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -cx '${pattern}'`);
  return Number(found.stdout);
}

async function collect(handle) {
  const chunks = [];
  for await (const chunk of handle) chunks.push(chunk);
  return chunks;
}

const text = (chunks) => chunks.map((chunk) => chunk.data).join("");

export const withOrWithoutWs = {
  async run({ sandbox }) {
    const result = await sandbox.run("echo out; echo err >&2; exit 3");
    assert.deepEqual({ ...result }, { stdout: "out\n", stderr: "err\n", exit_code: 3 });
  },

  async run_with_options({ sandbox }) {
    const options = { env: { GREETING: "a \"b\" $c ä" }, cwd: "/usr/bin", shell: "/bin/sh", timeout: 20 };
    const result = await sandbox.run('echo "$GREETING|$PWD|$0"', options);
    assert.equal(result.stdout, 'a "b" $c ä|/usr/bin|/bin/sh\n');
  },

  async run_config({ sandbox }) {
    const runConfig = { work_dir: "/tmp", env_vars: { GREETING: "hi" } };
    assert.equal((await sandbox.run('echo "$GREETING|$PWD"', { runConfig })).stdout, "hi|/tmp\n");
  },

  async large_output({ sandbox }) {
    const result = await sandbox.run("for i in $(seq 100000); do echo äöü€; done", { timeout: 30 });
    assert.equal(result.stdout, "äöü€\n".repeat(100_000));
  },

  async timeout({ sandbox }) {
    await assert.rejects(sandbox.run("exec -a sleeper sleep 1000", { timeout: 1 }), LangSmithSandboxError);
    await until(async () => (await processes(sandbox, "sleeper")) === 0);
  },

  async command_that_cannot_start({ sandbox }) {
    const starting = sandbox.run("true", { shell: "/no/such/shell" });
    await assert.rejects(starting, (error) => {
      assert.ok(error instanceof LangSmithSandboxOperationError);
      assert.match(error.message, /no\/such\/shell/);
      return true;
    });
  },

  async snapshot_of_an_image_and_of_a_sandbox({ client, image }) {
    const name = `team/${randomBytes(4).toString("hex")}`;
    const snapshot = await client.createSnapshot(name, image, 256 * MIB);
    assert.deepEqual({ name: snapshot.name, status: snapshot.status }, { name, status: "ready" });
    const first = await client.createSandbox(snapshot.id);
    let captured;
    try {
      assert.equal((await first.run("python -c 'print(2 + 2)'")).stdout, "4\n");
      await first.write("/kept", "kept");
      captured = await first.captureSnapshot(`${name}-captured`);
    } finally {
      await client.deleteSandbox(first.name);
    }
    const second = await client.createSandbox(captured.id);
    try {
      assert.equal((await second.run("cat /kept; python -c 'print(2 + 2)'")).stdout, "kept4\n");
    } finally {
      await client.deleteSandbox(second.name);
    }
    const listed = await client.listSnapshots({ nameContains: name });
    assert.deepEqual(listed.map((one) => one.id).sort(), [snapshot.id, captured.id].sort());
    await client.deleteSnapshot(captured.id);
    await client.deleteSnapshot(snapshot.id);
    await assert.rejects(client.getSnapshot(snapshot.id), LangSmithResourceNotFoundError);
  },

  async snapshot_of_an_image_that_is_not_there({ client, image }) {
    const making = client.createSnapshot("missing", `${image}-missing`, 256 * MIB);
    await assert.rejects(making, (error) => {
      assert.ok(error instanceof LangSmithResourceCreationError);
      assert.match(error.message, /missing/);
      return true;
    });
  },

  async service({ client, sandbox }) {
    const program = [
      "import http.server as s",
      "class Echo(s.BaseHTTPRequestHandler):",
      "    def answer(self):",
      "        body = self.rfile.read(int(self.headers.get('content-length', 0)))",
      "        self.send_response(200)",
      "        self.end_headers()",
      "        seen = 'x-langsmith-sandbox-service-token' in self.headers",
      "        self.wfile.write(f'{self.command} {self.path} {seen} '.encode() + body)",
      "    do_GET = do_POST = answer",
      "s.ThreadingHTTPServer(('127.0.0.1', 8000), Echo).serve_forever()",
    ];
    await sandbox.write("/tmp/program.py", program.join("\n"));
    await sandbox.run("python3 /tmp/program.py >/dev/null 2>&1 &");
    const service = await client.serviceUrl(sandbox.name, { port: 8000, embedOrigins: ["https://example.com"] });
    assert.deepEqual(service.embedOrigins, ["https://example.com"]);
    assert.match(await service.browserUrl(), /--8000\.localhost:\d+\/_svc\/auth\?token=/);
    assert.ok(Date.parse(await service.expiresAt()) > Date.now());
    assert.equal(await (await service.fetch("/api/data?a=1")).text(), "GET /api/data?a=1 False ");
    const posted = await service.fetch("/api/data", { method: "POST", body: "ä".repeat(100_000) });
    assert.equal(await posted.text(), `POST /api/data False ${"ä".repeat(100_000)}`);
    assert.equal((await fetch(await service.serviceUrl())).status, 401);
  },

  async service_token_is_renewed({ client, sandbox }) {
    const service = await client.serviceUrl(sandbox.name, { port: 8000, expiresInSeconds: 30 }); // Less than its 60 s.
    const first = await service.token();
    await until(async () => (await service.token()) !== first); // Two of one second may be the same.
  },

  async download_link({ sandbox }) {
    await sandbox.write("/tmp/report.csv", "0123456789");
    const options = { expiresInSeconds: 60, contentType: "text/csv", contentDisposition: "inline" };
    const { download_url: url, expires_at: expiresAt } = await sandbox.generateDownloadURL("/tmp/report.csv", options);
    assert.ok(Date.parse(expiresAt) > Date.now());
    const whole = await fetch(url);
    assert.equal(await whole.text(), "0123456789");
    assert.match(whole.headers.get("content-type"), /^text\/csv/);
    assert.ok(whole.headers.get("content-security-policy"));
    const part = await fetch(url, { headers: { range: "bytes=2-4" } });
    assert.deepEqual([part.status, await part.text()], [206, "234"]);
  },

  async files({ sandbox }) {
    await sandbox.write("/app/deep/er/a b+c%2Fä.txt", "hello ä");
    assert.equal(decoder.decode(await sandbox.read("/app/deep/er/a b+c%2Fä.txt")), "hello ä");
    const bytes = randomBytes(3 * MIB);
    await sandbox.write("relative.bin", bytes);
    assert.ok(bytes.equals(Buffer.from(await sandbox.read("/home/user/relative.bin"))));
    await sandbox.write("relative.bin", new Uint8Array());
    assert.equal((await sandbox.read("relative.bin")).length, 0);
  },

  async missing_file({ sandbox }) {
    for (const call of [
      () => sandbox.read("/no/such/file"),
      () => sandbox.stat("/no/such/file"),
      () => sandbox.readRange("/no/such/file", { start: 0 }),
      () => sandbox.ls("/no/such/folder"),
      () => sandbox.grep("x", "/no/such/folder"),
    ]) {
      await assert.rejects(call, LangSmithResourceNotFoundError);
    }
  },

  async folder_is_not_a_file({ sandbox }) {
    await assert.rejects(sandbox.read("/tmp"), LangSmithSandboxOperationError);
    await assert.rejects(sandbox.write("/tmp", "x"), LangSmithSandboxOperationError);
  },

  async stat_and_ranges({ sandbox }) {
    await sandbox.write("/tmp/file", "0123456789");
    const stat = await sandbox.stat("/tmp/file");
    assert.equal(stat.size_bytes, 10);
    assert.match(stat.etag, /^".+"$/);
    const middle = await sandbox.readRange("/tmp/file", { start: 2, end: 4 });
    assert.equal(decoder.decode(middle.content), "234");
    assert.deepEqual([middle.start, middle.total_bytes, middle.partial, middle.etag], [2, 10, true, stat.etag]);
    assert.equal(decoder.decode((await sandbox.readRange("/tmp/file", { suffixBytes: 3 })).content), "789");
    const unchanged = await sandbox.readRange("/tmp/file", { start: 0, ifNoneMatch: stat.etag });
    assert.deepEqual([unchanged.unchanged, unchanged.content.length], [true, 0]);
    await sandbox.write("/tmp/file", "abcdefghij");
    const whole = await sandbox.readRange("/tmp/file", { start: 5, ifRange: stat.etag });
    assert.deepEqual([decoder.decode(whole.content), whole.partial], ["abcdefghij", false]);
    await assert.rejects(sandbox.readRange("/tmp/file", { start: 10 }), LangSmithSandboxOperationError);
  },

  async glob_ls_and_grep({ sandbox }) {
    for (const path of ["a.py", "b.txt", "sub/c.py"]) await sandbox.write(`/app/${path}`, `one\nneedle in ${path}\n`);
    const paths = (found) => found.matches.map((match) => match.path);
    assert.deepEqual(paths(await sandbox.glob("**/*.py", "/app")), ["/app/a.py", "/app/sub/c.py"]);
    const listed = await sandbox.ls("/app");
    assert.deepEqual(paths(listed), ["/app/a.py", "/app/b.txt", "/app/sub"]);
    assert.deepEqual(listed.matches.map((match) => match.is_dir), [false, false, true]);
    const found = await sandbox.grep("needle", "/app", { glob: "*.txt" });
    assert.deepEqual(found.matches, [{ path: "/app/b.txt", line: 2, text: "needle in b.txt" }]);
    const limited = await sandbox.grep("needle", "/app", { limit: 1 });
    assert.deepEqual([limited.matches.length, limited.truncated], [1, true]);
  },

  async control_plane({ client, sandbox }) {
    const again = await client.getSandbox(sandbox.name);
    assert.deepEqual([again.id, again.status], [sandbox.id, "ready"]);
    assert.equal((await client.getSandboxStatus(sandbox.name)).status, "ready");
    assert.ok((await client.listSandboxes()).some((other) => other.name === sandbox.name));
    const host = await client.getSnapshot("host:latest");
    assert.deepEqual([host.name, host.status, host.id], ["host", "ready", sandbox.snapshot_id]);
    assert.ok((await client.listSnapshots()).some((snapshot) => snapshot.id === host.id));
  },

  async create_by_id_without_waiting({ client, sandbox }) {
    const made = await client.createSandbox(sandbox.snapshot_id, { waitForReady: false, labels: { team: "a" } });
    try {
      const ready = await client.waitForSandbox(made.name, { pollInterval: 0.05 });
      assert.deepEqual([ready.status, ready.labels], ["ready", { team: "a" }]);
    } finally {
      await made.delete();
    }
    await assert.rejects(client.getSandbox(made.name), LangSmithResourceNotFoundError);
  },

  async errors_of_the_control_plane({ client, sandbox }) {
    await assert.rejects(client.getSandbox("no-such"), LangSmithResourceNotFoundError);
    await assert.rejects(client.deleteSandbox("no-such"), LangSmithResourceNotFoundError);
    await assert.rejects(client.getSnapshot("no-such"), LangSmithResourceNotFoundError);
    await assert.rejects(client.createSandbox({ snapshotName: "no-such" }), LangSmithSandboxError);
    const taken = { snapshotName: "host", name: sandbox.name };
    await assert.rejects(client.createSandbox(taken), LangSmithSandboxError);
  },

  async wrong_key({ apiEndpoint }) {
    const stranger = new SandboxClient({ apiEndpoint, apiKey: "wrong" });
    await assert.rejects(stranger.listSandboxes(), LangSmithSandboxAuthenticationError);
  },

  async short_base_path({ apiEndpoint, apiKey, sandbox }) {
    const old = new SandboxClient({ apiEndpoint: apiEndpoint.replace("/api/v2/", "/v2/"), apiKey });
    assert.equal((await (await old.getSandbox(sandbox.name)).run("echo hi")).stdout, "hi\n");
  },
};

export const onlyWithWs = {
  async service_url({ client, sandbox }) {
    await sandbox.write("/srv/www/hello.txt", "hello");
    await sandbox.run("nohup python3 -m http.server 8000 --directory /srv/www >/dev/null 2>&1 &");
    const service = await client.serviceUrl(sandbox.name, { port: 8000, embedOrigins: ["https://a.example"] });
    const answer = await service.fetch("/hello.txt?a=b");
    assert.deepEqual([answer.status, await answer.text()], [200, "hello"]);
    assert.match(await service.serviceUrl(), new RegExp(`/svc/${sandbox.id}/8000/$`));
    assert.match(await service.browserUrl(), new RegExp(`//${sandbox.id}--8000\\.localhost:\\d+/_svc/auth\\?token=`));
    assert.match(await service.embedUrl(), /\/_svc\/embed#token=/);
    assert.deepEqual(service.embedOrigins, ["https://a.example"]);
    const brief = await client.serviceUrl(sandbox.name, { port: 8000, expiresInSeconds: 5 });
    assert.equal((await brief.fetch("/hello.txt")).status, 200);
    await assert.rejects(client.serviceUrl(sandbox.name, { port: 8000, access: "workspace" }), LangSmithSandboxError);
    await assert.rejects(client.serviceUrl("no-such", { port: 8000 }), LangSmithResourceNotFoundError);
  },

  async callbacks({ sandbox }) {
    const out = [];
    const err = [];
    const onStdout = (data) => out.push(data);
    const onStderr = (data) => err.push(data);
    await sandbox.run("for i in 1 2 3; do echo $i; echo e$i >&2; done", { onStdout, onStderr });
    assert.deepEqual([out.join(""), err.join("")], ["1\n2\n3\n", "e1\ne2\ne3\n"]);
  },

  async handle({ sandbox }) {
    const command = "echo ready; until [ -e /tmp/go ]; do sleep 0.05; done; echo gone";
    const handle = await sandbox.run(command, { wait: false });
    assert.ok(handle.commandId.length >= 32);
    assert.equal(typeof handle.pid, "number");
    const chunks = [];
    for await (const chunk of handle) {
      if (chunks.length === 0) await sandbox.write("/tmp/go", "");
      chunks.push(chunk);
    }
    assert.deepEqual(
      chunks.map(({ stream, data, offset }) => [stream, data, offset]),
      [["stdout", "ready\n", 0], ["stdout", "gone\n", 6]],
    );
    assert.equal((await handle.result).exit_code, 0);
  },

  async a_command_id_of_ones_own({ sandbox }) {
    const handle = await sandbox.run("echo hi", { wait: false, commandId: "my-own-id" });
    assert.equal(handle.commandId, "my-own-id");
    assert.equal((await handle.result).stdout, "hi\n");
    assert.equal((await (await sandbox.reconnect("my-own-id")).result).stdout, "hi\n");
  },

  async input({ sandbox }) {
    const handle = await sandbox.run("read name; echo hello $name; cat | wc -c", { wait: false, closeInput: false });
    handle.sendInput("wörld\n");
    handle.sendInput("x".repeat(MIB));
    handle.closeInput();
    assert.equal((await handle.result).stdout, `hello wörld\n${MIB}\n`);
  },

  async terminal({ sandbox }) {
    const command = "test -t 0 -a -t 1 -a -t 2 && tty; stty size; echo err >&2; cat; echo end";
    const handle = await sandbox.run(command, { wait: false, pty: true });
    handle.sendInput("typed\n");
    handle.sendInput("\x04");
    const result = await handle.result;
    for (const line of ["/dev/pts/0", "24 80", "err", "typed", "end"]) {
      assert.ok(result.stdout.split("\r\n").includes(line), result.stdout);
    }
    assert.equal(result.stderr, "");
  },

  async kill({ sandbox }) {
    const command = "(setsid bash -c 'exec -a daemonised sleep 1000' &); exec -a direct sleep 1000";
    const handle = await sandbox.run(command, { wait: false, timeout: 0 });
    await until(async () => (await processes(sandbox, "daemonised")) + (await processes(sandbox, "direct")) === 2);
    handle.kill();
    assert.equal((await handle.result).exit_code, 137);
    await until(async () => (await processes(sandbox, "daemonised")) + (await processes(sandbox, "direct")) === 0);
  },

  async reconnect({ sandbox }) {
    const first = await sandbox.run("echo one; read line; echo two; exit 3", { wait: false, closeInput: false });
    const again = await sandbox.reconnect(first.commandId);
    first.sendInput("\n");
    assert.equal(text(await collect(again)), "one\ntwo\n");
    assert.equal((await again.result).exit_code, 3);
    assert.equal((await first.result).stdout, "one\ntwo\n");
    const rest = await sandbox.reconnect(first.commandId, { stdoutOffset: 4 });
    assert.deepEqual((await collect(rest)).map(({ data, offset }) => [data, offset]), [["two\n", 4]]);
  },

  async reconnect_to_nothing({ sandbox }) {
    const finding = async () => (await sandbox.reconnect("no-such-command")).result;
    await assert.rejects(finding, LangSmithSandboxOperationError);
  },

  async leaving_the_loop_detaches({ sandbox }) {
    const command = "echo one; until [ -e /tmp/go ]; do sleep 0.05; done; echo two";
    const handle = await sandbox.run(command, { wait: false });
    for await (const chunk of handle) {
      assert.equal(chunk.data, "one\n");
      break;
    }
    await sandbox.write("/tmp/go", "");
    const again = await handle.reconnect();
    assert.equal((await again.result).stdout, "two\n");
  },

  async timeout_error({ sandbox }) {
    await assert.rejects(sandbox.run("sleep 1000", { timeout: 1 }), LangSmithCommandTimeoutError);
  },

  async kill_on_disconnect({ sandbox }) {
    const options = { wait: false, timeout: 0, killOnDisconnect: true };
    const handle = await sandbox.run("echo ready; exec -a abandoned sleep 1000", options);
    for await (const _ of handle) break; // Leaving the loop closes the socket.
    await until(async () => (await processes(sandbox, "abandoned")) === 0);
  },
};

export const onlyWithoutWs = {
  async standard_input_is_empty({ sandbox }) {
    assert.equal((await sandbox.run("cat; echo end")).stdout, "end\n");
  },

  async no_handle_without_a_websocket({ sandbox }) {
    await assert.rejects(sandbox.run("true", { wait: false }));
  },
};
