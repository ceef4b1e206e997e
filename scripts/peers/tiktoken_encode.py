#!/usr/bin/env python3
"""Encodes with tiktoken and GPT-2's vocabulary, from local files.

    pip install tiktoken
    tiktoken_encode.py speed FOLDER TEXT ROUNDS          the best of some rounds on one thread, as JSON
    tiktoken_encode.py ids FOLDER gpt2|cl100k IN OUT     the ids of many strings

FOLDER holds encoder.json and vocab.bpe. IN is strings, each after its length in bytes; OUT is ids, each string's after
their number; all numbers are 32 bits, little-endian.
"""
import json
import struct
import sys
import time
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

# As tiktoken_ext.openai_public states them; cl100k's stands inside a function that would download its ranks.
PATTERNS = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    "cl100k": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"""
              r"""|\s*[\r\n]|\s+(?!\S)|\s""",
}


def encoding(folder, pattern):
    ranks = data_gym_to_mergeable_bpe_ranks(f"{folder}/vocab.bpe", f"{folder}/encoder.json")
    return tiktoken.Encoding(name=pattern, pat_str=PATTERNS[pattern], mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": 50256})


if sys.argv[1] == "speed":
    _, _, folder, text, rounds = sys.argv
    encoder, text = encoding(folder, "gpt2"), Path(text).read_bytes().decode()
    best = float("inf")
    for _ in range(int(rounds)):
        start = time.perf_counter()
        tokens = len(encoder.encode_ordinary(text))
        best = min(best, time.perf_counter() - start)
    size = len(text.encode())
    print(json.dumps({"engine": f"tiktoken {tiktoken.__version__}", "tokens": tokens, "seconds": best,
                      "mb_per_s": round(size / best / 1e6, 1)}))
else:
    _, _, folder, pattern, source, target = sys.argv
    encoder, data = encoding(folder, pattern), Path(source).read_bytes()
    place = 0
    with open(target, "wb") as out:
        while place < len(data):
            (length,) = struct.unpack_from("<I", data, place)
            place += 4 + length
            ids = encoder.encode_ordinary(data[place - length:place].decode())
            out.write(struct.pack(f"<{len(ids) + 1}I", len(ids), *ids))
