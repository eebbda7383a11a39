// The page at `/` in a real browser: it shows how the server is, streams an answer, stops one, asks for keys where they are
// needed, complains of nothing, and asks nobody else.
//   FARPOST_CHROMIUM=PATH      the browser
//   FARPOST_PICTURES=FOLDER    pictures of it are put there
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { launch } from "./chromium.mjs";
import { serve } from "./server.mjs";

let browser;
before(async () => {
  browser = await launch(process.env.FARPOST_CHROMIUM);
});
after(() => browser?.close());

const pictures = process.env.FARPOST_PICTURES;

async function takePictures(tab, name) {
  if (!pictures) return;
  for (const [width, height, scheme] of [[1360, 900, "light"], [1360, 900, "dark"], [390, 844, "light"]]) {
    await tab.look(width, height, scheme);
    await new Promise((resolve) => setTimeout(resolve, 300));
    await writeFile(join(pictures, `${name}-${width}-${scheme}.png`), await tab.picture());
  }
}

function asksOnly(tab, address) {
  const elsewhere = tab.urls.filter((url) => !url.startsWith(`${address}/`) && !url.startsWith("data:"));
  assert.deepEqual(elsewhere, []);
}

test("it shows the server, streams answers and stops them", async () => {
  const server = await serve("--parallel", "1");
  try {
    const tab = await browser.open(`${server.address}/`);
    await tab.until("document.getElementById('health')?.textContent.trim() === 'ready'");
    await tab.until("document.querySelectorAll('#plots svg').length === 6 && document.querySelectorAll('#models tr').length === 1");
    assert.match(await tab.value("document.getElementById('version').textContent"), /^version \d/);
    await tab.until("document.getElementById('model').value === 'pocket' && !document.getElementById('send').disabled");

    await tab.value("document.getElementById('prompt').focus()");
    await tab.type("turn on the porch light at nine");
    await tab.press("Enter", "\r");
    const said = "([...document.querySelectorAll('.said.assistant')].at(-1)?.textContent ?? '')";
    await tab.until(`document.getElementById('figures').textContent.includes('tokens/s') && ${said}.includes('porch')`);
    // The page adds up what it was sent as the server counts it.
    await tab.until("/tokens written\\s*[1-9]/.test(document.getElementById('counts').textContent)");
    if (pictures) await new Promise((resolve) => setTimeout(resolve, 8000));
    await takePictures(tab, "page");

    // Others have the only place, so the next answer waits until it is stopped.
    const others = new AbortController();
    const body = { model: "pocket", prompt: "x", n: 64, max_tokens: 200, ignore_eos: true, temperature: 1 };
    const headers = { "content-type": "application/json" };
    const busy = Promise.allSettled(
      [1, 2, 3].map((seed) =>
        fetch(`${server.baseURL}/completions`, { method: "POST", headers, body: JSON.stringify({ ...body, seed }), signal: others.signal }),
      ),
    );
    await tab.until("/written [1-9]/.test(document.getElementById('plots').textContent)");
    await tab.type("close the main valve");
    await tab.press("Enter", "\r");
    await tab.until("!document.getElementById('stop').disabled");
    await tab.press("Escape");
    await tab.until("document.getElementById('figures').textContent.startsWith('stopped')");
    assert.equal(await tab.value("document.getElementById('send').disabled"), false);
    others.abort();
    await busy;
    assert.deepEqual(tab.complaints, []);
    asksOnly(tab, server.address);
    assert.equal(await tab.value("document.documentElement.scrollWidth <= window.innerWidth"), true);
  } finally {
    await server.close();
  }
});

test("where keys are needed it shows only health until there is one", async () => {
  const folder = await mkdtemp(join(tmpdir(), "farpost-keys-"));
  const sha256 = createHash("sha256").update("page-key").digest("hex");
  const file = join(folder, "keys.json");
  await writeFile(file, JSON.stringify({ keys: [{ id: "page", sha256, scopes: ["metrics", "infer"] }] }));
  const server = await serve("--keys", file);
  try {
    const tab = await browser.open(`${server.address}/`);
    await tab.until("document.getElementById('health')?.textContent.trim() === 'ready'");
    await tab.until("!document.getElementById('locked').hidden");
    const shows = "!document.getElementById('plots').hidden || !document.getElementById('tables').hidden";
    assert.equal(await tab.value(shows), false);
    assert.equal(await tab.value("document.getElementById('send').disabled"), true);
    await takePictures(tab, "locked");
    await tab.value("document.getElementById('key').focus()");
    await tab.type("page-key");
    await tab.press("Enter", "\r");
    await tab.until(`${shows} && !document.getElementById('send').disabled`);
    // Nothing of it stays behind.
    assert.equal(await tab.value("localStorage.length + sessionStorage.length + document.cookie.length"), 0);
    // A browser notes each refusal; nothing else is wrong.
    assert.deepEqual(tab.complaints.filter((text) => !text.includes("401")), []);
    asksOnly(tab, server.address);
  } finally {
    await server.close();
    await rm(folder, { recursive: true });
  }
});
