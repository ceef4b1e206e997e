#!/usr/bin/env python3
"""Encodes strings with a tokenizer.json in Hugging Face's tokenizers, special tokens recognised; prints a JSON list of ids
for each. Decoding must give the strings back; with --text it need not, and each row is an object of `ids` and the `text`
that they decode to without special tokens.

    pip install tokenizers
    hf_encode.py TOKENIZER.json STRINGS.json [--text]
"""
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(sys.argv[1])
strings = json.loads(Path(sys.argv[2]).read_text())
rows = [tokenizer.encode(string).ids for string in strings]
if "--text" in sys.argv:
    rows = [{"ids": ids, "text": tokenizer.decode(ids)} for ids in rows]
elif [tokenizer.decode(ids, skip_special_tokens=False) for ids in rows] != strings:
    sys.exit("decoding does not give the strings back")
print(json.dumps(rows))
