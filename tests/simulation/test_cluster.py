"""The simulation on a Ray cluster of two nodes, each with a place of its own for client state."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from flwr.app import Context, Message
from ray.cluster_utils import Cluster

from sfl_flower import simulate

NODES = ("first", "second")
OPTIONS: dict[str, Any] = {
    "rounds": 4, "clients": 4, "batch_size": 8, "probes": 2, "client_optimizer": "momentum",
}  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two nodes of one processor each; RAY_ADDRESS names them."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # The cluster writes its address where any other run of Ray on this machine would find it. Not
    # `tmp_path`: the name of a socket has 107 characters at most.
    own = tempfile.mkdtemp(prefix="sfl-ray-")
    monkeypatch.setenv("RAY_TMPDIR", own)
    nodes = Cluster()
    try:
        for name in NODES:
            # Whatever a client keeps is a file of the node that it happened to run on.
            places = {"SFL_STATE_DIR": str(tmp_path / name), "SFL_STATE_LIMIT": "1000"}
            nodes.add_node(
                num_cpus=1,
                object_store_memory=100 * 2**20,
                env_vars=places,
                **({"include_dashboard": False} if name == NODES[0] else {}),
            )
        nodes.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        yield tmp_path
    finally:
        ray.shutdown()
        nodes.shutdown()  # type: ignore[no-untyped-call]
        shutil.rmtree(own, ignore_errors=True)


def noted(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
    """Leave a file that says where a client answered."""
    folder = Path(os.environ["SFL_STATE_DIR"]) / "seen"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(context.node_config["partition-id"])).touch()
    return call_next(message, context)


@pytest.mark.simulation
def test_two_nodes_give_the_bits_of_one_process(cluster: Path) -> None:
    """Clients run on either node, and what one lost by moving it is sent again."""
    spread = simulate("digits", "ho_sfl", backend="ray", mods=[noted], **OPTIONS)
    alone = simulate("digits", "ho_sfl", backend="inline", **OPTIONS)
    assert spread.model.keys() == alone.model.keys()
    assert all(torch.equal(value, alone.model[name]) for name, value in spread.model.items())
    assert spread.history[-1].digest == alone.history[-1].digest
    assert spread.history[-1].failures == 0
    seen = [{path.name for path in (cluster / name / "seen").iterdir()} for name in NODES]
    assert seen[0] and seen[1] and seen[0] | seen[1] == {"0", "1", "2", "3"}
    for name in NODES:
        assert list((cluster / name).glob("run-*/*.safetensors"))
    # A client that moved lost its replica and has downloaded another.
    weights = [run.summary.ledger["weights"]["down"] for run in (spread, alone)]
    assert weights[0] >= weights[1]
