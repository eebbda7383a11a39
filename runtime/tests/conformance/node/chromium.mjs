// A headless Chromium, driven through a pipe by its DevTools protocol: no package is needed for that.
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PATIENCE_MS = 60_000;

/** Waits until `look` gives something, at most a minute. */
export async function until(look, what) {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Starts the browser at `program`. */
export async function launch(program) {
  const folder = await mkdtemp(join(tmpdir(), "farpost-page-"));
  const options = ["--headless=new", "--disable-gpu", "--disable-extensions", "--no-first-run", "--disable-dev-shm-usage"];
  // Root in a container has no sandbox to offer.
  if (process.getuid?.() === 0) options.push("--no-sandbox");
  const child = spawn(program, [...options, "--remote-debugging-pipe", `--user-data-dir=${folder}`, "about:blank"], {
    stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
  });
  const [input, output] = [child.stdio[3], child.stdio[4]];
  const waiting = new Map();
  const listeners = new Set();
  let rest = "";
  output.setEncoding("utf8");
  output.on("data", (text) => {
    const messages = (rest + text).split("\0");
    rest = messages.pop();
    for (const message of messages.map((text) => JSON.parse(text))) {
      const { id, error, result } = message;
      if (id === undefined) listeners.forEach((listen) => listen(message));
      else if (error) waiting.get(id)?.reject(new Error(error.message));
      else waiting.get(id)?.resolve(result);
      waiting.delete(id);
    }
  });
  child.on("exit", () => waiting.forEach(({ reject }) => reject(new Error("the browser ended"))));
  input.on("error", () => {});
  let last = 0;
  const send = (method, params = {}, sessionId = undefined) =>
    new Promise((resolve, reject) => {
      last += 1;
      waiting.set(last, { resolve, reject });
      input.write(`${JSON.stringify({ id: last, method, params, sessionId })}\0`);
    });
  return {
    open: (url) => open(send, listeners, url),
    close: async () => {
      const ended = new Promise((resolve) => child.on("close", resolve));
      child.kill("SIGKILL");
      await ended;
      await rm(folder, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}

/** Opens a page in a tab of its own, and notes what it complains of and asks for. */
async function open(send, listeners, url) {
  const { targetId } = await send("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
  const call = (method, params) => send(method, params, sessionId);
  const tab = { complaints: [], urls: [] };
  listeners.add(({ method, params, sessionId: of }) => {
    if (of !== sessionId) return;
    if (method === "Runtime.exceptionThrown") tab.complaints.push(params.exceptionDetails.text);
    if (method === "Runtime.consoleAPICalled") tab.complaints.push(`${params.type}: ${JSON.stringify(params.args)}`);
    if (method === "Log.entryAdded") tab.complaints.push(`${params.entry.text} ${params.entry.url ?? ""}`);
    if (method === "Network.requestWillBeSent") tab.urls.push(params.request.url);
  });
  for (const domain of ["Runtime", "Log", "Network", "Page"]) await call(`${domain}.enable`);
  /** What an expression comes to in the page. */
  tab.value = async (expression) => {
    const { result, exceptionDetails } = await call("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  };
  tab.until = (expression) => until(() => tab.value(expression), expression);
  /** Types into what has the focus. */
  tab.type = (text) => call("Input.insertText", { text });
  tab.press = async (name, text = undefined) => {
    const codes = { Enter: 13, Escape: 27, Tab: 9 };
    const event = { key: name, code: name, windowsVirtualKeyCode: codes[name], text };
    await call("Input.dispatchKeyEvent", { type: text ? "keyDown" : "rawKeyDown", ...event });
    await call("Input.dispatchKeyEvent", { type: "keyUp", ...event });
  };
  /** How large the window is, and whether it is light or dark. */
  tab.look = async (width, height, scheme) => {
    await call("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: width < 600 });
    await call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
  };
  /** A picture of all of the page, as PNG. */
  tab.picture = async () =>
    Buffer.from((await call("Page.captureScreenshot", { captureBeyondViewport: true })).data, "base64");
  await call("Page.navigate", { url });
  return tab;
}
