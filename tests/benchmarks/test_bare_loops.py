"""The bare loops that rounds are held against do the work they are said to do."""

from __future__ import annotations

from multiprocessing import Pipe
from threading import Thread

import pytest
import torch
from torch import nn

from benchmarks.bare_loops import BareLoop, serve
from sfl_flower.tasks import load_task

CLIENTS, EACH, BATCH, PERIOD = 2, 10, 4, 2


def loop(quick: bool = False) -> BareLoop:
    """Return loops over clients of three batches, of which the first and the third go up."""
    return BareLoop(load_task("digits"), "linear", CLIENTS, EACH, BATCH, PERIOD, quick)


def weights(module: nn.Module) -> torch.Tensor:
    """Return all parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize(
    ("method", "uploads", "trains_heads"),
    [("splitfed_v2", 6, False), ("cse_fsl", 4, True), ("fsl_sage", 4, False)],
)
def test_a_round(method: str, uploads: int, trains_heads: bool) -> None:
    bare = loop()
    server, client, head = weights(bare.server), weights(bare.clients[0]), weights(bare.heads[0])
    getattr(bare, method)()
    assert bare.uploads == uploads
    assert not torch.equal(weights(bare.server), server)
    assert not torch.equal(weights(bare.clients[0]), client)
    assert torch.equal(weights(bare.clients[0]), weights(bare.clients[1]))
    assert torch.equal(weights(bare.heads[0]), head) is not trains_heads


def test_the_quick_form_does_the_same_work() -> None:
    plain, quick = loop(), loop(quick=True)
    for bare in (plain, quick):
        bare.cse_fsl()
    for of in ("server", "clients", "heads"):
        one, two = (getattr(bare, of) for bare in (plain, quick))
        pair = (one, two) if of == "server" else (one[0], two[0])
        torch.testing.assert_close(*map(weights, pair), rtol=1e-4, atol=1e-6)


def test_it_works_when_asked_and_stops_when_told() -> None:
    ours, other = Pipe()
    sizes = (CLIENTS, EACH, BATCH, PERIOD)
    thread = Thread(target=serve, args=(other, load_task("digits"), "linear", *sizes), daemon=True)
    thread.start()
    for job in ("splitfed_v2", "cse_fsl", "fsl_sage"):
        ours.send_bytes(f"{job} 1".encode())
        assert ours.poll(60) and float(ours.recv_bytes()) > 0
    ours.send_bytes(b"end")
    thread.join(60)
    assert not thread.is_alive()
