"""Runs llama.cpp on one model and answers requests, one JSON object a line, as llama-bench would measure them.

Calls the C interface through the binding's low level only: what is timed is `llama_decode` on batches and
`llama_synchronize`, never Python's own work on tokens. A request names a test:

    {"test": "pp", "n": 512, "depth": 0, "kv": "f16", "fa": true}
    {"test": "tg", "n": 64, "depth": 0, "batch": 4, "unified": false, "kv": "f16", "fa": true}

The answer has `tokens_per_second` and `seconds`. With --start it loads the model, reads a short prompt, takes the
likeliest token, and says how long that took from the first call to that token and how much private memory it holds: the
start of Python and the loading of the library are in neither.
"""

import argparse
import ctypes
import json
import sys
import time

from llama_cpp import llama_cpp as C
from llama_cpp import _ggml  # noqa: F401  (loads the library of tensors)

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
UBATCH = 512


class Log:
    """Keeps the lines that say in what kind of buffer the weights lie; drops the rest."""

    def __init__(self):
        self.lines = []
        self.callback = C.llama_log_callback(self.take)
        C.llama_log_set(self.callback, ctypes.c_void_p(0))

    def take(self, level, text, _):
        text = text.decode(errors="replace").strip()
        if "model buffer size" in text:
            self.lines.append(" ".join(text.split()[1:]))
        elif level >= 4 and level != 5:
            sys.stderr.write(text + "\n")


def load(args):
    params = C.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = not args.plain_buffers
    model = C.llama_model_load_from_file(args.model.encode(), params)
    if not model:
        sys.exit(f"llama.cpp refuses {args.model}")
    return model


def context(model, threads, n_ctx, kv="f16", fa=True, n_seq=1, unified=False):
    params = C.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch = params.n_ubatch = UBATCH
    params.n_seq_max = n_seq
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_ENABLED if fa else C.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.type_k = params.type_v = KV_TYPES[kv]
    params.kv_unified = unified
    params.no_perf = True
    ctx = C.llama_init_from_model(model, params)
    if not ctx:
        raise ValueError(f"llama.cpp makes no context of {n_ctx} with kv {kv}, flash attention {fa}")
    return ctx


class Batch:
    """A batch of up to 512 tokens, filled anew for every step."""

    def __init__(self):
        self.batch = C.llama_batch_init(UBATCH, 0, 1)

    def decode(self, ctx, rows, wanted):
        """`rows`: (token, position, sequence); `wanted`: numbers of the rows that give logits."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = i in wanted
        start = time.perf_counter()
        code = C.llama_decode(ctx, batch)
        C.llama_synchronize(ctx)
        seconds = time.perf_counter() - start
        if code != 0:
            raise ValueError(f"llama_decode gives {code}")
        return seconds


class Worker:
    def __init__(self, args):
        self.args = args
        self.model = load(args)
        self.n_vocab = C.llama_vocab_n_tokens(C.llama_model_get_vocab(self.model))
        self.batch = Batch()
        self.settings = self.ctx = None
        self.filled = 0

    def token(self, position, sequence):
        """Any token of the vocabulary, the same in every run, another in every sequence."""
        mixed = ((position + 1) * 0x9E3779B97F4A7C15 ^ sequence * 0xD1B54A32) & (2**64 - 1)
        return (mixed >> 20) % self.n_vocab

    def use(self, **settings):
        """The context of the last request if it fits, else a new one: one at a time, to bound memory."""
        if settings != self.settings:
            if self.ctx:
                C.llama_free(self.ctx)
            self.ctx, self.settings, self.filled = None, None, 0
            self.ctx = context(self.model, self.args.threads, **settings)
            self.settings = settings
        return C.llama_get_memory(self.ctx)

    def prefill(self, start, n):
        seconds = 0
        for first in range(start, start + n, UBATCH):
            end = min(first + UBATCH, start + n)
            rows = [(self.token(at, 0), at, 0) for at in range(first, end)]
            seconds += self.batch.decode(self.ctx, rows, {len(rows) - 1} if end == start + n else ())
        return seconds

    def run(self, test, n, depth=0, batch=1, unified=False, kv="f16", fa=True):
        room = -(-(depth + n) // 256) * 256
        memory = self.use(n_ctx=room * batch, kv=kv, fa=fa, n_seq=batch, unified=unified)
        if self.filled != depth or batch > 1:
            if depth and batch > 1:
                raise ValueError("several sequences are measured at depth 0 only")
            C.llama_memory_clear(memory, False)
            self.prefill(0, depth)
            self.filled = depth
        if test == "pp":
            seconds = self.prefill(depth, n)
        else:
            seconds = 0
            for at in range(depth, depth + n):
                rows = [(self.token(at, sequence), at, sequence) for sequence in range(batch)]
                seconds += self.batch.decode(self.ctx, rows, set(range(batch)))
        for sequence in range(batch):
            C.llama_memory_seq_rm(memory, sequence, depth, -1)
        return {"tokens_per_second": n * batch / seconds, "seconds": seconds}


def private_bytes():
    """Memory of this process that is no file's: anonymous pages, in use or swapped out."""
    sizes = dict(line.split()[:2] for line in open("/proc/self/smaps_rollup").readlines()[1:])
    return 1024 * (int(sizes["Anonymous:"]) + int(sizes["Swap:"]))


def start(args):
    before = private_bytes()
    begin = time.perf_counter()
    C.llama_backend_init()
    model = load(args)
    ctx = context(model, args.threads, args.context)
    vocab = C.llama_model_get_vocab(model)
    text = args.start.encode()
    tokens = (C.llama_token * (len(text) + 8))()
    n = C.llama_tokenize(vocab, text, len(text), tokens, len(tokens), True, True)
    if n <= 0:
        sys.exit("llama.cpp makes no tokens of the prompt")
    batch = Batch()
    for first in range(0, n, UBATCH):
        rows = [(tokens[at], at, 0) for at in range(first, min(first + UBATCH, n))]
        batch.decode(ctx, rows, {len(rows) - 1})
    token = C.llama_sampler_sample(C.llama_sampler_init_greedy(), ctx, -1)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "private_bytes": private_bytes() - before, "prompt_tokens": n, "token": token}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain-buffers", action="store_true", help="weights as they lie in the file: no AMX, no repacking")
    parser.add_argument("--context", type=int, default=2048, help="of --start")
    parser.add_argument("--start", metavar="PROMPT", help="measure the start instead of answering requests")
    args = parser.parse_args()
    log = Log()
    if args.start:
        print(json.dumps({**start(args), "buffers": log.lines}))
        return
    C.llama_backend_init()
    worker = Worker(args)
    about = {"ready": True, "buffers": log.lines, "system": C.llama_print_system_info().decode()}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        try:
            answer = worker.run(**json.loads(line))
        except (ValueError, TypeError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
