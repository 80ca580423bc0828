"""What real runs book, against the closed forms of each method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sfl_flower.wire import (
    CATEGORIES,
    ForwardReply,
    ForwardRequest,
    Ledger,
    ProbeReply,
    ProbeRequest,
    StepReply,
    StepRequest,
    Sync,
    content_bytes,
)
from tests import tiny
from tests.tiny import CLIENT_SIZE, CUT, Trial, train
from tests.wire.contents import SETUP

pytestmark = pytest.mark.flower

CLIENTS, BATCH, ROUNDS = 4, 4, 3
Z = 4 * CUT  # bytes of smashed data a sample
Y = 8
W = 4 * CLIENT_SIZE  # bytes of the client half


def booked(trial: Trial) -> dict[str, tuple[int, int]]:
    """Return (up, down) of the categories but control, where there is any."""
    ledger = trial.strategy.ledger
    return {
        name: (ledger.up[name], ledger.down[name])
        for name in CATEGORIES
        if name != "control" and (ledger.up[name] or ledger.down[name])
    }


def batches(number: int) -> dict[str, tuple[int, int]]:
    """Return what sending `number` mini-batches costs."""
    return {"smashed": (number * BATCH * Z, 0), "labels": (number * BATCH * Y, 0)}


@pytest.mark.parametrize("minibatches", [1, 3])
@pytest.mark.parametrize("probes", [1, 5])
def test_ho_sfl_with_shared_directions(minibatches: int, probes: int) -> None:
    trial = train(
        tiny.task(), directions="shared", probes=probes, minibatches=minibatches, sync="replay"
    )
    scalars = 4 * probes * minibatches
    number = CLIENTS * ROUNDS * minibatches
    assert booked(trial) == {
        **batches(number),
        "gradients": (0, number * BATCH * Z),
        # Up 4 P a client and round; down the mean 4 P to each client in the next round.
        "scalars": (CLIENTS * ROUNDS * scalars, CLIENTS * (ROUNDS - 1) * scalars),
        "weights": (0, CLIENTS * W),  # once, on joining
    }


def test_ho_sfl_with_own_directions_pays_for_scalars_of_all_and_their_keys() -> None:
    trial = train(tiny.task(), directions="own", probes=5, sync="replay")
    number = CLIENTS * ROUNDS
    assert booked(trial) == {
        **batches(number),
        "gradients": (0, number * BATCH * Z),
        "scalars": (number * 4 * 5, CLIENTS * (ROUNDS - 1) * CLIENTS * 4 * 5),
        "keys": (0, CLIENTS * (ROUNDS - 1) * CLIENTS * 4),
        "weights": (0, CLIENTS * W),
    }


def test_ho_sfl_charges_every_missed_round_once() -> None:
    """A client that is sampled pays for what it missed: 4 P for each missed round."""
    trial = train(tiny.task(), rounds=12, sampled=2, directions="shared", probes=5, sync="replay")
    strategy = trial.strategy
    missed = 0
    stands: dict[int, int] = {}
    for kind, client, content in trial.grid.requests:
        if kind == "train.forward":
            version = content["config"]["version"]
            missed += version - stands.get(client, version)
            stands[client] = version
    assert missed > 12
    assert strategy.ledger.down["scalars"] == 4 * 5 * missed
    assert strategy.ledger.down["weights"] == W * len(stands)


def test_ho_sfl_by_download_moves_weights_and_optimizer_state() -> None:
    trial = train(tiny.task(), sync="download", client_optimizer="adam")
    # The first download is at version 0, where the optimiser has no state yet.
    assert trial.strategy.ledger.down["weights"] == CLIENTS * (W + (ROUNDS - 1) * 3 * W)
    assert trial.strategy.ledger.down["scalars"] == 0


def test_auto_takes_whichever_is_fewer_bytes() -> None:
    few = train(tiny.task(), probes=1, directions="shared")
    many = train(tiny.task(), probes=64, directions="shared")
    assert few.strategy.ledger.down["scalars"] == CLIENTS * (ROUNDS - 1) * 4
    assert many.strategy.ledger.down["scalars"] == 0
    assert many.strategy.ledger.down["weights"] == CLIENTS * ROUNDS * W


@pytest.mark.parametrize("method", ["splitfed_v1", "splitfed_v2"])
@pytest.mark.parametrize("steps", [1, 3])
def test_splitfed(method: str, steps: int) -> None:
    trial = train(tiny.task(), method, local_steps=steps)
    number = CLIENTS * ROUNDS * steps
    assert booked(trial) == {
        **batches(number),
        "gradients": (0, number * BATCH * Z),
        "weights": (CLIENTS * ROUNDS * W, CLIENTS * ROUNDS * W),
    }


@pytest.mark.parametrize("method", ["splitfed_v1", "splitfed_v2"])
def test_splitfeds_weights_count_buffers(method: str) -> None:
    trial = train(tiny.task(build=tiny.with_batch_norm), method, rounds=1)
    # weight, bias, mean and variance of the norm, and its counter
    whole = W + 4 * 4 * CUT + 8
    assert booked(trial)["weights"] == (CLIENTS * whole, CLIENTS * whole)


def test_the_frozen_client() -> None:
    trial = train(tiny.task(), "frozen", minibatches=2)
    assert booked(trial) == {**batches(CLIENTS * ROUNDS * 2), "weights": (0, CLIENTS * W)}


def test_a_batch_of_all_samples_counts_what_there_is() -> None:
    trial = train(tiny.task(each=3), "frozen", batch_size=50)
    assert trial.strategy.ledger.up["smashed"] == CLIENTS * ROUNDS * 3 * Z


@pytest.mark.parametrize("method", ["ho_sfl", "frozen", "splitfed_v1", "splitfed_v2"])
def test_the_ledger_is_the_messages_that_were_sent(method: str) -> None:
    trial = train(tiny.task(), method)
    ledger = trial.strategy.ledger
    assert ledger.bytes_down == sum(content_bytes(c) for _, _, c in trial.grid.requests)
    assert ledger.bytes_up == sum(content_bytes(c) for _, _, c in trial.grid.replies)
    assert ledger.messages_down == len(trial.grid.requests)
    assert ledger.exchanges == ledger.messages_up == len(trial.grid.replies)
    records = trial.strategy.records
    assert (records[-1].bytes_up, records[-1].bytes_down) == (ledger.bytes_up, ledger.bytes_down)


# L12 to L16 of methods.md 5.4: 100 clients, 10 a round, batch 32, 8192 bytes of smashed data a
# sample, P = 5, 681 152 parameters; 375 rounds of HO-SFL, 24 rounds of SplitFed V1.

MIB, GIB = 2**20, 2**30


def shaped(*shape: int) -> Any:
    """Return float32 zeros of a shape that take four bytes of memory."""
    return np.broadcast_to(np.float32(0), shape)


def book(ledger: Ledger, way: Any, message: Any) -> None:
    payload = message.payload()
    ledger.record(way, payload, sum(payload.values()))


def published(method: str) -> Ledger:
    """Return the ledger of the messages of the published setting, labels left out as there."""
    ledger = Ledger()
    z, none = shaped(32, 2048), np.zeros(0, np.int64)
    forward = ForwardReply(1, 1, z, none, none)
    if method == "ho_sfl":
        tail = Sync("tail", 0, "", 1, "", b"", scalar_bytes=4 * 5)
        lam = ProbeRequest(1, 1, "", 32, 1, SETUP, z, 0, 5, "rademacher", 1e-3)
        for _ in range(375 * 10):
            book(ledger, "down", ForwardRequest(1, 32, 1, SETUP, tail))
            book(ledger, "up", forward)
            book(ledger, "down", lam)
            book(ledger, "up", ProbeReply(1, 1, shaped(1, 5), 32))
        return ledger
    weights = {"float32": shaped(681_152)}
    for _ in range(24 * 10):
        book(ledger, "down", StepRequest(1, 0, 16, 32, SETUP, "", False, weights=weights))
        book(ledger, "up", StepReply(1, 16, 500, weights=weights))
    for _ in range(375 * 10):
        book(ledger, "up", StepReply(1, 0, 32, z, none))
        book(ledger, "down", StepRequest(1, 1, 16, 32, SETUP, "", False, lam=z))
    return ledger


def test_l12_to_l14_and_l16_of_ho_sfl() -> None:
    ledger = published("ho_sfl")
    assert ledger.up["smashed"] == ledger.down["gradients"] == 983_040_000 == 937.5 * MIB
    assert ledger.up["scalars"] == 75_000
    # The published code also sends P seeds; here keys follow from the round, so half of L14.
    assert ledger.down["scalars"] + ledger.down["keys"] == 150_000 // 2
    assert ledger.bytes_up + ledger.bytes_down == 1_966_305_000 - 75_000


def test_l15_and_l16_of_splitfed() -> None:
    ledger = published("splitfed_v1")
    assert ledger.up["weights"] == ledger.down["weights"] == 653_905_920
    total = ledger.bytes_up + ledger.bytes_down
    assert total == 3_273_891_840
    assert total / GIB == pytest.approx(3.049, abs=5e-4)


def sampled_run(method: str, rounds: int, **options: Any) -> Ledger:
    """Return the ledger of a real run of 10 of 100 clients with batch 32 on a tiny model."""
    shares = [tiny.samples(32, seed) for seed in range(10)] * 10
    trial = train(
        tiny.task(shares),
        method,
        rounds=rounds,
        clients=100,
        sampled=10,
        batch_size=32,
        eval_every=100,
        **options,
    )
    ledger: Ledger = trial.strategy.ledger
    return ledger


def test_l12_and_l13_from_a_run_scaled_down() -> None:
    rounds = 6
    ledger = sampled_run("ho_sfl", rounds, probes=5, directions="shared", sync="replay")
    for part in (ledger.up["smashed"], ledger.down["gradients"]):
        assert part * 375 * 8192 == 983_040_000 * rounds * Z
    assert ledger.up["scalars"] * 375 == 75_000 * rounds


def test_l15_from_a_run_scaled_down() -> None:
    ledger = sampled_run("splitfed_v1", rounds=2)
    for part in (ledger.up["weights"], ledger.down["weights"]):
        assert part * 24 * 681_152 == 653_905_920 * 2 * CLIENT_SIZE
