from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sfl_flower.data import PARTITIONS, PartitionSpec, partition
from sfl_flower.errors import ConfigError, DataError

LABELS = np.arange(1200) * 7 % 10


def _lists(spec: PartitionSpec) -> list[list[int]]:
    return [rows.tolist() for rows in partition(spec, LABELS)]


@pytest.mark.parametrize("name", PARTITIONS)
def test_clients_share_all_rows_without_overlap(name: str) -> None:
    clients = 12 if name == "pathological" else 6  # with fewer, a class may go to nobody
    parts = _lists(PartitionSpec(name, clients=clients, seed=3))
    assert len(parts) == clients
    assert sorted(row for part in parts for row in part) == list(range(1200))
    assert all(part == sorted(part) for part in parts)


@pytest.mark.parametrize("name", PARTITIONS)
def test_the_seed_decides(name: str) -> None:
    first = _lists(PartitionSpec(name, clients=6, seed=3))
    assert first == _lists(PartitionSpec(name, clients=6, seed=3))
    assert first != _lists(PartitionSpec(name, clients=6, seed=4))


@pytest.mark.parametrize("name", PARTITIONS)
def test_global_generators_are_neither_used_nor_moved(name: str) -> None:
    before = (np.random.get_state()[1].tolist(), torch.get_rng_state(), random.getstate())  # type: ignore[index]
    first = _lists(PartitionSpec(name, clients=4))
    after = (np.random.get_state()[1].tolist(), torch.get_rng_state(), random.getstate())  # type: ignore[index]
    assert before[0] == after[0] and torch.equal(before[1], after[1]) and before[2] == after[2]
    random.random(), torch.rand(1), np.random.rand()
    assert first == _lists(PartitionSpec(name, clients=4))


def test_iid_gives_equal_shares_of_every_class() -> None:
    parts = partition(PartitionSpec("iid", clients=4), LABELS)
    assert [len(rows) for rows in parts] == [300, 300, 300, 300]
    counts = np.array([np.bincount(LABELS[rows], minlength=10) for rows in parts])
    assert counts.min() >= 15 and counts.max() <= 45  # 30 expected


def test_small_alpha_is_uneven_and_large_alpha_is_even() -> None:
    def spread(alpha: float) -> float:
        parts = partition(PartitionSpec("dirichlet", clients=5, alpha=alpha), LABELS)
        shares = np.array([np.bincount(LABELS[rows], minlength=10) for rows in parts]) / 120
        return float(shares.std())

    assert spread(0.1) > 0.25 > 0.05 > spread(1000.0)


def test_pathological_counts_classes() -> None:
    parts = partition(PartitionSpec("pathological", clients=10, classes_per_client=3), LABELS)
    assert [len(np.unique(LABELS[rows])) for rows in parts] == [3] * 10


def test_shards_count_classes() -> None:
    parts = partition(PartitionSpec("shard", clients=10, shards_per_client=2), LABELS)
    assert [len(rows) for rows in parts] == [120] * 10
    assert max(len(np.unique(LABELS[rows])) for rows in parts) <= 4


def test_linear_sizes_grow_with_the_client() -> None:
    sizes = [len(rows) for rows in partition(PartitionSpec("linear", clients=3), LABELS)]
    assert sizes == [200, 400, 600]


def test_min_samples_holds() -> None:
    spec = PartitionSpec("dirichlet", clients=10, alpha=0.3, min_samples=30)
    assert min(len(rows) for rows in partition(spec, LABELS)) >= 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dirichle"}, "did you mean 'dirichlet'"),
        ({"name": "?"}, "choose one of iid, dirichlet, pathological"),
        ({"clients": 0}, "clients is 0"),
        ({"clients": 2.5}, "clients is 2.5"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"classes_per_client": 0}, "classes_per_client is 0"),
        ({"shards_per_client": 0}, "shards_per_client is 0"),
        ({"min_samples": 0}, "min_samples is 0"),
    ],
)
def test_settings_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PartitionSpec(**options)


@pytest.mark.parametrize(
    ("spec", "n", "message"),
    [
        (PartitionSpec("iid", clients=11), 10, "10 training samples cannot give each of 11"),
        (PartitionSpec("iid", clients=3, min_samples=4), 10, "at least 4"),
        (PartitionSpec(clients=50, alpha=0.01), 200, r"Client \d+ has 0 samples .* larger alpha"),
        (PartitionSpec("pathological", classes_per_client=11), 200, "cannot hold 11 classes"),
        (PartitionSpec("shard", clients=9, shards_per_client=9), 60, "9 x 9 shards"),
        (PartitionSpec("square", clients=30), 60, "fewer clients"),
        (PartitionSpec("exponential", clients=30), 1000, "fewer clients"),
    ],
)
def test_divisions_that_leave_a_client_empty(spec: PartitionSpec, n: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        partition(spec, LABELS[:n])


def test_labels_must_be_one_a_row() -> None:
    with pytest.raises(DataError, match="shape"):
        partition(PartitionSpec("iid", clients=2), np.zeros((4, 2), dtype=np.int64))
