"""The tiny qwen3 model as one that makes embeddings: its file with a pooling type, and an end token added to texts."""

import struct
import sys

UINT32, BOOL, STRING = 4, 7, 8


def _string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def _entry(key, kind, value):
    return _string(key) + struct.pack("<I", kind) + value


def embedder(plain, pooling):
    """The bytes of a GGUF file with more metadata. What is added is a multiple of 32 bytes, so that tensors stay aligned."""
    magic, version, n_tensors, n_keys = struct.unpack_from("<4sIQQ", plain)
    assert magic == b"GGUF" and version == 3
    added = _entry("qwen3.pooling_type", UINT32, struct.pack("<I", pooling))
    added += _entry("tokenizer.ggml.add_eos_token", BOOL, b"\x01")
    added += _entry("filler", STRING, _string("x" * (-(len(added) + len(_entry("filler", STRING, _string("")))) % 32)))
    return struct.pack("<4sIQQ", magic, version, n_tensors, n_keys + 3) + added + plain[24:]


if __name__ == "__main__":
    # embedder.py tiny-qwen3.gguf NEW.gguf
    with open(sys.argv[1], "rb") as plain, open(sys.argv[2], "wb") as made:
        made.write(embedder(plain.read(), pooling=3))
