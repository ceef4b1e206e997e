#!/usr/bin/env python3
"""Makes tests/fixtures: what PyTorch computes, for tests that run without it.

    pip install torch numpy safetensors
    scripts/make_fixtures.py            rewrites tests/fixtures; the same bytes with the same PyTorch and CPU kind

models.json, models.safetensors   small random models, every switch, and their float64 logits
text.txt                          some 20 kB of sentences from the word lists below
rows.json                         the first rows of training on that text, drawn by PyTorch's CPU generator
"""
import json
import pathlib

import numpy
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
EPS = float(numpy.float32(1e-5))  # the same number that a config's f32 holds


class Norm(nn.Module):
    """LayerNorm whose bias can be left out."""

    def __init__(self, c):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c["width"]))
        self.bias = nn.Parameter(torch.zeros(c["width"])) if c["norm_bias"] else None

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, EPS)


class Layer(nn.Module):
    """Attention and feed-forward, each on the normed stream, each added to it."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        width, hidden = c["width"], c["feed_forward"]
        self.attention_norm = Norm(c)
        self.qkv = nn.Linear(width, 3 * width, bias=c["qkv_bias"])
        self.out = nn.Linear(width, width, bias=c["attention_bias"])
        self.feed_forward_norm = Norm(c)
        self.up = nn.Linear(width, hidden, bias=c["feed_forward_bias"])
        self.down = nn.Linear(hidden, width, bias=c["feed_forward_bias"])

    def activation(self, x):
        if self.c["activation"] == "relu":
            return F.relu(x)
        return F.gelu(x, approximate="tanh" if self.c["activation"] == "gelu-tanh" else "none")

    def forward(self, x):
        batch, block, width = x.shape
        heads = self.c["heads"]
        q, k, v = (
            z.view(batch, block, heads, width // heads).transpose(1, 2)
            for z in self.qkv(self.attention_norm(x)).split(width, dim=2)
        )
        scale = (width if self.c["attention_scale"] == "width" else width // heads) ** -0.5
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        x = x + self.out(y.transpose(1, 2).reshape(batch, block, width))
        return x + self.down(self.activation(self.up(self.feed_forward_norm(x))))


class Model(nn.Module):
    """The GPT of one config; its parameters are made, and so drawn, in the order of PyTorch's usual code."""

    def __init__(self, c):
        super().__init__()
        self.token = nn.Embedding(c["vocabulary"], c["width"])
        self.position = nn.Embedding(c["context"], c["width"])
        self.layers = nn.Sequential(*[Layer(c) for _ in range(c["layers"])])
        self.norm = Norm(c)
        self.head = nn.Linear(c["width"], c["vocabulary"], bias=c["head_bias"])
        if c["tied"]:
            self.head.weight = self.token.weight

    def forward(self, ids):
        x = self.token(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.layers(x)))

    def arena(self):
        """The parameters in the order of formats::Layout."""
        linear = lambda module: [module.weight, module.bias]
        out = [self.token.weight, self.position.weight]
        for layer in self.layers:
            out += linear(layer.attention_norm) + linear(layer.qkv) + linear(layer.out)
            out += linear(layer.feed_forward_norm) + linear(layer.up) + linear(layer.down)
        out += linear(self.norm)
        out += [] if self.head.weight is self.token.weight else [self.head.weight]
        out += [self.head.bias]
        return [p for p in out if p is not None]


LECTURE = {
    "vocabulary": 11, "context": 5, "width": 8, "layers": 2, "heads": 2, "feed_forward": 32, "position": "learned",
    "activation": "gelu-erf", "attention_scale": "head-size", "norm_eps": 1e-5, "norm_bias": True, "qkv_bias": True,
    "attention_bias": True, "feed_forward_bias": True, "tied": False, "head_bias": True, "dropout": 0.0,
}
NO_BIAS = {"norm_bias": False, "qkv_bias": False, "attention_bias": False, "feed_forward_bias": False, "head_bias": False}
MODELS = {
    "lecture": {},
    "relu": {"activation": "relu"},
    "gelu-tanh": {"activation": "gelu-tanh", "layers": 1},
    "scale-width": {"attention_scale": "width", "layers": 1, "heads": 4},
    "tied": {"tied": True, "layers": 1},
    "tied-no-head-bias": {"tied": True, "head_bias": False, "layers": 1},
    "no-head-bias": {"head_bias": False, "layers": 1},
    "no-qkv-bias": {"qkv_bias": False, "layers": 1},
    "no-attention-bias": {"attention_bias": False, "layers": 1},
    "no-feed-forward-bias": {"feed_forward_bias": False, "layers": 1},
    "no-norm-bias": {"norm_bias": False, "layers": 1},
    "bare": {**NO_BIAS, "tied": True, "activation": "gelu-tanh"},
    "odd": {"vocabulary": 13, "context": 7, "width": 15, "heads": 3, "feed_forward": 17, "layers": 1},
    "one-head": {"vocabulary": 7, "context": 9, "width": 5, "heads": 1, "feed_forward": 3, "layers": 3},
    "heads-of-one": {"vocabulary": 3, "context": 33, "width": 4, "heads": 4, "feed_forward": 1, "layers": 1},
    "smallest": {"vocabulary": 1, "context": 1, "width": 1, "heads": 1, "feed_forward": 1, "layers": 1},
    "wide": {"vocabulary": 5, "context": 3, "width": 33, "heads": 1, "feed_forward": 7, "layers": 1},
}


def whole(config):
    """The config with the keys that follow from others, in the order our own files have them."""
    keys = {}
    for key, value in config.items():
        keys[key] = value
        if key == "heads":
            keys |= {"kv_heads": value, "head_size": config["width"] // value}
        if key == "feed_forward":
            keys["experts"] = None
        if key == "position":
            keys |= {"rotary_base": 10000.0, "norm": "layer-norm", "query_key_norm": "none"}
    return keys


def models():
    """Random models whose weights fit f16 exactly, so that they can be kept in half the bytes and run in any type."""
    tensors, configs = {}, {}
    for seed, (name, changes) in enumerate(MODELS.items()):
        config = whole({**LECTURE, **changes})
        torch.manual_seed(seed)
        model = Model(config)
        with torch.no_grad():
            for p in model.arena():
                centre = 1.0 if p.dim() == 1 and bool((p == 1).all()) else 0.0
                spread = 0.3 if p.dim() == 1 else p.shape[1] ** -0.5
                p.copy_((centre + spread * torch.randn(p.shape)).half().float())
            weights = torch.cat([p.flatten() for p in model.arena()]).half()
            ids = torch.randint(config["vocabulary"], (config["context"],))
            logits = model.double()(ids[None])[0]
        configs[name] = config
        tensors[f"{name}.weights"] = weights
        tensors[f"{name}.ids"] = ids.to(torch.int32)
        tensors[f"{name}.logits"] = logits.contiguous()
    (FIXTURES / "models.json").write_text(json.dumps(configs, indent=1) + "\n")
    save_file(tensors, FIXTURES / "models.safetensors")


NOUNS = """lantern harbour kettle orchard ladder meadow pocket river button candle window garden bridge
 basket corner winter summer carpet saddle thimble cellar pebble feather whistle anchor blanket""".split()
VERBS = """carries follows opens mends finds borrows paints measures forgets remembers lifts turns keeps answers
 weighs gathers""".split()
PEOPLE = ["Ada", "Boris", "Clara", "Dmitri", "Edda", "Felix", "Greta", "the miller", "the pilot", "the clerk"]
QUALITIES = "quiet narrow golden broken distant heavy simple crooked patient hollow early borrowed".split()
PLACES = ["by the sea", "under the stairs", "after the rain", "at noon", "in the market", "without a word", "twice a week"]


def text():
    """Sentences of our own words, chosen by a generator that no library can change."""
    state = 1

    def choose(items):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return items[(state >> 33) % len(items)]

    lines, length = [], 0
    while length < 18_000:
        who = choose(PEOPLE)
        line = f"{who} {choose(VERBS)} the {choose(QUALITIES)} {choose(NOUNS)} {choose(PLACES)}"
        end = choose([".", ".", ".", ", and the " + choose(NOUNS) + " waits.", "; nobody asks why.", "!", "?"])
        line = line[0].upper() + line[1:] + end
        if choose(range(6)) == 0:
            line = f"\n{choose(PEOPLE).upper()}:\n{line}"
        lines.append(line)
        length += len(line) + 1
    result = "\n".join(lines) + "\n"
    (FIXTURES / "text.txt").write_text(result, newline="")
    return result


RUNS = {
    "lecture": {
        "model": {**LECTURE, "context": 8, "width": 64, "layers": 4, "heads": 4, "feed_forward": 256},
        "batch": 16, "steps": 45, "seed": 1337, "evaluate_every": 10, "evaluate_batches": 5, "learning_rate": 1e-3,
    },
    # No embedding's size is a multiple of 16, where PyTorch draws normals in another way.
    "odd": {
        "model": {**LECTURE, "context": 7, "width": 15, "layers": 2, "heads": 3, "feed_forward": 60,
                  "activation": "relu", "attention_scale": "width", "qkv_bias": False},
        "batch": 5, "steps": 25, "seed": 7, "evaluate_every": 10, "evaluate_batches": 3, "learning_rate": 3e-3,
    },
    # And the position embedding has fewer than 16 values, where it draws them in a third.
    "tiny": {
        "model": {**LECTURE, "context": 3, "width": 4, "layers": 1, "heads": 2, "feed_forward": 16,
                  "activation": "gelu-tanh"},
        "batch": 3, "steps": 13, "seed": 2, "evaluate_every": 6, "evaluate_batches": 2, "learning_rate": 1e-2,
    },
}


def rows(run, tokens, dtype):
    """The lecture's loop: draws in the order of its code, arithmetic in `dtype`."""
    config, block = run["model"], run["model"]["context"]
    cut = int(0.9 * len(tokens))
    splits = {"train": tokens[:cut], "val": tokens[cut:]}
    torch.manual_seed(run["seed"])
    model = Model(config).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run["learning_rate"])

    def loss_of(split):
        at = torch.randint(len(splits[split]) - block, (run["batch"],))
        x = torch.stack([splits[split][i : i + block] for i in at])
        y = torch.stack([splits[split][i + 1 : i + block + 1] for i in at])
        return F.cross_entropy(model(x).view(-1, config["vocabulary"]), y.view(-1))

    result = []
    for step in range(run["steps"]):
        if step % run["evaluate_every"] == 0 or step == run["steps"] - 1:
            with torch.no_grad():
                row = [sum(loss_of(s).item() for _ in range(run["evaluate_batches"])) for s in splits]
            result.append([step] + [round(total / run["evaluate_batches"], 6) for total in row])
        loss = loss_of("train")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return result


def training(whole):
    """Rows in f32 and in float64 from the same draws; apart by less than the tests allow, or the test is no test."""
    index = {c: i for i, c in enumerate(sorted(set(whole)))}
    tokens = torch.tensor([index[c] for c in whole])
    runs = {}
    for name, run in RUNS.items():
        run["model"]["vocabulary"] = len(index)
        run["rows"] = rows(run, tokens, torch.float32)
        exact = rows(run, tokens, torch.float64)
        apart = max(abs(a - b) for r, e in zip(run["rows"], exact) for a, b in zip(r, e))
        print(f"{name}: f32 and float64 rows differ by at most {apart:.6f}")
        assert apart < 2e-4
        runs[name] = run
    for run in runs.values():
        run["model"] = whole(run["model"])
    (FIXTURES / "rows.json").write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    FIXTURES.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    models()
    training(text())
