"""Secure sums: whether they are exact whoever drops out, and what a client pays for them.

The protocol runs without messages for sums and for time; bytes are those of a run of digits, the
ledger's with secure sums less the ledger's without, in the rounds behind the first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Iterator
from statistics import median
from typing import Any

import numpy as np

from benchmarks.figure import Figure
from sfl_flower import simulate
from sfl_flower.privacy import shares
from sfl_flower.privacy.secure_circle import Circle
from sfl_flower.privacy.secure_client import Dealt, Partner, masked, revealed
from sfl_flower.privacy.secure_keys import new_key, public_key
from sfl_flower.privacy.secure_server import Left, SecureRound

__all__ = ["add_arguments", "figures"]

ROUNDS = 2
THRESHOLD = 0.6


def add_arguments(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    parser.add_argument("--trust-secagg-clients", type=int, default=100, help="K of a round")
    parser.add_argument("--trust-secagg-neighbours", type=int, default=8, help="of each client")
    parser.add_argument("--trust-secagg-probes", type=int, default=16, help="P of a mini-batch")
    parser.add_argument(
        "--trust-secagg-all", type=int, default=10, help="K where everybody masks with everybody"
    )


def figures(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield what secure sums give and what they cost."""
    clients, width = args.trust_secagg_clients, args.trust_secagg_neighbours
    probes = args.trust_secagg_probes
    cases = [Circle(args.trust_secagg_all, 0, THRESHOLD), Circle(clients, width, THRESHOLD)]
    found = [_exact(circle, gone) for circle in cases for gone in _drops(circle)]
    words = " and ".join(f"{c.clients} clients with {c.neighbours} neighbours" for c in cases)
    yield Figure(
        "secagg_equal",
        sum(found) / len(found),
        "share",
        1.0,
        f"{len(found)} sums of {words}; of n holders t = {THRESHOLD:g} n, 0 to n - t clients gone "
        "before they deal, before they mask, or before they reveal",
    )
    own, whole = _bytes(clients, width, probes)
    holders = Circle(clients, width, THRESHOLD)
    setting = (
        f"K = {clients}, {holders.neighbours} neighbours, {holders.opens} of "
        f"{holders.neighbours + 1} holders open, P = {probes}"
    )
    yield Figure(
        "secagg_bytes_per_client", own, "B", 1000.0,
        f"{setting}; keys, shares and seeds of a round, up and down", lower_is_better=True,
    )  # fmt: skip
    yield Figure(
        "secagg_bytes_per_client_in_all", whole, "B", None,
        f"{setting}; all that a round costs more, with wider scalars and the records of a third "
        "exchange", lower_is_better=True,
    )  # fmt: skip
    yield Figure(
        "secagg_ms_per_client", _milliseconds(holders, probes), "ms", 50.0,
        f"{setting}; CPU time of a client in a round, caches empty, one thread, median of 9",
        lower_is_better=True,
    )  # fmt: skip


def _drops(circle: Circle) -> Iterator[tuple[Collection[int], ...]]:
    """Yield who is gone at each stage: 0 to n - t at one of them, and some at each."""
    most = circle.neighbours + 1 - circle.opens
    rng = np.random.default_rng(0)
    for count in range(most + 1):
        for stage in range(3):
            gone = rng.permutation(circle.clients)[:count].tolist()
            yield tuple(gone if at == stage else [] for at in range(3))
    third = rng.permutation(circle.clients)[:most].tolist()
    yield third[0::3], third[1::3], third[2::3]


def _exact(circle: Circle, gone: tuple[Collection[int], ...]) -> bool:
    """Tell whether a sum is that of all numbers that arrived, to the bit."""
    private = [new_key() for _ in range(circle.clients)]
    server = SecureRound(circle, [public_key(key) for key in private], 1)
    numbers = np.random.default_rng(1).integers(-(2**38), 2**38, (circle.clients, 1, 16))
    partners = [Partner.of(key, server.neighbours(at)) for at, key in enumerate(private)]
    dealt: dict[int, Dealt] = {}
    for at in range(circle.clients):
        if at not in gone[0]:
            dealt[at] = Dealt.deal(server.keys[at], partners[at], circle.opens, 1)
            server.left[at] = Left.of(dealt[at])
    for at in dealt:
        if at not in gone[1]:
            seed, dealers = dealt[at].seed, server.dealt(at)
            server.numbers[at] = masked(numbers[at], seed, partners[at], dealers, 1)
    server.check()
    told = {
        at: revealed(
            dealt[at].own, server.keys[at], partners[at], circle.opens,
            server.dealt(at), server.incoming(at), server.arrived(at), 1,
        )
        for at in server.numbers
        if at not in gone[2]
    }  # fmt: skip
    return bool((server.total(told) == numbers[list(server.numbers)].sum(axis=0)).all())


def _bytes(clients: int, width: int, probes: int) -> tuple[float, float]:
    """Return bytes a client and round: of secure sums alone, and all that they cost more."""
    options: dict[str, Any] = {
        "backend": "inline", "rounds": ROUNDS, "clients": clients, "batch_size": 4,
        "probes": probes, "directions": "shared", "partition": "iid", "eval_every": ROUNDS,
    }  # fmt: skip
    plain = simulate("digits", "ho_sfl", **options)
    secure = simulate(
        "digits", "ho_sfl", secure_sums=True, secure_neighbours=width,
        secure_threshold=THRESHOLD, **options,
    )  # fmt: skip

    def behind(result: Any) -> int:
        ends = [record.bytes_up + record.bytes_down for record in result.history]
        return int(ends[-1] - ends[1])

    booked = sum(secure.summary.ledger["secure"].values()) - 32 * clients  # keys, at the join
    own = booked / (ROUNDS * clients)
    return own, (behind(secure) - behind(plain)) / ((ROUNDS - 1) * clients)


def _milliseconds(circle: Circle, probes: int) -> float:
    """Return CPU milliseconds of one client in a round."""
    private = [new_key() for _ in range(circle.clients)]
    server = SecureRound(circle, [public_key(key) for key in private], 1)
    for at, key in enumerate(private):
        partners = Partner.of(key, server.neighbours(at))
        server.left[at] = Left.of(Dealt.deal(server.keys[at], partners, circle.opens, 1))
    numbers, incoming = np.zeros((1, probes), np.int64), server.incoming(0)
    server.numbers = {at: numbers.view(np.uint64) for at in range(circle.clients)}
    took = []
    for _ in range(9):
        shares._factors.cache_clear()
        began = time.process_time()
        partners = Partner.of(private[0], server.neighbours(0))
        dealt = Dealt.deal(server.keys[0], partners, circle.opens, 1)
        masked(numbers, dealt.seed, partners, server.dealt(0), 1)
        revealed(
            dealt.own, server.keys[0], partners, circle.opens,
            server.dealt(0), incoming, server.arrived(0), 1,
        )  # fmt: skip
        took.append(1e3 * (time.process_time() - began))
    return median(took)
