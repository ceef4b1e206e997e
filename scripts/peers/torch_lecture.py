#!/usr/bin/env python3
"""The lecture's from-scratch GPT in PyTorch: the peer of `trainer train --preset gpt-zero --rng torch`.

    pip install torch numpy
    scripts/peers/torch_lecture.py TEXT [--seed 1337] [--steps 5000] [--threads 2] [--sample 2000]

Prints the parameter count and the lecture's rows (`step N: train loss x, val loss y`), a piece of the text it
samples, and one JSON line: the exact validation loss over every window that overlaps no other, and the seconds of
training with its evaluations, of sampling, and of both.
"""

import argparse
import json
import time

import torch
from torch import nn
from torch.nn import functional as F

BLOCK, WIDTH, HEADS, LAYERS = 8, 64, 4, 4
BATCH, LEARNING_RATE = 16, 1e-3
EVAL_EVERY, EVAL_BATCHES = 100, 200


class Layer(nn.Module):
    """One pre-norm block. The order of its parameters is the order in which they draw from the generator."""

    def __init__(self):
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.feed_forward_norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        rows, positions, _ = x.shape
        parts = self.qkv(self.attention_norm(x)).split(WIDTH, dim=2)
        query, key, value = (part.view(rows, positions, HEADS, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, positions, WIDTH))
        return x + self.down(F.gelu(self.up(self.feed_forward_norm(x))))


class Model(nn.Module):
    """Token and position embeddings, the blocks, a last norm, and a head of its own."""

    def __init__(self, vocabulary):
        super().__init__()
        self.token = nn.Embedding(vocabulary, WIDTH)
        self.position = nn.Embedding(BLOCK, WIDTH)
        self.layers = nn.Sequential(*[Layer() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary)

    def forward(self, ids):
        x = self.token(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.layers(x)))


def loss_of(model, inputs, targets):
    """Mean cross-entropy, nats per token."""
    logits = model(inputs)
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def batch(split):
    """Windows at offsets drawn from PyTorch's generator, and the same windows one token on."""
    offsets = torch.randint(len(split) - BLOCK, (BATCH,))
    inputs = torch.stack([split[at : at + BLOCK] for at in offsets])
    targets = torch.stack([split[at + 1 : at + BLOCK + 1] for at in offsets])
    return inputs, targets


@torch.no_grad()
def evaluate(model, splits):
    """Mean loss of random batches of each split; it draws from the generator that training draws from."""
    return [torch.tensor([loss_of(model, *batch(split)).item() for _ in range(EVAL_BATCHES)]).mean() for split in splits]


def train(model, splits, steps):
    """Every step with its evaluations, printed as the lecture prints them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for step in range(steps):
        if step % EVAL_EVERY == 0 or step == steps - 1:
            training, validation = evaluate(model, splits)
            print(f"step {step}: train loss {training:.4f}, val loss {validation:.4f}", flush=True)
        loss = loss_of(model, *batch(splits[0]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


@torch.no_grad()
def sample(model, tokens):
    """Ids drawn one by one at temperature 1 from the window of the last BLOCK, starting from id 0."""
    ids = torch.zeros((1, 1), dtype=torch.long)
    for _ in range(tokens):
        probabilities = F.softmax(model(ids[:, -BLOCK:])[:, -1], dim=-1)
        ids = torch.cat((ids, torch.multinomial(probabilities, 1)), dim=1)
    return ids[0].tolist()


@torch.no_grad()
def exact_loss(model, split):
    """Mean loss over every window that overlaps no other."""
    windows = (len(split) - 1) // BLOCK
    inputs = split[: windows * BLOCK].view(windows, BLOCK)
    targets = split[1 : windows * BLOCK + 1].view(windows, BLOCK)
    total = 0.0
    for begin in range(0, windows, 512):
        part = slice(begin, begin + 512)
        total += loss_of(model, inputs[part], targets[part]).item() * len(inputs[part])
    return total / windows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    # newline="" keeps every byte: a carriage return is a character of its own.
    with open(options.text, encoding="utf-8", newline="") as file:
        text = file.read()
    characters = sorted(set(text))
    index = {character: number for number, character in enumerate(characters)}
    tokens = torch.tensor([index[character] for character in text])
    cut = int(0.9 * len(tokens))
    splits = tokens[:cut], tokens[cut:]

    begin = time.perf_counter()
    model = Model(len(characters))
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    train(model, splits, options.steps)
    trained = time.perf_counter()
    ids = sample(model, options.sample)
    sampled = time.perf_counter()

    print("".join(characters[number] for number in ids)[:200])
    figures = {
        "engine": f"pytorch {torch.__version__}",
        "seed": options.seed,
        "steps": options.steps,
        "threads": options.threads,
        "exact_val_loss": round(exact_loss(model, splits[1]), 4),
        "train_seconds": round(trained - begin, 2),
        "sample_seconds": round(sampled - trained, 2),
        "seconds": round(sampled - begin, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
