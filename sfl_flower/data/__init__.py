"""Data of one process: samples, seeded randomness, partitions and mini-batches."""

from __future__ import annotations

from sfl_flower.data.batches import (
    batch_indices,
    chunks,
    client_samples,
    largest_batch,
    steps_per_epoch,
)
from sfl_flower.data.partition import PARTITIONS, PartitionSpec, divided, partition
from sfl_flower.data.samples import Samples, check_samples
from sfl_flower.data.seeding import (
    client_key,
    derive,
    division_seed,
    generator,
    model_seed,
    put_back,
    seeded_construction,
    seeded_draws,
    seeded_torch,
    server_seed,
    subspace_draw,
    torch_states,
)
from sfl_flower.data.validation import LARGEST, hold_back

__all__ = [
    "LARGEST",
    "PARTITIONS",
    "PartitionSpec",
    "Samples",
    "batch_indices",
    "check_samples",
    "chunks",
    "client_key",
    "client_samples",
    "derive",
    "divided",
    "division_seed",
    "generator",
    "hold_back",
    "largest_batch",
    "model_seed",
    "partition",
    "put_back",
    "seeded_construction",
    "seeded_draws",
    "seeded_torch",
    "server_seed",
    "steps_per_epoch",
    "subspace_draw",
    "torch_states",
]
