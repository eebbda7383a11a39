"""The official `openai` package for Python: every call that people make, and the errors as its own exceptions."""

import asyncio
import hashlib
import json
import os
import tempfile
import time
import typing
import unittest
import urllib.request
from typing import List, Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from server import Server

LIGHT = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Switches a light.",
        "parameters": {
            "type": "object",
            "properties": {
                "room": {"type": "string", "enum": ["porch", "hall", "attic"]},
                "state": {"type": "string", "enum": ["on", "off"]},
                "at": {"type": "string"},
            },
            "required": ["room", "state"],
        },
    },
}
VALVE = {
    "type": "function",
    "function": {
        "name": "set_valve",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"valve": {"type": "string", "pattern": "^valve_[0-9]$"}, "percent": {"type": "integer"}},
            "required": ["valve", "percent"],
            "additionalProperties": False,
        },
    },
}
SAY = [{"role": "user", "content": "turn on the porch light at nine"}]
SERVER = None


def setUpModule():
    global SERVER
    SERVER = Server()


def tearDownModule():
    SERVER.close()


def client(server=None, **more):
    options = {"api_key": "none", "max_retries": 0, "timeout": 60, **more}
    return OpenAI(base_url=(server or SERVER).base_url, **options)


def chat(messages=None, **more):
    return client().chat.completions.create(model="pocket", messages=messages or SAY, **more)


def metric(server, name):
    page = urllib.request.urlopen(server.address.rstrip("/") + "/metrics").read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


def wait_until(is_so):
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.02)


class Chat(unittest.TestCase):
    def test_an_answer(self):
        answer = chat()
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(json.loads(answer.choices[0].message.content)["tool"], "set_light")
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertGreaterEqual(answer.usage.prompt_tokens_details.cached_tokens, 0)

    def test_a_raw_response_has_its_headers(self):
        raw = client().chat.completions.with_raw_response.create(
            model="pocket", messages=SAY, extra_headers={"x-request-id": "abc-1"}
        )
        self.assertEqual(raw.headers["x-request-id"], "abc-1")
        self.assertEqual(raw.parse()._request_id, "abc-1")

    def test_a_stream_is_the_answer_in_parts(self):
        chunks = list(chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual([chunk.choices for chunk in chunks[-1:]], [[]])
        self.assertEqual(chunks[-1].usage, chat().usage)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        self.assertEqual(text, chat().choices[0].message.content)
        self.assertEqual([chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1], "stop")
        self.assertTrue(all(chunk.choices[0].finish_reason is None for chunk in chunks[:-2]))

    def test_the_stream_helper_puts_it_together(self):
        with client().chat.completions.stream(model="pocket", messages=SAY) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        self.assertLessEqual({"chunk", "content.delta", "content.done"}, kinds)
        self.assertEqual(final.choices[0].message.content, chat().choices[0].message.content)

    def test_several_choices_and_seeds(self):
        more = {"n": 3, "seed": 5, "temperature": 2, "max_tokens": 8}
        first, again = chat(**more), chat(**more)
        texts = [choice.message.content for choice in first.choices]
        self.assertEqual(texts, [choice.message.content for choice in again.choices])
        self.assertEqual([choice.index for choice in first.choices], [0, 1, 2])
        self.assertGreater(len(set(texts)), 1)
        streamed = ["", "", ""]
        for chunk in chat(stream=True, **more):
            streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        self.assertEqual(streamed, texts)

    def test_stop_and_length(self):
        whole = chat().choices[0].message.content
        choice = chat(stop=["porch"]).choices[0]
        self.assertEqual((choice.message.content, choice.finish_reason), (whole.split("porch")[0], "stop"))
        self.assertEqual(chat(max_completion_tokens=2).choices[0].finish_reason, "length")

    def test_logprobs(self):
        choice = chat(logprobs=True, top_logprobs=2).choices[0]
        text = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
        self.assertEqual(text.decode(), choice.message.content)
        self.assertTrue(all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in choice.logprobs.content))

    def test_parse_gives_what_the_schema_says(self):
        class Part(BaseModel):
            name: Literal["hall", "attic"]
            level: int

        class Plan(BaseModel):
            parts: List[Part] = Field(max_length=2)
            is_urgent: bool

        for seed in range(3):
            answer = client().chat.completions.parse(
                model="pocket", messages=SAY, response_format=Plan, temperature=1.5, seed=seed, max_tokens=200
            )
            self.assertIsInstance(answer.choices[0].message.parsed, Plan)

    def test_json_object(self):
        text = chat(response_format={"type": "json_object"}).choices[0].message.content
        self.assertIsInstance(json.loads(text), dict)

    def test_many_at_once(self):
        async def several():
            async with AsyncOpenAI(base_url=SERVER.base_url, api_key="none", max_retries=0) as ask:
                return await asyncio.gather(
                    *(ask.chat.completions.create(model="pocket", messages=SAY) for _ in range(8))
                )

        answers = {answer.choices[0].message.content for answer in asyncio.run(several())}
        self.assertEqual(answers, {chat().choices[0].message.content})


class Tools(unittest.TestCase):
    def check(self, message, finish_reason, names=("set_light",)):
        self.assertEqual(finish_reason, "tool_calls")
        self.assertFalse(message.content)
        self.assertEqual(tuple(call.function.name for call in message.tool_calls), names)
        for call in message.tool_calls:
            self.assertEqual(call.type, "function")
            self.assertTrue(call.id.startswith("call_"))
            self.assertIsInstance(json.loads(call.function.arguments), dict)

    def both(self, **more):
        """The choice as a whole, and put together from a stream by hand as the protocol has it."""
        choice = chat(**more).choices[0]
        text, calls, reason = "", [], None
        for chunk in chat(stream=True, **more):
            part = chunk.choices[0]
            reason = part.finish_reason or reason
            text += part.delta.content or ""
            for call in part.delta.tool_calls or []:
                if call.index == len(calls):
                    self.assertTrue(call.id and call.type == "function" and call.function.name)
                    self.assertEqual(call.function.arguments, "")
                    calls.append([call.function.name, ""])
                else:
                    self.assertIsNone(call.id)
                    self.assertIsNone(call.function.name)
                    calls[call.index][1] += call.function.arguments
        whole = [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or []]
        self.assertEqual((text, calls, reason), (choice.message.content or "", whole, choice.finish_reason))
        return choice

    def test_auto(self):
        choice = self.both(tools=[LIGHT, VALVE], tool_choice="auto")
        self.check(choice.message, choice.finish_reason)
        self.assertEqual(
            json.loads(choice.message.tool_calls[0].function.arguments),
            {"room": "porch", "state": "on", "at": "09:00"},
        )
        choice = self.both(tools=[LIGHT], messages=[{"role": "user", "content": "tell me a joke"}])
        self.assertEqual(choice.finish_reason, "stop")
        self.assertIn("out_of_scope", choice.message.content)

    def test_none(self):
        choice = self.both(tools=[LIGHT], tool_choice="none")
        self.assertEqual((choice.finish_reason, choice.message.tool_calls), ("stop", None))
        self.assertIn("set_light", choice.message.content)

    def test_required(self):
        for seed in range(3):
            more = {"seed": seed, "temperature": 2, "max_tokens": 200}
            joke = [{"role": "user", "content": "tell me a joke"}]
            choice = self.both(tools=[LIGHT], tool_choice="required", messages=joke, **more)
            self.check(choice.message, choice.finish_reason)
            self.assertIn(json.loads(choice.message.tool_calls[0].function.arguments)["room"], ["porch", "hall", "attic"])

    def test_named(self):
        named = {"type": "function", "function": {"name": "set_valve"}}
        choice = self.both(tools=[LIGHT, VALVE], tool_choice=named, seed=1, temperature=1)
        self.check(choice.message, choice.finish_reason, ("set_valve",))
        self.assertRegex(json.loads(choice.message.tool_calls[0].function.arguments)["valve"], "^valve_[0-9]$")

    def test_allowed_tools(self):
        only = [{"type": "function", "function": {"name": "set_valve"}}]
        for mode, reason in [("required", "tool_calls"), ("auto", "stop")]:
            allowed = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": only}}
            choice = self.both(tools=[LIGHT, VALVE], tool_choice=allowed)
            self.assertEqual(choice.finish_reason, reason)

    def test_ids_differ(self):
        calls = [chat(tools=[LIGHT], n=4).choices[place].message.tool_calls[0].id for place in range(4)]
        self.assertEqual(len(set(calls)), 4)

    def test_a_loop_with_results(self):
        messages = list(SAY)
        message = chat(tools=[LIGHT]).choices[0].message
        messages.append(message)
        messages.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "done"})
        messages.append({"role": "user", "content": "close valve 3"})
        self.assertIn("set_valve", chat(messages).choices[0].message.content)

    def test_the_parse_helper_reads_arguments(self):
        class Light(BaseModel):
            room: str
            state: Literal["on", "off"]

        tool = openai.pydantic_function_tool(Light, name="set_light")
        answer = client().chat.completions.parse(model="pocket", messages=SAY, tools=[tool])
        self.assertEqual(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Light(room="porch", state="on"))

    def test_the_stream_helper_tells_calls(self):
        with client().chat.completions.stream(model="pocket", messages=SAY, tools=[VALVE], tool_choice="required") as stream:
            events = [event.type for event in stream]
            final = stream.get_final_completion()
        self.assertIn("tool_calls.function.arguments.delta", events)
        self.assertIn("tool_calls.function.arguments.done", events)
        self.check(final.choices[0].message, final.choices[0].finish_reason, ("set_valve",))


class Others(unittest.TestCase):
    def test_completions(self):
        answer = client().completions.create(model="pocket", prompt=["a", "b"], max_tokens=3, n=2, logprobs=1, seed=1)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2, 3])
        self.assertTrue(all(len(choice.logprobs.tokens) <= 3 for choice in answer.choices))
        parts = client().completions.create(model="pocket", prompt="a", max_tokens=3, stream=True, seed=1)
        text = "".join(part.choices[0].text for part in parts)
        self.assertEqual(text, client().completions.create(model="pocket", prompt="a", max_tokens=3, seed=1).choices[0].text)

    def test_models(self):
        self.assertEqual([model.id for model in client().models.list()], ["pocket"])
        self.assertEqual(client().models.retrieve("pocket").owned_by, "farpost")
        with self.assertRaises(openai.NotFoundError):
            client().models.retrieve("gpt-9")


class Fields(unittest.TestCase):
    """Every field that the package has is known: a value that none of them takes is refused by its name."""

    def check(self, server, path, params, request):
        names = list(typing.get_type_hints(params))
        self.assertGreater(len(names), 4)
        for name in names:
            with self.subTest(name):
                with self.assertRaises(openai.BadRequestError) as caught:
                    client(server).post(path, body={**request, name: [[]]}, cast_to=object)
                self.assertTrue(caught.exception.param.startswith(name), caught.exception)
                self.assertNotEqual(caught.exception.code, "unknown_parameter")

    def test_chat_completions(self):
        from openai.types.chat.completion_create_params import CompletionCreateParamsBase

        self.check(SERVER, "/chat/completions", CompletionCreateParamsBase, {"model": "pocket", "messages": SAY})

    def test_completions(self):
        from openai.types.completion_create_params import CompletionCreateParamsBase

        self.check(SERVER, "/completions", CompletionCreateParamsBase, {"model": "pocket", "prompt": "a"})

    def test_embeddings(self):
        from openai.types.embedding_create_params import EmbeddingCreateParams

        server = Server("--model", os.environ["FARPOST_EMBEDDER"], "--alias", "e")
        self.addCleanup(server.close)
        self.check(server, "/embeddings", EmbeddingCreateParams, {"model": "e", "input": "a"})

    def test_an_answer_can_be_sent_back_as_it_came(self):
        stream = client().chat.completions.stream(model="pocket", messages=SAY, tools=[LIGHT])
        with stream as events:
            list(events)
            streamed = events.get_final_completion().choices[0].message
        for message in (chat().choices[0].message, chat(tools=[LIGHT]).choices[0].message, streamed):
            results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in message.tool_calls or []]
            say = {"role": "user", "content": "close valve 3"}
            self.assertIn("set_valve", chat([*SAY, message, *results, say]).choices[0].message.content)
            self.assertIn("set_valve", chat([*SAY, message.to_dict(), *results, say]).choices[0].message.content)


class Embeddings(unittest.TestCase):
    """Of a tiny model that makes them. The package asks for base64 unless told otherwise, and gives floats."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server("--model", os.environ["FARPOST_EMBEDDER"], "--alias", "e", "--parallel", "4")
        cls.plain = Server()

    @classmethod
    def tearDownClass(cls):
        cls.server.close()
        cls.plain.close()

    def embed(self, texts, **more):
        return client(self.server).embeddings.create(model="e", input=texts, **more)

    def assertAlike(self, found, expected):
        self.assertEqual(len(found), len(expected))
        self.assertLess(max(abs(a - b) for a, b in zip(found, expected)), 1e-4)

    def test_one_text(self):
        answer = self.embed("the queen and the king")
        vector = answer.data[0].embedding
        self.assertEqual((answer.object, answer.model, answer.data[0].object, len(vector)), ("list", "e", "embedding", 256))
        self.assertAlmostEqual(sum(number * number for number in vector), 1, places=5)
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.total_tokens), (14, 14))
        plain = self.embed("the queen and the king", encoding_format="float").data[0].embedding
        self.assertAlike(vector, plain)

    def test_many_texts_keep_their_order(self):
        texts = [f"text number {number}" for number in range(40)]
        answer = self.embed(texts)
        self.assertEqual([entry.index for entry in answer.data], list(range(40)))
        self.assertAlike(answer.data[17].embedding, self.embed(texts[17]).data[0].embedding)

    def test_ids(self):
        one = self.embed([5, 6, 7]).data[0].embedding
        several = self.embed([[5, 6, 7], [8, 9]]).data
        self.assertAlike(several[0].embedding, one)
        self.assertEqual(len(several), 2)

    def test_fewer_dimensions(self):
        whole, short = (self.embed("a", **more).data[0].embedding for more in ({}, {"dimensions": 16}))
        length = sum(number * number for number in whole[:16]) ** 0.5
        self.assertAlike(short, [number / length for number in whole[:16]])

    def test_what_is_wrong(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.embed("a", dimensions=257)
        self.assertEqual(caught.exception.param, "dimensions")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.embed(["a", [1] * 600])
        self.assertEqual((caught.exception.param, caught.exception.code), ("input[1]", "context_length_exceeded"))
        with self.assertRaises(openai.BadRequestError) as caught:
            client(self.plain).embeddings.create(model="pocket", input="a")
        self.assertEqual((caught.exception.param, caught.exception.code), ("model", "unsupported_model"))
        with self.assertRaises(openai.BadRequestError) as caught:
            client(self.server).chat.completions.create(model="e", messages=SAY)
        self.assertEqual(caught.exception.code, "unsupported_model")
        with self.assertRaises(openai.NotFoundError):
            client(self.server).embeddings.create(model="text-embedding-3-small", input="a")

    def test_many_at_once(self):
        async def ask():
            async with AsyncOpenAI(base_url=self.server.base_url, api_key="none", max_retries=0) as many:
                return await asyncio.gather(*(many.embeddings.create(model="e", input=f"text {n}") for n in range(20)))

        answers = asyncio.run(ask())
        self.assertAlike(answers[3].data[0].embedding, self.embed("text 3").data[0].embedding)


class Errors(unittest.TestCase):
    def refused(self, error, status, param=None, **more):
        with self.assertRaises(error) as caught:
            chat(**more)
        self.assertEqual(caught.exception.status_code, status)
        self.assertEqual(caught.exception.param, param)
        self.assertTrue(caught.exception.request_id)
        return caught.exception

    def test_what_is_wrong_names_the_parameter(self):
        self.refused(openai.BadRequestError, 400, "temperature", temperature=9)
        self.refused(openai.BadRequestError, 400, "reasoning_effort", reasoning_effort="low")
        self.refused(openai.BadRequestError, 400, "tool_choice", tool_choice="auto")
        self.refused(openai.BadRequestError, 400, "nonsense", extra_body={"nonsense": 1})
        self.refused(openai.BadRequestError, 400, "tools[0].type", tools=[{"type": "custom", "custom": {"name": "x"}}])
        tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"unevaluatedItems": 1}}}
        error = self.refused(openai.BadRequestError, 400, "tools[0].function.parameters#/unevaluatedItems", tools=[tool])
        self.assertEqual(error.code, "unsupported_schema")
        self.assertIn("unevaluatedItems", error.message)
        self.assertEqual(self.refused(openai.BadRequestError, 400, "max_tokens", max_tokens=250).code, "context_length_exceeded")

    def test_an_unknown_model(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            client().chat.completions.create(model="gpt-9", messages=SAY)
        self.assertEqual(caught.exception.code, "model_not_found")

    def test_keys(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "keys.json")
            with open(path, "w") as file:
                json.dump({"keys": [{"id": "a", "sha256": hashlib.sha256(b"secret").hexdigest()}]}, file)
            server = Server("--keys", path)
            self.addCleanup(server.close)
            with self.assertRaises(openai.AuthenticationError):
                client(server).models.list()
            self.assertEqual([model.id for model in client(server, api_key="secret").models.list()], ["pocket"])


class Load(unittest.TestCase):
    """A server that does one thing at a time, kept busy by a long request."""

    def setUp(self):
        self.server = Server("--parallel", "1", "--queue", "1")
        self.addCleanup(self.server.close)

    def begin(self, server=None):
        """A stream that is running. Its further choices wait for it, and take no place in the queue."""
        stream = client(server or self.server).chat.completions.create(
            model="pocket", messages=SAY, stream=True, n=64, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        return stream

    def test_a_stream_that_is_closed_is_not_worked_for(self):
        stream = self.begin()
        stream.close()
        wait_until(lambda: metric(self.server, "farpost_running") == 0)
        self.assertEqual(metric(self.server, "farpost_cancelled_total"), 1)

    def test_a_full_queue_and_retries(self):
        stream = self.begin()
        # Its first token may be told before its place in the queue is free.
        wait_until(lambda: metric(self.server, "farpost_running") == 1)
        waiting = client(self.server).chat.completions.create(model="pocket", messages=SAY, stream=True)
        with self.assertRaises(openai.RateLimitError) as caught:
            client(self.server).chat.completions.create(model="pocket", messages=SAY)
        self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)
        self.assertEqual(caught.exception.code, "queue_full")
        stream.close()
        waiting.close()
        answer = client(self.server, max_retries=8).chat.completions.create(model="pocket", messages=SAY)
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_a_time_limit_of_the_client(self):
        server = Server("--parallel", "1", "--queue", "1000")
        self.addCleanup(server.close)
        stream = self.begin(server)
        with self.assertRaises(openai.APITimeoutError):
            client(server, timeout=0.3).chat.completions.create(model="pocket", messages=SAY)
        stream.close()


if __name__ == "__main__":
    unittest.main()
