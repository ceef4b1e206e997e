#!/usr/bin/env python3
"""Learns a byte-level vocabulary from a text with Hugging Face's tokenizers and saves it; prints what it took as JSON.

    pip install tokenizers
    hf_tokenizer.py TEXT VOCABULARY OUT.json
"""
import json
import sys
import time

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

text, vocabulary, out = sys.argv[1:]
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(vocab_size=int(vocabulary), min_frequency=0, show_progress=False,
                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
start = time.perf_counter()
tokenizer.train([text], trainer)
seconds = time.perf_counter() - start
tokenizer.save(out)
print(json.dumps({"engine": f"tokenizers {tokenizers.__version__}", "tokens": tokenizer.get_vocab_size(), "seconds": seconds}))
