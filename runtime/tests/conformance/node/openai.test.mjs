// The official `openai` package for Node: what people call, and the errors as its own classes.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { serve } from "./server.mjs";

const light = {
  type: "function",
  function: {
    name: "set_light",
    description: "Switches a light.",
    parameters: {
      type: "object",
      properties: { room: { enum: ["porch", "hall"] }, state: { enum: ["on", "off"] }, at: { type: "string" } },
      required: ["room", "state"],
    },
  },
};
const messages = [{ role: "user", content: "turn on the porch light at nine" }];
let server;

before(async () => {
  server = await serve();
});
after(() => server.close());

const client = (more = {}, at = server) =>
  new OpenAI({ baseURL: at.baseURL, apiKey: "none", maxRetries: 0, timeout: 60_000, ...more });
const chat = (more = {}) => client().chat.completions.create({ model: "pocket", messages, ...more });

async function waitUntil(isSo) {
  const end = Date.now() + 60_000;
  while (!(await isSo())) {
    assert.ok(Date.now() < end, "it never was so");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A choice as a whole, and put together from the deltas of a stream. */
async function both(more) {
  const choice = (await chat(more)).choices[0];
  const calls = [];
  let text = "";
  let reason;
  for await (const chunk of await chat({ stream: true, ...more })) {
    const part = chunk.choices[0];
    reason = part.finish_reason ?? reason;
    text += part.delta.content ?? "";
    for (const call of part.delta.tool_calls ?? []) {
      if (call.index === calls.length) {
        assert.ok(call.id && call.type === "function" && call.function.name && call.function.arguments === "");
        calls.push([call.function.name, ""]);
      } else {
        assert.deepEqual(Object.keys(call), ["index", "function"]);
        assert.deepEqual(Object.keys(call.function), ["arguments"]);
        calls[call.index][1] += call.function.arguments;
      }
    }
  }
  const whole = (choice.message.tool_calls ?? []).map((call) => [call.function.name, call.function.arguments]);
  assert.deepEqual([text, calls, reason], [choice.message.content ?? "", whole, choice.finish_reason]);
  return choice;
}

test("an answer, its headers and its usage", async () => {
  const { data, response, request_id } = await chat().withResponse();
  assert.equal(data.choices[0].finish_reason, "stop");
  assert.equal(JSON.parse(data.choices[0].message.content).tool, "set_light");
  assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
  assert.equal(response.headers.get("x-request-id"), request_id);
});

test("a stream with usage is the answer in parts", async () => {
  const chunks = [];
  for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) chunks.push(chunk);
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  const whole = await chat();
  assert.deepEqual([last.usage.prompt_tokens, last.usage.total_tokens], [whole.usage.prompt_tokens, whole.usage.total_tokens]);
  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), whole.choices[0].message.content);
  assert.deepEqual(chunks.filter((chunk) => chunk.choices[0].finish_reason !== null), [chunks.at(-1)]);
});

test("n, seed, stop and logprobs", async () => {
  const more = { n: 2, seed: 4, temperature: 2, max_tokens: 6, logprobs: true, top_logprobs: 1 };
  const [first, again] = [await chat(more), await chat(more)];
  const texts = (answer) => answer.choices.map((choice) => choice.message.content);
  assert.deepEqual(texts(first), texts(again));
  for (const choice of first.choices) {
    const bytes = choice.logprobs.content.flatMap((token) => token.bytes);
    assert.equal(Buffer.from(bytes).toString(), choice.message.content);
  }
  const whole = texts(await chat())[0];
  assert.equal(texts(await chat({ stop: "porch" }))[0], whole.split("porch")[0]);
});

test("parse gives what a zod schema says", async () => {
  const schema = z.object({ room: z.enum(["hall", "attic"]), level: z.number().int(), tags: z.array(z.boolean()).max(2) });
  for (const seed of [1, 2]) {
    const answer = await client().chat.completions.parse({
      model: "pocket", messages, seed, temperature: 1.5, max_tokens: 200, response_format: zodResponseFormat(schema, "plan"),
    });
    schema.parse(answer.choices[0].message.parsed);
  }
});

test("tools with every choice, whole and streamed", async () => {
  const auto = await both({ tools: [light] });
  assert.equal(auto.finish_reason, "tool_calls");
  assert.equal(auto.message.content, null);
  assert.deepEqual(JSON.parse(auto.message.tool_calls[0].function.arguments), { room: "porch", state: "on", at: "09:00" });
  const none = await both({ tools: [light], tool_choice: "none" });
  assert.equal(none.finish_reason, "stop");
  const joke = [{ role: "user", content: "tell me a joke" }];
  for (const tool_choice of ["required", { type: "function", function: { name: "set_light" } }]) {
    const forced = await both({ messages: joke, tools: [light], tool_choice, parallel_tool_calls: false, max_tokens: 200 });
    assert.equal(forced.finish_reason, "tool_calls");
    assert.ok(["porch", "hall"].includes(JSON.parse(forced.message.tool_calls[0].function.arguments).room));
  }
});

test("runTools runs a tool and goes on", async () => {
  const seen = [];
  const tool = zodFunction({
    name: "set_light",
    parameters: z.object({ room: z.string(), state: z.enum(["on", "off"]) }),
    function: (args) => {
      seen.push(args);
      return "done";
    },
  });
  const runner = client().chat.completions.runTools({ model: "pocket", messages, tools: [tool] }, { maxChatCompletions: 2 });
  await runner.done().catch(() => {});
  assert.deepEqual(seen[0], { room: "porch", state: "on" });
});

test("completions and models", async () => {
  const answer = await client().completions.create({ model: "pocket", prompt: ["a", "b"], max_tokens: 2, seed: 1 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
  const list = await client().models.list();
  assert.deepEqual(list.data.map((model) => model.id), ["pocket"]);
  assert.equal((await client().models.retrieve("pocket")).object, "model");
});

test("errors are those of the package", async () => {
  const refused = (more, type, status, param) =>
    assert.rejects(chat(more), (error) => {
      assert.ok(error instanceof type, error);
      assert.deepEqual([error.status, error.param], [status, param]);
      return true;
    });
  await refused({ temperature: 9 }, OpenAI.BadRequestError, 400, "temperature");
  await refused({ tools: [] }, OpenAI.BadRequestError, 400, "tools");
  await refused({ model: "gpt-9" }, OpenAI.NotFoundError, 404, "model");
});

test("keys", async () => {
  const folder = await mkdtemp(join(tmpdir(), "farpost-"));
  const path = join(folder, "keys.json");
  const sha256 = createHash("sha256").update("secret").digest("hex");
  await writeFile(path, JSON.stringify({ keys: [{ id: "a", sha256 }] }));
  const guarded = await serve("--keys", path);
  try {
    await assert.rejects(client({}, guarded).models.list(), OpenAI.AuthenticationError);
    assert.equal((await client({ apiKey: "secret" }, guarded).models.list()).data.length, 1);
  } finally {
    await guarded.close();
    await rm(folder, { recursive: true });
  }
});

test("an aborted stream is not worked for, a full queue is told and retried", async () => {
  const busy = await serve("--parallel", "1", "--queue", "1");
  const metric = async (name) => {
    const page = await (await fetch(`${busy.address}/metrics`)).text();
    const lines = page.split("\n").filter((line) => line.startsWith(name));
    return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  };
  try {
    const long = { model: "pocket", messages, n: 64, ignore_eos: true };
    const stream = await client({}, busy).chat.completions.create({ ...long, stream: true });
    await stream[Symbol.asyncIterator]().next();
    // Its first token may be told before its place in the queue is free; its further choices take none.
    await waitUntil(async () => (await metric("farpost_running")) === 1);
    const waiting = await client({}, busy).chat.completions.create({ model: "pocket", messages, stream: true });
    const error = await client({}, busy).chat.completions.create({ model: "pocket", messages }).catch((error) => error);
    assert.ok(error instanceof OpenAI.RateLimitError, error);
    assert.ok(Number(error.headers.get("retry-after")) >= 1);
    stream.controller.abort();
    waiting.controller.abort();
    const answer = await client({ maxRetries: 8 }, busy).chat.completions.create({ model: "pocket", messages });
    assert.equal(answer.choices[0].finish_reason, "stop");
    const controller = new AbortController();
    const whole = client({}, busy).chat.completions.create(long, { signal: controller.signal }).catch((error) => error);
    await waitUntil(async () => (await metric("farpost_running")) > 0);
    controller.abort();
    assert.ok((await whole) instanceof OpenAI.APIUserAbortError);
    await waitUntil(async () => (await metric("farpost_running")) === 0);
    assert.equal(await metric("farpost_cancelled_total"), 3);
  } finally {
    await busy.close();
  }
});

test("embeddings, in base64 and as numbers", async () => {
  const embedder = await serve("--model", process.env.FARPOST_EMBEDDER, "--alias", "e");
  try {
    const input = ["the queen and the king", "a"];
    const embed = (more = {}) => client({}, embedder).embeddings.create({ model: "e", input, ...more });
    const answer = await embed();
    assert.deepEqual(answer.data.map(({ index, embedding }) => [index, embedding.length]), [[0, 256], [1, 256]]);
    const plain = await embed({ encoding_format: "float" });
    const apart = answer.data[0].embedding.map((number, place) => Math.abs(number - plain.data[0].embedding[place]));
    assert.ok(Math.max(...apart) < 1e-4);
    await assert.rejects(embed({ dimensions: 257 }), (error) => error instanceof OpenAI.BadRequestError && error.param === "dimensions");
    await assert.rejects(
      client().embeddings.create({ model: "pocket", input: "a" }),
      (error) => error instanceof OpenAI.BadRequestError && error.code === "unsupported_model",
    );
  } finally {
    await embedder.close();
  }
});
