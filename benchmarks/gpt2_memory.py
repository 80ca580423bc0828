"""Client memory of zeroth-order methods on a GPT-2, beside inference with the same half.

The model has the size of GPT-2 small, random weights and LoRA adapters, and is cut behind its
third block; one round of one step of the real client code, whose peak the meter of every first
round records.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from logging import ERROR, getLogger
from typing import Any

import torch
from torch import nn

from benchmarks.figure import Figure
from benchmarks.trial import options_for, train
from sfl_flower.data import Samples
from sfl_flower.profiling.peaks import backprop, inference
from sfl_flower.run.run import Plan
from sfl_flower.task import SplitTask
from sfl_flower.tasks.adapters import adapt

__all__ = ["BATCH", "TOKENS", "figures", "task"]

CUT, BATCH, TOKENS, RANK = "block:3", 8, 256, 8
MOST = 1.1
MIB = 2**20


def figures() -> Iterator[Figure]:
    """Yield each method's peak beside inference, and backprop's beside the larger of them."""
    getLogger("flwr").setLevel(ERROR)
    problem = task()
    half = problem.build(0).client
    x, _ = problem.batch(problem.samples("train"), slice(None))
    forward_only, with_backward = inference(half, x).peak, backprop(half, x).peak
    weights = sum(v.nbytes for v in half.parameters())
    trained = sum(p.numel() for p in half.parameters() if p.requires_grad)
    what = (
        f"GPT-2 small, random weights, cut behind block 3, LoRA rank {RANK} on the attention "
        f"({trained:,} parameters trained), batch {BATCH} x {TOKENS} tokens, CPU, torch's "
        f"allocation records: inference with the same half {forward_only / MIB:.1f} MiB, beside "
        f"{weights / MIB:.1f} MiB of weights in both"
    )
    peaks = {method: _peak(problem, method) for method in ("ho_sfl", "heron")}
    for method, peak in peaks.items():
        yield Figure(
            f"client_peak_{method}_vs_inference_gpt2",
            peak / forward_only,
            "ratio",
            MOST,
            f"{what}; {method} {peak / MIB:.1f} MiB; weights included "
            f"{(peak + weights) / (forward_only + weights):.3f}",
            lower_is_better=True,
        )
    yield Figure(
        "client_peak_backprop_vs_zeroth_order_gpt2",
        with_backward / max(peaks.values()),
        "ratio",
        None,
        f"{what}; forward and backward of the half {with_backward / MIB:.1f} MiB",
    )


def _peak(task: SplitTask, method: str) -> int:
    options: dict[str, Any] = {
        "task": task.name, "clients": 1, "rounds": 1, "batch_size": BATCH, "partition": "iid",
        "eval_every": 10**6, "probes": 2, "head": "pooled",
    }  # fmt: skip
    plan = Plan.read(options_for(method, options))
    peak: int = train(task, plan, 1).ledger.client_peak_bytes
    return peak


def task(blocks: int = 12) -> SplitTask:
    """Return texts of random ids for a GPT-2 of so many blocks; the client half is the same."""
    return SplitTask(
        name="gpt2-memory", model=partial(_model, blocks), cut=CUT, train=_texts, test=_texts,
        classes=2, token=f"gpt2-memory-{blocks}",
    )  # fmt: skip


def _texts() -> Samples:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50_000, (BATCH, TOKENS), generator=generator)
    return Samples(ids, torch.arange(BATCH) % 2)


def _model(blocks: int) -> nn.Module:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    options: dict[str, Any] = {
        "n_layer": blocks, "num_labels": 2, "pad_token_id": 50_256,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip
    model = GPT2ForSequenceClassification(GPT2Config(**options))
    adapt(model, "gpt2", RANK, 2 * RANK, "")
    return model
