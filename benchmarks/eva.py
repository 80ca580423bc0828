"""Adapters of EVA beside subspaces of the same layers: how far their directions agree.

MiniLM on SST-2, cut behind its last block, query and value of every block, 64 public sentences;
gradients by all weights of the half on test batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.figure import Figure
from sfl_flower.data import model_seed
from sfl_flower.server.energy import energy_share, sample_gradients
from sfl_flower.server.subspace import fitted, public_gradients
from sfl_flower.task import SplitTask
from sfl_flower.tasks import load_task

__all__ = ["add_arguments", "overlap", "run"]

LAYERS = "*.attention.self.[qv]*"
"""Where peft puts adapters into a BERT: query and value."""
BASIS, ADAPTER = ".subspace_basis", ".lora_A.default.weight"
"""How the names of what is compared end."""
SOURCES = ("public", "gradients")


def task_of(rank: int, kind: str) -> SplitTask:
    """Return the task with adapters of EVA, with drawn ones (``default``), or a ``subspace``."""
    own: dict[str, Any] = {"lora_rank": rank, "lora_init": kind}
    if kind == "subspace":
        own = {"lora_rank": 0, "trained": f"subspace:{rank}:{LAYERS}"}
    return load_task("sst2", cut="block:6", train_size=2000, **own)


def spans(client: nn.Module, end: str) -> dict[str, Tensor]:
    """Return an orthonormal basis [inputs, R] of each layer's directions, float64, by layer."""
    named = [*client.named_buffers(), *client.named_parameters()]
    found = {name.removesuffix(end): value for name, value in named if name.endswith(end)}
    return {name: torch.linalg.qr(value.detach().double().t()).Q for name, value in found.items()}


def overlap(ones: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Return tr(P Q) / R of the projections on two spans, the mean over layers: 0 to 1."""
    shared = [
        float((one.t() @ others[name]).square().sum()) / one.shape[1] for name, one in ones.items()
    ]
    return sum(shared) / len(shared)


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--eva-ranks", default="1,4,8", help="ranks, by commas")
    parser.add_argument("--eva-batches", type=int, default=8, help="test batches of 32")


def run(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield for each rank what spans share, and what each holds of the mean gradient."""
    seed = model_seed(0)
    plain = load_task("sst2", cut="block:6", train_size=2000, lora_rank=0)
    public = public_gradients(plain, seed)
    gradients = sample_gradients(plain, seed, args.eva_batches)
    for rank in map(int, args.eva_ranks.split(",")):
        subspace = task_of(rank, "subspace")
        halves = {
            "eva": fitted(task_of(rank, "eva"), seed).client,
            "drawn": fitted(task_of(rank, "default"), seed).client,
            **{f"subspace_{at}": fitted(subspace, seed, at, public).client for at in SOURCES},
        }
        # Drawn adapters would train A too: what they hold is that of B alone, as EVA's.
        for name, value in halves["drawn"].named_parameters():
            value.requires_grad_("lora_B" in name)
        adapters = spans(halves["eva"], ADAPTER)
        for source in SOURCES:
            yield Figure(
                f"eva_overlap_{source}_{rank}",
                overlap(adapters, spans(halves[f"subspace_{source}"], BASIS)),
                "share",
                None,
                f"tr(P Q) / {rank} of EVA's projection and that of subspace:{rank}:{LAYERS} with "
                f"subspace_from={source}, mean over {len(adapters)} layers",
            )
        for name, client in halves.items():
            own = [g if "subspace" in name else adapted(g, adapters) for g in gradients]
            held = energy_share(client, own)
            yield Figure(
                f"eva_energy_{name}_{rank}",
                held.mean,
                "share",
                None,
                f"of the mean gradient over {len(gradients)} test batches of 32 by all "
                f"{held.parameters} weights, at the first weights; {held.trained} numbers trained",
            )


def adapted(gradient: Mapping[str, Tensor], layers: Iterable[str]) -> dict[str, Tensor]:
    """Return a gradient under the names that weights have where these layers have adapters."""
    found = dict(gradient)
    for layer in layers:
        for own in ("weight", "bias"):
            found[f"{layer}.base_layer.{own}"] = found.pop(f"{layer}.{own}")
    return found
