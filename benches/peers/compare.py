"""Measures Farpost beside its peers, in turn, round by round, and prints the table. Called by `run`."""

import argparse
import contextlib
import fcntl
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import rows as table
from contenders import Candle, Farpost, LlamaCpp, Refused

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.normpath(os.path.join(HERE, "../.."))
PEERS = os.path.join(ROOT, "target/peers")


@contextlib.contextmanager
def held(lock):
    """Holds a lock file, so that several users of a machine measure one after another."""
    if not lock:
        yield
        return
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def busy_cores():
    """Another program that spins on every core."""
    spinners = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(len(os.sched_getaffinity(0)))]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def set_up(args, peers):
    """Builds what is not there: ours, unless a program was named, and the peers."""
    if not args.farpost:
        args.farpost = os.path.join(ROOT, "target/release/farpost")
        subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "farpost"], cwd=ROOT, check=True)
    for peer in peers:
        built = "candle/release/farpost-peer-candle" if peer == "candle" else f"llama-{peer}"
        if not os.path.exists(os.path.join(PEERS, built)):
            subprocess.run([os.path.join(HERE, "setup"), peer], check=True)


def model_file(model, folder, program):
    """The file of a row, made if it is not there."""
    path = os.path.join(folder, f"{model.name}.gguf")
    if os.path.exists(path):
        return path
    os.makedirs(folder, exist_ok=True)
    new = f"{path}.new"
    if model.source:
        source = model_file(model.source, folder, program)
        command = [program, "quantize", "--quiet", "--force", "--type", model.type, source, new]
    else:
        command = [program, "synth", "--quiet", "--force", "--shape", model.shape, "--type", model.type, "--out", new]
    print(f"making {path}", file=sys.stderr)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    os.rename(new, path)
    return path


def measure_once(contender, row):
    """One measurement; its main figure is `value`: tokens a second, seconds, bytes, or busy as a share of idle."""
    if row.test == "start":
        answer = contender.start()
        return {**answer, "value": answer["seconds"]}
    if row.test == "cold":
        answer = contender.cold()
        return {**answer, "value": answer["times_reading"]}
    if row.test == "memory":
        answer = contender.memory()
        return {**answer, "value": answer["private_bytes"]}
    answer = contender.measure(row)
    if row.test == "busy":
        with busy_cores():
            busy = contender.measure(row)
        rates = (answer["tokens_per_second"], busy["tokens_per_second"])
        return {"idle_tokens_per_second": rates[0], "busy_tokens_per_second": rates[1], "value": rates[1] / rates[0]}
    return {**answer, "value": answer["tokens_per_second"]}


def run_row(row, contenders, args, log):
    """All rounds of a row: a list of values for each contender, and why others have none."""
    path = model_file(row.model, args.models, args.farpost)
    values, refused, reads, shares = {}, {}, [], []
    for contender in contenders:
        try:
            contender.open(path)
            if row.test not in ("start", "cold", "memory"):
                contender.prepare(row, lambda: held(args.lock))
        except Refused as error:
            refused[contender.name] = str(error)
    # Memory does not vary, and nothing else makes it vary.
    rounds, lock = (1, None) if row.test == "memory" else (args.rounds, args.lock)
    for number in range(rounds):
        with held(lock):
            for contender in contenders:
                if contender.name in refused:
                    continue
                try:
                    answer = measure_once(contender, row)
                except Refused as error:
                    refused[contender.name] = str(error)
                    continue
                values.setdefault(contender.name, []).append(answer["value"])
                if "roof_share" in answer:
                    reads.append(answer["read_bytes_per_second"] or 0.0)
                    shares.append(answer["roof_share"] or 0.0)
                line = {"row": row.name, "round": number, "contender": contender.name, "at": time.time(), **answer}
                log.write(json.dumps(line) + "\n")
                log.flush()
    for contender in contenders:
        contender.close()
    for name, why in refused.items():
        print(f"{row.name}: {name}: {why}", file=sys.stderr)
        log.write(json.dumps({"row": row.name, "contender": name, "refused": why}) + "\n")
    middle = lambda figures: statistics.median(figures) if figures else None
    return {"row": row, "values": values, "reads": middle(reads), "share": middle(shares)}


def ratio(result, peer):
    """Median over the rounds of ours to the peer's of the same round; above 1 is better for ours."""
    ours, theirs = result["values"].get("farpost"), result["values"].get(peer)
    if not ours or not theirs:
        return None
    pairs = [(b / a if result["row"].test in ("start", "cold", "memory") else a / b) for a, b in zip(ours, theirs)]
    return statistics.median(pairs)


def amount(row, value):
    if row.test == "start":
        return f"{value:.3f} s"
    if row.test == "cold":
        return f"{value:.2f} of reading"
    if row.test == "memory":
        return f"{value / 2**20:.0f} MiB"
    if row.test == "busy":
        return f"{value:.0%} of idle"
    return f"{value:.0f} tok/s" if value >= 100 else f"{value:.1f} tok/s"


def goal(result):
    """What must be reached, in words, with the least ratio and the least share of the roof or what else decides."""
    row = result["row"]
    if row.test == "start":
        return f"{row.goal} s", lambda ours, _: ours <= row.goal
    if row.test == "cold":
        return f"{row.goal} of reading", lambda ours, _: ours <= row.goal
    if row.test == "memory":
        most = row.goal + table.KV_BYTES_A_TOKEN[row.model.shape] * 2048
        return f"{most / 2**20:.0f} MiB (64 and keys and values)", lambda ours, _: ours < most
    if row.test == "busy":
        return f"{row.goal:.0%} of idle", lambda ours, _: ours >= row.goal
    if row.states:
        is_fast = (result["reads"] or 0.0) >= table.FAST_READS
        least, share = row.states[is_fast]
        words = f"{least}x, {share:.0%} of reads ({'fast' if is_fast else 'slow'} memory)"
        return words, lambda _, ratio: ratio >= least and (result["share"] or 0.0) >= share
    if row.goal is None:
        return "-", None
    return f"{row.goal}x", lambda _, ratio: ratio >= row.goal


def line(result, peers):
    row, values = result["row"], result["values"]
    ours = statistics.median(values["farpost"]) if "farpost" in values else None
    share = f"{result['share']:.0%}" if result["share"] is not None else "-"
    reads = f"{result['reads'] / 1e9:.1f}" if result["reads"] else "-"
    words, is_reached = goal(result)
    cells = [row.name, amount(row, ours) if ours is not None else "-", share, reads]
    verdicts = []
    for peer in peers:
        times = ratio(result, peer)
        if times is None:
            cells.append("not run")
            continue
        cells.append(f"{amount(row, statistics.median(values[peer]))}, {times:.2f}x")
        if peer != "candle" and is_reached:
            verdicts.append((peer, is_reached(ours, times)))
    if row.test in ("start", "cold", "memory", "busy") and ours is not None:
        verdict = "reached" if is_reached(ours, None) else "missed"
    elif not verdicts:
        verdict = "-"
    elif len({reached for _, reached in verdicts}) == 1:
        verdict = "reached" if verdicts[0][1] else "missed"
    else:
        verdict = ", ".join(f"{'reached' if reached else 'missed'} ({peer})" for peer, reached in verdicts)
    return [*cells, words, verdict]


def kv_line(results, peers):
    """Keys and values in Q8_0 shall not be slower than in F16: a row made of two."""
    deep = {result["row"].kv: result["values"].get("farpost") for result in results if result["row"].depth}
    if not deep.get("f16") or not deep.get("q8_0"):
        return []
    times = statistics.median(deep["q8_0"]) / statistics.median(deep["f16"])
    verdict = "reached" if times >= 0.98 else "missed"
    return [["the same, Q8_0 to F16", f"{times:.2f}x", "-", "-", *["-"] * len(peers), "1x (within 2 %)", verdict]]


def processor():
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def has_amx():
    with open("/proc/cpuinfo") as file:
        return any(line.startswith("flags") and " amx_int8" in line for line in file)


def main():
    parser = argparse.ArgumentParser(prog="run", description=__doc__)
    parser.add_argument("--rows", default="", help="groups of rows, comma-separated (default: all; --list shows them)")
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--quick", action="store_true", help="a few rows, three rounds")
    parser.add_argument("--rounds", type=int, help="how often all take turns (default: 5)")
    # Without AMX, native is no-amx already.
    default = "native,no-amx,candle" if has_amx() else "native,candle"
    parser.add_argument("--peers", default=default, help=f"llama.cpp builds (native, no-amx, avx2) and candle (default: {default})")
    parser.add_argument("--isa", help="hold Farpost to an instruction set, such as avx2 (for the build of that name)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--models", default=os.path.join(PEERS, "models"), help="where model files are or are made")
    parser.add_argument("--farpost", help="the program (default: built from this source)")
    parser.add_argument("--lock", help="a file to lock while measuring, on a machine that others measure on")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 5)
    chosen = table.select([name for name in args.rows.split(",") if name], args.quick)
    if args.list:
        for row in chosen:
            print(f"{row.group:14}{row.name}")
        return
    peers = [name for name in args.peers.split(",") if name]
    set_up(args, peers)
    contenders = [Farpost(args.farpost, args.threads, args.isa)]
    for name in peers:
        contenders.append(Candle(PEERS, args.threads) if name == "candle" else LlamaCpp(name, PEERS, args.threads))

    path = os.path.join(PEERS, time.strftime("results-%Y%m%d-%H%M%S.jsonl"))
    titles = ["row", "farpost", "of roof", "reads GB/s"]
    titles += [name if name == "candle" else f"llama.cpp {name}" for name in peers] + ["must reach", "verdict"]
    print(f"{processor()}, {args.threads} threads, {args.rounds} rounds, load {os.getloadavg()[0]:.1f}; raw: {path}\n")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    results = []
    with open(path, "w") as log:
        for row in chosen:
            results.append(run_row(row, contenders, args, log))
            print(f"| {' | '.join(line(results[-1], peers))} |", flush=True)
    for cells in kv_line(results, peers):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
