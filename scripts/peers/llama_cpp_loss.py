#!/usr/bin/env python3
"""What llama.cpp makes of a GGUF file of ours, as one JSON object: the tokens of a text and its mean loss.

    pip install llama-cpp-python        # builds llama.cpp from source, some minutes
    llama_cpp_loss.py MODEL.gguf TEXT [--block N] [--train F] [--windows N] [--greedy N] [--ids]

The loss is that of `trainer eval` on the validation split, which begins after the part F (0.9) of the ids: whole windows
that do not overlap. --block is the model's context unless given; --windows N looks at the first N windows alone. --greedy N adds the likeliest N ids after the
first eight of the split, --ids the text's own ids.
"""
import argparse
import ctypes
import json
import pathlib

import llama_cpp as L
import numpy as np

arguments = argparse.ArgumentParser()
arguments.add_argument("model")
arguments.add_argument("text", type=pathlib.Path)
arguments.add_argument("--block", type=int, default=0)
arguments.add_argument("--train", type=float, default=0.9)
arguments.add_argument("--windows", type=int, default=0)
arguments.add_argument("--greedy", type=int, default=0)
arguments.add_argument("--ids", action="store_true")
arguments.add_argument("--threads", type=int, default=2)
options = arguments.parse_args()

quiet = L.llama_log_callback(lambda *_: None)  # kept alive: llama.cpp holds the pointer
L.llama_log_set(quiet, ctypes.c_void_p(0))
L.llama_backend_init()
model = L.llama_model_load_from_file(options.model.encode(), L.llama_model_default_params())
if not model:
    raise SystemExit(f"llama.cpp cannot open {options.model}")
vocab = L.llama_model_get_vocab(model)
size = L.llama_vocab_n_tokens(vocab)
block = options.block or L.llama_model_n_ctx_train(model)

text = options.text.read_bytes()
room = (L.llama_token * (len(text) + 16))()
count = L.llama_tokenize(vocab, text, len(text), room, len(room), False, True)
if count < 0:
    raise SystemExit(f"the text has more than {len(room)} ids")
ids = np.array(room[:count])
if ids.min() < 0:
    raise SystemExit("llama.cpp does not know some of the text")

parameters = L.llama_context_default_params()
parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = max(block, 32)
parameters.n_threads = parameters.n_threads_batch = options.threads
parameters.type_k = parameters.type_v = 0  # f32
parameters.flash_attn_type = 0
context = L.llama_init_from_model(model, parameters)


def feed(window, start, each):
    """The logits after each id of a window, or after its last."""
    batch = L.llama_batch_init(len(window), 0, 1)
    batch.n_tokens = len(window)
    for i, token in enumerate(window):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = int(token), start + i, 1, 0
        batch.logits[i] = each or i + 1 == len(window)
    if L.llama_decode(context, batch):
        raise SystemExit("llama_decode failed")
    rows = np.stack([np.ctypeslib.as_array(L.llama_get_logits_ith(context, i), (size,)).astype(np.float64)
                     for i in range(len(window)) if batch.logits[i]])
    L.llama_batch_free(batch)
    return rows


validation = ids[int(len(ids) * options.train):]
whole = (len(validation) - 1) // block * block
total = predicted = 0
for number, start in enumerate(range(0, whole, block)):
    if options.windows and number == options.windows:
        break
    window, targets = validation[start:start + block], validation[start + 1:start + block + 1]
    L.llama_memory_clear(L.llama_get_memory(context), True)
    logits = feed(window, 0, True)
    top = logits.max(axis=1)
    total += (top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[np.arange(len(targets)), targets]).sum()
    predicted += len(targets)

greedy = []
if options.greedy:
    L.llama_memory_clear(L.llama_get_memory(context), True)
    row = feed(validation[:8], 0, False)
    for place in range(options.greedy):
        greedy.append(int(row[-1].argmax()))
        row = feed(greedy[-1:], 8 + place, False)

ends = [i for i in range(size) if L.llama_vocab_is_eog(vocab, i)]
print(json.dumps({"tokens": len(ids), "vocabulary": size, "loss": total / predicted if predicted else None, "predicted": predicted, "greedy": greedy,
                  "ends": ends, **({"ids": ids.tolist()} if options.ids else {})}))
