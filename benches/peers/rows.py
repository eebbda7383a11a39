"""The rows of the table: what is measured on which file, and what must be reached."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Model:
    """A file that `farpost synth` and `farpost quantize` make."""

    shape: str
    type: str

    @property
    def name(self):
        return f"{self.shape}-{self.type}"

    @property
    def source(self):
        """The file that this one is quantized from, as published ones are: mixtures with better types where it matters."""
        return None if self.type == "q8_0" else Model(self.shape, "q8_0")


@dataclass(frozen=True)
class Row:
    """One line: `test` is pp, tg, start, cold, memory or busy."""

    group: str
    model: Model
    test: str
    n: int = 0
    depth: int = 0
    batch: int = 1
    kv: str = "f16"
    # Least ratio to llama.cpp; for start the most seconds, for cold the most times what reading the file takes, for memory
    # the most bytes beside keys and values, for busy the least share of the idle speed. None where nothing must be reached.
    goal: float | None = None
    is_quick: bool = False
    # Ours with its packed file (`farpost pack`); otherwise without.
    is_packed: bool = False
    # Decode has two states of the memory: (least ratio, least share of reads) in the slow and in the fast one.
    states: tuple | None = None

    @property
    def name(self):
        test = f"{self.test}{self.n}" if self.n else self.test
        extra = (f" x {self.batch}" if self.batch > 1 else "") + (f" at {self.depth}, KV {self.kv}" if self.depth else "")
        return f"{self.model.shape} {self.model.type.upper()} {test}{extra}{', packed' if self.is_packed else ''}"

    def request(self):
        """The test as the workers of peers take it."""
        return {"test": "pp" if self.test == "pp" else "tg", "n": self.n, "depth": self.depth, "batch": self.batch}


# Reads of two threads that tell the fast state of the memory from the slow one: the goals were set on a machine that the
# host switched between 35 and 58 GB/s.
FAST_READS = 45e9

L1B, Q05, Q06 = "llama-3.2-1b", "qwen2.5-0.5b", "qwen3-0.6b"


def _prefill(group, shape, goals, quick=()):
    rows = (Row(group, Model(shape, kind), "pp", 512, goal=goal, is_quick=kind in quick) for kind, goal in goals.items())
    return list(rows)


ROWS = [
    *_prefill("prefill-1b", L1B, {"q4_0": 2.1, "q4_k_m": 2.1, "q8_0": 2.7}, quick=("q4_0", "q8_0")),
    *_prefill("prefill-0.5b", Q05, {"q4_0": 2.2, "q8_0": 2.7, "q4_k_m": 3.0}, quick=("q4_0",)),
    *_prefill("prefill-0.6b", Q06, {"q4_0": None, "q8_0": None, "q4_k_m": None}),
    *_prefill("types-1b", L1B, {"q5_k_m": 4.0, "q6_k": 4.0, "q3_k_m": 4.0, "iq4_xs": 4.0}),
    *(Row("depth-1b", Model(L1B, "q4_0"), "pp", 512, depth=4096, kv=kv, goal=2.5) for kv in ("f16", "q8_0")),
    *(
        Row("decode-1b", Model(L1B, kind), "tg", 64, states=((1.1, 0.95), (1.5, 0.85)), is_quick=kind == "q4_0")
        for kind in ("q4_0", "q4_k_m", "q8_0")
    ),
    *(Row("decode-0.5b", Model(Q05, kind), "tg", 64, goal=1.3) for kind in ("q4_0", "q8_0")),
    *(Row("decode-0.6b", Model(Q06, kind), "tg", 64) for kind in ("q4_0", "q8_0")),
    *(Row("batch-1b", Model(L1B, "q4_0"), "tg", 16, batch=n, goal=goal) for n, goal in ((4, 2.0), (8, 3.0), (16, 2.8))),
    Row("start", Model(Q05, "q4_0"), "start", goal=0.15, is_quick=True),
    Row("start", Model(L1B, "q4_0"), "start", goal=0.25),
    Row("cold", Model(L1B, "q4_0"), "cold", goal=1.1),
    Row("memory", Model(L1B, "q4_0"), "memory", goal=float(64 << 20)),
    Row("busy", Model(L1B, "q4_0"), "busy", 32, goal=0.45),
    Row("moe", Model("mixtral-8x0.2b", "q4_0"), "pp", 512, goal=2.0),
]

# Writing is measured once more with weights in the order that `farpost pack` gives them, where their type has one.
ROWS = [
    twin
    for row in ROWS
    for twin in ([row, replace(row, is_packed=True)] if row.test == "tg" and row.model.type in ("q4_0", "q8_0") else [row])
]

# Bytes of keys and values in F16: layers, heads and their width, each kept twice, two bytes a number.
KV_BYTES_A_TOKEN = {L1B: 16 * 8 * 64 * 2 * 2}


def select(names, is_quick):
    """The rows of these groups; all without names, those of the quick run with `is_quick`."""
    groups = list(dict.fromkeys(row.group for row in ROWS))
    for name in names:
        if name not in groups:
            raise SystemExit(f"run: there are no rows '{name}', there are {', '.join(groups)}")
    chosen = [row for row in ROWS if not names or row.group in names]
    return [row for row in chosen if row.is_quick] if is_quick else chosen
