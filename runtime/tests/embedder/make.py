"""Writes golden.json: embeddings of the tiny qwen3 model by llama.cpp, through llama-cpp-python (0.3.36 was used).

    python make.py tiny-qwen3.gguf > golden.json

The ids that llama.cpp makes of a text with an end token added, and two texts given as ids: for each, the rows after the last
norm become one by each way of pooling, here, and get length 1. Nothing is rounded: keys and values are f32.
"""

import json
import sys
import tempfile

from llama_cpp import llama_cpp as C

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from embedder import embedder  # noqa: E402

LAST = 3
TEXT = "the queen and the king"
IDS = [[5, 6, 7, 300, 12, 9, 77, 201, 33, 41], [290, 3, 3, 510, 17]]


def tokens(model, text):
    out = (C.llama_token * 256)()
    n = C.llama_tokenize(C.llama_model_get_vocab(model), text.encode(), len(text), out, 256, True, False)
    return list(out[:n])


def rows(model, ids):
    params = C.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 512, 512, 512
    params.embeddings, params.pooling_type = True, C.LLAMA_POOLING_TYPE_NONE
    params.type_k = params.type_v = 0
    params.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = C.llama_init_from_model(model, params)
    batch = C.llama_batch_init(512, 0, 1)
    batch.n_tokens = len(ids)
    for at, token in enumerate(ids):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, at, 1, True
        batch.seq_id[at][0] = 0
    assert C.llama_decode(context, batch) == 0
    width = C.llama_model_n_embd(model)
    found = [C.llama_get_embeddings_ith(context, at)[:width] for at in range(len(ids))]
    C.llama_free(context)
    return found


def unit(row):
    length = sum(x * x for x in row) ** 0.5
    return [round(x / length, 8) for x in row]


def main(path):
    plain = open(path, "rb").read()
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(embedder(plain, LAST))
        file.flush()
        params = C.llama_model_default_params()
        params.n_gpu_layers = 0
        model = C.llama_model_load_from_file(file.name.encode(), params)
        assert model
        texts = []
        for ids in [tokens(model, TEXT), *IDS]:
            found = rows(model, ids)
            mean = [sum(column) for column in zip(*found)]
            texts.append({"ids": ids, "mean": unit(mean), "cls": unit(found[0]), "last": unit(found[-1])})
        C.llama_model_free(model)
    json.dump({"text": TEXT, "texts": texts}, sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main(sys.argv[1])
