"""Ours and the peers, each behind the same few calls: `measure` a row once, `start` to a first token."""

import glob
import json
import os
import select
import subprocess
import time

# 16 tokens or so: the synthetic vocabulary, which knows few English words, makes of four what others make of a sentence.
PROMPT = "The quick brown fox"
# Nearly fills the context with the synthetic vocabulary, which knows few English words: 36 tokens a sentence.
LONG_PROMPT = "the quick brown fox jumps over the lazy dog; " * 55
CONTEXT = 2048
# Tokens of a warm-up, and of a trial of decode.
SHORT = 16
# Seconds until a peer's answer is no longer awaited.
PATIENCE = 240


def uncached(path):
    """Drops a file from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading_seconds(path):
    """What reading a file once takes that is not cached."""
    uncached(path)
    begin = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        block = bytearray(1 << 20)
        while file.readinto(block):
            pass
    return time.perf_counter() - begin


class Refused(Exception):
    """A contender that does not run a file or test; the message says why."""


def private_bytes(pid):
    """Memory of a process that is no file's, in use or swapped out; None if the process has ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            sizes = dict(line.split()[:2] for line in file.readlines()[1:])
    except (FileNotFoundError, ProcessLookupError):
        return None
    return 1024 * (int(sizes["Anonymous:"]) + int(sizes["Swap:"])) if sizes else None


class Farpost:
    name = "farpost"

    def __init__(self, program, threads, isa=None):
        self.program, self.threads = program, str(threads)
        self.environment = {**os.environ, **({"FARPOST_CPU": isa} if isa else {})}

    def open(self, model):
        self.model = model

    def close(self):
        pass

    def prepare(self, row, hold):
        """What is to be done before measuring: packing here; in a peer, finding out which variant is fastest."""
        if row.is_packed:
            self.pack()

    def pack(self):
        """Packs the model, if it is not."""
        own = self.environment.get("FARPOST_CPU") or "*"
        if not glob.glob(f"{glob.escape(self.model)}.{own}.pack"):
            command = [self.program, "pack", "--quiet", self.model]
            done = subprocess.run(command, capture_output=True, text=True, env=self.environment)
            if done.returncode != 0:
                raise Refused(done.stderr.strip())

    def measure(self, row):
        request = row.request()
        command = [
            self.program, "bench", "--quiet", "--json", "--model", self.model, "--threads", self.threads,
            f"--{request['test']}", str(request["n"]), "--depth", str(row.depth), "--batch", str(row.batch),
            "--kv-type", row.kv, "--repetitions", "1",
            # Filling the context warms up enough.
            "--warmup", "0" if row.depth else "1", *([] if row.is_packed else ["--unpacked"]),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment)
        if done.returncode != 0:
            raise Refused(done.stderr.strip())
        answer = json.loads(done.stdout)
        if row.is_packed and not answer["packed"]:
            raise Refused("the packed file is stale: remove it")
        return answer

    def _run(self, prompt, n_tokens):
        command = [
            self.program, "run", "--quiet", "--model", self.model, "--threads", self.threads, "--raw", "--ignore-eos",
            "--temperature", "0", "--unpacked", "--context", str(CONTEXT), "--max-tokens", str(n_tokens), prompt,
        ]  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=self.environment)

    def start(self):
        """The whole process, its end too, for one token."""
        begin = time.perf_counter()
        process = self._run(PROMPT, 1)
        _, errors = process.communicate()
        if process.returncode != 0:
            raise Refused(errors.strip())
        return {"seconds": time.perf_counter() - begin}

    def cold(self):
        """The same for a file that is not cached, in times of what reading it takes."""
        reading = reading_seconds(self.model)
        uncached(self.model)
        answer = self.start()
        return {**answer, "reading_seconds": reading, "times_reading": answer["seconds"] / reading}

    def memory(self):
        """The most private memory while a long prompt is read and some tokens are written."""
        process, most = self._run(LONG_PROMPT, 8), 0
        while process.poll() is None:
            most = max(most, private_bytes(process.pid) or 0)
            time.sleep(0.02)
        if process.returncode != 0:
            raise Refused(process.stderr.read().strip())
        return {"private_bytes": most}


class Peer:
    """A program that answers requests line by line, kept while a file is measured."""

    process = None

    def open(self, model):
        """Takes up a file; it is loaded when the first request comes."""
        self.close()
        self.model, self.best = model, {}

    def _load(self):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(self.command(self.model), **pipes, text=True, env=self.environment())
        self.about = self._answer()

    def close(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    def _answer(self):
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.process.kill()
            self.process.wait()
            self.process = None
            raise Refused(f"no answer within {PATIENCE} s")
        line = self.process.stdout.readline()
        if not line:
            errors = self.process.stderr.read().strip()
            self.process.wait()
            self.process = None
            raise Refused(errors.splitlines()[-1] if errors else "it ended without a word")
        return json.loads(line)

    def _ask(self, request):
        if not self.process:
            self._load()
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def prepare(self, row, hold):
        """Warms up, and finds which variant is the fastest for this row; `hold` makes the lock for each trial."""
        trials = []
        for variant in self.variants_of(row):
            request = {**row.request(), **variant}
            with hold():
                self._ask({**request, "n": SHORT})
                trial = self._ask(request if row.test == "pp" else {**request, "n": SHORT})
                trials.append((trial["tokens_per_second"], request))
        if trials:
            self.best[row] = max(trials, key=lambda trial: trial[0])[1]
            if self.best[row] != trials[-1][1]:
                with hold():
                    self._ask({**self.best[row], "n": SHORT})

    def measure(self, row):
        if row not in self.best:
            raise Refused("no variant runs it")
        return {**self._ask(self.best[row]), "request": self.best[row]}


class LlamaCpp(Peer):
    def __init__(self, name, root, threads):
        self.name, self.root, self.threads = name, root, threads

    def environment(self):
        # The binding is looked for in the folder of this build.
        return {**os.environ, "PYTHONPATH": os.path.join(self.root, f"llama-{self.name}")}

    def command(self, model):
        worker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "llama_worker.py")
        return [os.path.join(self.root, "venv/bin/python"), worker, "--threads", str(self.threads), "--model", model]

    def variants_of(self, row):
        """Flash attention on and off (values in Q8_0 need it); several sequences in caches of their own or in one."""
        attention = (True,) if row.kv == "q8_0" else (True, False)
        caches = (False, True) if row.batch > 1 else (False,)
        return [{"kv": row.kv, "fa": fa, "unified": unified} for fa in attention for unified in caches]

    def _start(self, model, prompt, before=lambda: None):
        """With weights as they lie in the file, and repacked for speed."""
        answers = []
        for plain in (["--plain-buffers"], []):
            before()
            command = [*self.command(model), "--context", str(CONTEXT), "--start", prompt, *plain]
            done = subprocess.run(command, capture_output=True, text=True, env=self.environment())
            if done.returncode != 0:
                raise Refused(done.stderr.strip().splitlines()[-1])
            answers.append({**json.loads(done.stdout), "plain": bool(plain)})
        return answers

    def start(self):
        return min(self._start(self.model, PROMPT), key=lambda answer: answer["seconds"])

    def cold(self):
        reading = reading_seconds(self.model)
        answers = self._start(self.model, PROMPT, before=lambda: uncached(self.model))
        answer = min(answers, key=lambda answer: answer["seconds"])
        return {**answer, "reading_seconds": reading, "times_reading": answer["seconds"] / reading}

    def memory(self):
        return min(self._start(self.model, LONG_PROMPT), key=lambda answer: answer["private_bytes"])


class Candle(Peer):
    name = "candle"

    def __init__(self, root, threads):
        self.root, self.threads = root, threads

    def environment(self):
        return {**os.environ, "RAYON_NUM_THREADS": str(self.threads)}

    def command(self, model):
        return [os.path.join(self.root, "candle/release/farpost-peer-candle"), model]

    def variants_of(self, row):
        return [{}] if row.kv == "f16" else []

    def start(self):
        raise Refused("its start is not measured")

    cold = memory = start
