// Starts the program for a test and ends it with it.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

const PATIENCE_MS = 60_000;

/** `farpost serve` on a free port; resolves when it is ready. */
export async function serve(...args) {
  const child = spawn(process.env.FARPOST_PROGRAM, ["serve", "--port", "0", ...args], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  const seen = [];
  const address = await new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`not ready: ${seen.join("\n")}`)), PATIENCE_MS);
    let address;
    createInterface({ input: child.stderr }).on("line", (line) => {
      seen.push(line);
      address ??= line.match(/listening on (\S+)/)?.[1];
      if (line.includes("ready: ")) {
        clearTimeout(timer);
        resolve(address);
      }
    });
    child.on("exit", () => reject(new Error(`it ended: ${seen.join("\n")}`)));
  });
  return {
    address: address.replace(/\/$/, ""),
    baseURL: `${address.replace(/\/$/, "")}/v1`,
    close: () => new Promise((resolve) => child.on("close", resolve) && child.kill("SIGKILL")),
  };
}
