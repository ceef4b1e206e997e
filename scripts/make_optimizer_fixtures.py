#!/usr/bin/env python3
"""Makes tests/fixtures/optimizers.json: updates by PyTorch's Adam and AdamW, with and without clipping.

    pip install torch
    scripts/make_optimizer_fixtures.py
"""
import json
import math
import pathlib

import torch

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
COUNT, STEPS = 19, 8


def run(kind, clip):
    """Weights after each update by gradients that grow and shrink, so that a norm is clipped only now and then."""
    weights = torch.nn.Parameter(torch.tensor([math.sin(1.7 * i + 0.3) for i in range(COUNT)]))
    hyper = {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
    optimizer = getattr(torch.optim, kind)([weights], **{**hyper, "betas": tuple(hyper["betas"])})
    initial, gradients, after = weights.tolist(), [], []
    for step in range(STEPS):
        gradient = torch.tensor([math.cos(0.9 * i + 2.1 * step) * (0.1 + 0.2 * (step % 3)) for i in range(COUNT)])
        gradients.append(gradient.tolist())
        weights.grad = gradient
        if clip > 0:
            torch.nn.utils.clip_grad_norm_([weights], clip)
        optimizer.step()
        after.append(weights.tolist())
    return {"kind": kind.lower(), "clip": clip, **hyper, "initial": initial, "gradients": gradients, "after": after}


if __name__ == "__main__":
    runs = [run(kind, clip) for kind in ("Adam", "AdamW") for clip in (0.0, 1.0)]
    (FIXTURES / "optimizers.json").write_text(json.dumps(runs) + "\n")
