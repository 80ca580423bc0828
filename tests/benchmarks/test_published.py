"""The bare loop that rates are held against does the work it is said to do."""

from __future__ import annotations

from multiprocessing import Pipe
from threading import Thread

import torch
from torch import nn

from benchmarks.published import PublishedRunner, serve


def calls(module: nn.Module) -> list[int]:
    """Return a list that grows with every forward of a module."""
    seen: list[int] = []
    module.register_forward_hook(lambda *_: seen.append(1))
    return seen


def test_a_round_runs_an_anchor_and_the_probes_of_every_client() -> None:
    runner = PublishedRunner("digits", clients=3, batch_size=4, probes=5)
    client, server = calls(runner.client), calls(runner.server)
    before = [parameter.detach().clone() for parameter in runner.client.parameters()]
    runner.round()
    assert (len(client), len(server), runner.samples) == (3 * (1 + 5), 3, 12)
    # AdamW moves every weight by about its learning rate, whatever the gradient's size.
    for old, new in zip(before, runner.client.parameters(), strict=True):
        assert 1e-4 < float((new - old).detach().abs().mean()) < 3e-3


def test_probes_take_what_they_added_away_again() -> None:
    runner = PublishedRunner("digits", clients=2, batch_size=4, probes=3)
    before = [parameter.detach().clone() for parameter in runner.client.parameters()]
    anchors = runner.anchors()
    ones = [torch.ones_like(z) for z in anchors]
    scalars = runner.probe_all(anchors, ones, [5, 6, 7])
    for old, new in zip(before, runner.client.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old, rtol=0.0, atol=1e-6)
    assert scalars.shape == (2, 3)
    assert len(set(scalars.flatten().tolist())) == 6


def test_it_works_when_asked_and_stops_when_told() -> None:
    ours, other = Pipe()
    thread = Thread(target=serve, args=(other, "digits", 2, 4, 1), daemon=True)
    thread.start()
    for job in ("round", "forwards", "server"):
        ours.send_bytes(f"{job} 1".encode())
        assert ours.poll(60) and float(ours.recv_bytes()) > 0
    ours.send_bytes(b"end")
    thread.join(60)
    assert not thread.is_alive()
