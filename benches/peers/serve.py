"""Measures `farpost serve` beside llama-server with one client, in turn, round by round, and prints the table.

Called by `run serve`. Every measurement has a server of its own, started for it and ended after it.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

from compare import HERE, PEERS, held, model_file, processor, set_up
from contenders import Farpost, Refused
from rows import L1B, Model

# Ordinary tokens of the vocabulary, none of which controls anything.
IDS = (1000, 100_000)
CONTEXT = 2048
CLIENTS = 8
# Seconds until a server is no longer waited for, and until an answer is not.
PATIENCE = 240


class FarpostServer:
    name = "farpost"
    ready = "/readyz"

    def __init__(self, program, threads, is_unpacked):
        self.program, self.threads, self.is_unpacked = program, threads, is_unpacked

    def command(self, model, port, n_parallel):
        return [
            self.program, "serve", "--quiet", "--port", str(port), "--threads", str(self.threads),
            "--context", str(CONTEXT), "--parallel", str(n_parallel), "--kv-tokens", str(CONTEXT * n_parallel),
            *(["--model", model] if model else []), *(["--unpacked"] if self.is_unpacked and model else []),
        ]  # fmt: skip


class LlamaServer:
    """With its defaults, which batch continuously; each of its slots has a context of its own."""

    name = "llama-server"
    ready = "/health"

    def __init__(self, threads):
        self.threads = threads

    def command(self, model, port, n_parallel):
        return [
            os.path.join(PEERS, "llama-server/llama-server"), "--model", model, "--host", "127.0.0.1", "--port", str(port),
            "--threads", str(self.threads), "--parallel", str(n_parallel), "--ctx-size", str(CONTEXT * n_parallel),
        ]  # fmt: skip


class Running:
    """A server that is ready."""

    def __init__(self, process, port, args):
        self.process, self.port, self.args = process, port, args

    def client(self, seed, ids=IDS, **options):
        """The load generator as a command; prompts are token ids, the same for all servers."""
        command = [
            self.args.farpost, "bench", "serve", "--quiet", "--json", "--url", f"http://127.0.0.1:{self.port}",
            "--api", "completions", "--ignore-eos", "--seed", str(seed), "--timeout", str(PATIENCE),
            "--prompt-ids", f"{ids[0]}..{ids[1]}",
        ]  # fmt: skip
        options["fields"] = json.dumps({"temperature": 0, **options.get("fields", {})})
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        return command

    def load(self, seed, **options):
        """What the client measured; all must have been answered, with exactly the tokens asked for."""
        done = subprocess.run(self.client(seed, **options), capture_output=True, text=True)
        if done.returncode != 0:
            raise Refused(done.stderr.strip())
        report = json.loads(done.stdout)
        n = report["requests"]
        lengths = [report[of]["mean"] if report[of] else None for of in ("prompt_lengths", "answer_lengths")]
        if report["done"] != n or lengths != [options["prompt_tokens"], options["answer_tokens"]]:
            raise Refused(f"{report['done']} of {n} were answered, tokens on average {lengths}: {report['failures']}")
        if not options.get("shared_prefix") and report["cached_tokens"]:
            raise Refused("prompts of their own were found in the cache")
        return report

    def metric(self, family):
        """The sum of a family of Farpost's metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as reply:
            lines = reply.read().decode().splitlines()
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((family + "{", family + " "))]
        if not values:
            raise Refused(f"there is no metric {family}")
        return sum(values)

    def cpu_seconds(self):
        """Time that all threads of the server have computed."""
        # The clock of another process (see the kernel's posix-timers.h): the complement of its id, then "all threads".
        return time.clock_gettime(~self.process.pid << 3 | 2)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def serving(server, model, n_parallel, args):
    port = free_port()
    log = os.path.join(PEERS, f"serve-{server.name}.log")
    with open(log, "w") as errors:
        command = server.command(model, port, n_parallel)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
    try:
        end = time.monotonic() + PATIENCE
        while not is_ready(port, server.ready):
            if process.poll() is not None or time.monotonic() > end:
                raise Refused(f"it does not serve, see {log}")
            time.sleep(0.05)
        yield Running(process, port, args)
    finally:
        process.kill()
        process.wait()


def is_ready(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def eight(server, model, seed, args):
    """Eight clients at once, prompts of their own."""
    with serving(server, model, CLIENTS, args) as running:
        options = {"clients": CLIENTS, "requests": CLIENTS, "prompt_tokens": 128, "answer_tokens": 64, "warmup": 1}
        report = running.load(seed, **options)
    return {
        "tokens_per_second": report["answer_tokens_per_second"],
        "ttft_s": report["ttft_ms"]["p50"] / 1e3,
        "report": report,
    }


def shared(server, model, seed, args):
    """The same after 1,000 tokens that all share: a first wave that does not count, then a second."""
    unshared = eight(server, model, seed, args)
    with serving(server, model, CLIENTS, args) as running:
        options = {"clients": CLIENTS, "requests": CLIENTS, "warmup": CLIENTS, "shared_prefix": 1000}
        report = running.load(seed, prompt_tokens=1128, answer_tokens=64, **options)
    ttft = report["ttft_ms"]["p50"] / 1e3
    return {"ttft_s": ttft, "times": ttft / unshared["ttft_s"], "report": report}


def interactive(server, model, seed, args):
    """One request after the other on an idle server, and again while eight others run."""
    with serving(server, model, CLIENTS + 1, args) as running:
        one = {"clients": 1, "requests": 4, "prompt_tokens": 128, "answer_tokens": 32, "warmup": 1}
        # llama-server has no priorities; it takes the field and does nothing with it.
        idle = running.load(seed, fields={"priority": "high"}, **one)
        batch = {"clients": CLIENTS, "requests": CLIENTS, "prompt_tokens": 128, "answer_tokens": 1500, "warmup": 0}
        command = running.client(seed + 1, fields={"priority": "low"}, **batch)
        behind = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # Until all of them write.
            time.sleep(2 + CLIENTS * idle["ttft_ms"]["p50"] / 1e3)
            busy = running.load(seed + 2, fields={"priority": "high"}, **one)
            if behind.poll() is not None:
                raise Refused("the batch ended before the interactive requests")
        finally:
            behind.kill()
            behind.wait()
    middle = lambda report, of: report[of]["p50"] / 1e3
    return {
        "ttft_s": middle(busy, "ttft_ms"),
        "ttft_times": middle(busy, "ttft_ms") / middle(idle, "ttft_ms"),
        "tpot_s": middle(busy, "tpot_ms"),
        "tpot_times": middle(busy, "tpot_ms") / middle(idle, "tpot_ms"),
        "idle": idle,
        "busy": busy,
    }


def overhead(server, _, seed, args):
    """The engine's own time with the built-in model, a tiny one."""
    if not isinstance(server, FarpostServer):
        raise Refused("its engine's own time is not told")
    with serving(server, None, CLIENTS, args) as running:
        running.load(seed, ids=(300, 900), clients=CLIENTS, requests=64, prompt_tokens=32, answer_tokens=64)
        seconds, tokens = (running.metric(f"farpost_{of}_total") for of in ("overhead_seconds", "generated_tokens"))
    return {"overhead_us": seconds / tokens * 1e6, "tokens": tokens}


def hang_up(server, model, seed, args):
    """A client that closes its connection a second after asking, with seconds of prompt left to read."""
    with serving(server, model, CLIENTS, args) as running:
        running.load(seed, clients=1, requests=1, prompt_tokens=128, answer_tokens=4, warmup=0)
        draw = random.Random(seed)
        body = {"model": "", "prompt": [draw.randrange(*IDS) for _ in range(1900)], "max_tokens": 4, "stream": True}
        with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/v1/models") as reply:
            body["model"] = json.load(reply)["data"][0]["id"]
        connection = http.client.HTTPConnection("127.0.0.1", running.port)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        time.sleep(0.9)
        before = running.cpu_seconds()
        time.sleep(0.1)
        if running.cpu_seconds() - before < 0.08:
            raise Refused("it was not reading the prompt after a second")
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        return {"stop_ms": 1e3 * until_still(running)}


def until_still(running):
    """Seconds until the server has computed for the last time, looked at every 2 ms: still is a fifth of a second in which
    it computed less than a twentieth of the time."""
    start = time.monotonic()
    looks = [(0.0, running.cpu_seconds())]
    while looks[-1][0] < 60:
        time.sleep(0.002)
        looks.append((time.monotonic() - start, running.cpu_seconds()))
        now, cpu = looks[-1]
        past = [look for look in looks if look[0] <= now - 0.2]
        if past and cpu - past[-1][1] < 0.01:
            # The last look before which it computed for at least half of the time.
            pairs = list(zip(looks, looks[1:]))
            busy = [b[0] for a, b in pairs if b[1] - a[1] > 0.5 * (b[0] - a[0])]
            return busy[-1] if busy else 0.0
    raise Refused("it went on computing for a minute")


def ratio(of):
    """How many times better than the peer's."""
    return lambda ours, theirs: ours[of] / theirs[of] if of == "tokens_per_second" else theirs[of] / ours[of]


# Name, measurement, what a contender's cell says, the compared figure in words, what must be reached, and whether it is.
ROWS = [
    ("8 clients, 128 and 64 tokens: throughput", eight, lambda a: f"{a['tokens_per_second']:.1f} tok/s",
     ratio("tokens_per_second"), "3x", lambda ours, times: times is not None and times >= 3),
    ("the same: first token, median", eight, lambda a: f"{a['ttft_s']:.2f} s",
     ratio("ttft_s"), "2.5x sooner", lambda ours, times: times is not None and times >= 2.5),
    ("after 1,000 shared tokens, second wave: first token", shared,
     lambda a: f"{a['ttft_s']:.2f} s, {a['times']:.2f} of unshared", ratio("ttft_s"), "1.3 of unshared",
     lambda ours, _: ours["times"] < 1.3),
    ("interactive beside 8: first token", interactive,
     lambda a: f"{a['ttft_s']:.2f} s, {a['ttft_times']:.2f} of idle", ratio("ttft_s"), "2 of idle",
     lambda ours, _: ours["ttft_times"] <= 2),
    ("interactive beside 8: a token", interactive,
     lambda a: f"{a['tpot_s'] * 1e3:.0f} ms, {a['tpot_times']:.2f} of idle", ratio("tpot_s"), "1.5 of idle",
     lambda ours, _: ours["tpot_times"] <= 1.5),
    ("engine beside steps, tiny model, a token", overhead, lambda a: f"{a['overhead_us']:.1f} us",
     None, "under 30 us", lambda ours, _: ours["overhead_us"] < 30),
    ("socket closed in the prompt: compute stops", hang_up, lambda a: f"{a['stop_ms']:.0f} ms",
     ratio("stop_ms"), "within 100 ms", lambda ours, _: ours["stop_ms"] <= 100),
]  # fmt: skip
MEASUREMENTS = [eight, shared, interactive, overhead, hang_up]


def measure(measurement, servers, model, args, log):
    """All rounds: figures by server, each a list; why others have none."""
    figures, refused = {}, {}
    for number in range(args.rounds):
        with held(args.lock):
            for server in servers:
                if server.name in refused:
                    continue
                line = {"row": measurement.__name__, "round": number, "contender": server.name, "at": time.time()}
                try:
                    line.update(measurement(server, model, 100 * number + 1, args))
                    figures.setdefault(server.name, []).append(line)
                except Refused as error:
                    refused[server.name] = line["refused"] = str(error)
                    print(f"{measurement.__name__}: {server.name}: {error}", file=sys.stderr)
                log.write(json.dumps(line) + "\n")
                log.flush()
    return figures


def medians(lines):
    """Each figure's median over the rounds."""
    names = [name for name, value in lines[0].items() if isinstance(value, float) and name != "at"]
    return {name: statistics.median(line[name] for line in lines) for name in names}


def main():
    parser = argparse.ArgumentParser(prog="run serve", description=__doc__.splitlines()[0])
    names = ",".join(measurement.__name__ for measurement in MEASUREMENTS)
    parser.add_argument("--rows", default=names, help=f"what to measure (default: {names})")
    parser.add_argument("--rounds", type=int, default=3, help="how often all take turns (default: 3)")
    parser.add_argument("--alone", action="store_true", help="Farpost only")
    parser.add_argument("--unpacked", action="store_true", help="Farpost without its packed file")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--models", default=os.path.join(PEERS, "models"), help="where model files are or are made")
    parser.add_argument("--farpost", help="the program (default: built from this source)")
    parser.add_argument("--lock", help="a file to lock while measuring, on a machine that others measure on")
    args = parser.parse_args()
    chosen = args.rows.split(",")
    if unknown := set(chosen) - {measurement.__name__ for measurement in MEASUREMENTS}:
        raise SystemExit(f"run serve: there are no rows '{unknown.pop()}', there are {names}")
    set_up(args, [] if args.alone else ["server"])
    model = model_file(Model(L1B, "q4_0"), args.models, args.farpost)
    servers = [FarpostServer(args.farpost, args.threads, args.unpacked)]
    if not args.alone:
        servers.append(LlamaServer(args.threads))
    if not args.unpacked:
        packing = Farpost(args.farpost, args.threads)
        packing.open(model)
        packing.pack()

    path = os.path.join(PEERS, time.strftime("serve-%Y%m%d-%H%M%S.jsonl"))
    packed = "unpacked" if args.unpacked else "packed"
    print(f"{processor()}, {args.threads} threads, {L1B} Q4_0 ({packed}), {args.rounds} rounds, "
          f"load {os.getloadavg()[0]:.1f}; raw: {path}\n")  # fmt: skip
    titles = ["row", *(server.name for server in servers), "times better", "must reach", "verdict"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    with open(path, "w") as log:
        for measurement in MEASUREMENTS:
            if measurement.__name__ not in chosen:
                continue
            figures = measure(measurement, servers, model, args, log)
            for name, of, cell, times, must, is_reached in ROWS:
                if of is not measurement:
                    continue
                cells = [cell(medians(figures[s.name])) if s.name in figures else "-" for s in servers]
                ours, theirs = (figures.get(name, []) for name in ("farpost", "llama-server"))
                better = statistics.median(map(times, ours, theirs)) if times and ours and theirs else None
                verdict = ("reached" if is_reached(medians(ours), better) else "missed") if ours else "-"
                better = f"{better:.2f}" if better else "-"
                print(f"| {' | '.join([name, *cells, better, must, verdict])} |", flush=True)


if __name__ == "__main__":
    main()
