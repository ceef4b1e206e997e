#!/usr/bin/env python3
"""Opens a model directory of ours in transformers and prints the logits of every place of some ids, as a JSON list.

    pip install torch transformers
    open_in_transformers.py MODEL_DIR 1,2,3
"""
import json
import sys

import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager").eval()
ids = torch.tensor([[int(text) for text in sys.argv[2].split(",")]])
with torch.no_grad():
    print(json.dumps(model(ids).logits[0].flatten().tolist()))
