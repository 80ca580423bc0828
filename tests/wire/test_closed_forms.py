"""What real runs book, against the closed forms of each method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tests.wire.contents as contents
from sfl_flower.task import Samples
from sfl_flower.training.measures import IGNORED
from sfl_flower.wire import CATEGORIES, Ledger, Sync, content_bytes
from sfl_flower.wire.fedavg import FullReply, FullRequest
from sfl_flower.wire.ho_sfl import ForwardReply, ForwardRequest, ProbeReply, ProbeRequest
from sfl_flower.wire.splitfed import StepReply, StepRequest
from sfl_flower.zo import SHARED_STREAM, Entry, Probing, Tail
from tests import tiny
from tests.local_grid import values
from tests.tiny import CLIENT_SIZE, CUT, Trial, train
from tests.wire.contents import SETUP

CLIENTS, BATCH, ROUNDS = 4, 4, 3
Z = 4 * CUT  # bytes of smashed data a sample
Y = 1
W = 4 * CLIENT_SIZE  # bytes of the client half
HEAD = 4 * (CUT * tiny.CLASSES + tiny.CLASSES)  # bytes of a linear head
WHOLE = W + 4 * (4 * CUT + 4 + 3 * 4 + 3)  # bytes of the whole model


GUIDE = 8 + 4 * (1 + CUT + CUT + tiny.FEATURES) + 5
PAPER: dict[str, Any] = {"uplink": "weights", "head_trainer": "client"}
"""HERON as published."""


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


@pytest.mark.parametrize("directions", ["shared", "own"])
def test_ho_sfl_pays_for_the_signs_of_a_guide_twice_and_for_a_scalar_more(directions: str) -> None:
    """Down with the probes and in the journal: 35 signs in 5 bytes, 1 + 5 factors of the biases,
    5 + 6 of the weights, and their two counts.
    """
    trial = train(
        tiny.task(public=lambda: tiny.samples(9, 7)),
        directions=directions, probes=5, minibatches=2, guide="public", sync="replay",
    )  # fmt: skip
    number, missed = CLIENTS * ROUNDS, CLIENTS * (ROUNDS - 1)
    own = directions == "own"
    assert booked(trial) == {
        **batches(2 * number),
        "gradients": (0, 2 * number * BATCH * Z),
        "scalars": (number * 4 * 6 * 2, missed * 4 * 5 * 2 * (CLIENTS if own else 1)),
        "keys": (0, number * GUIDE + missed * (GUIDE + (4 * CLIENTS if own else 0))),
        "weights": (0, CLIENTS * W),
    }


def test_ho_sfl_charges_every_missed_round_once() -> None:
    """A client that is sampled pays for what it missed: 4 P for each missed round."""
    trial = train(tiny.task(), rounds=12, sampled=2, directions="shared", probes=5, sync="replay")
    strategy = trial.strategy
    missed = 0
    stands: dict[int, int] = {}
    for kind, client, content in trial.grid.requests:
        if kind == "forward":
            version = content["config"]["round"] - 1  # an update a round
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


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (4, 1), (4, 3)])
@pytest.mark.parametrize("method", ["cse_fsl", "heron"])
def test_methods_with_a_local_loss(method: str, steps: int, every: int) -> None:
    options = PAPER if method == "heron" else {}
    trial = train(tiny.task(), method, local_steps=steps, upload_every=every, **options)
    rounds = CLIENTS * ROUNDS
    assert booked(trial) == {
        **batches(rounds * -(-steps // every)),
        "weights": (rounds * W, rounds * W),
        "auxiliary": (rounds * HEAD, rounds * HEAD),
    }
    assert trial.strategy.ledger.exchanges == CLIENTS * (1 + ROUNDS)  # all joined once


@pytest.mark.parametrize("method", ["cse_fsl", "heron"])
def test_their_weights_count_buffers(method: str) -> None:
    options = PAPER if method == "heron" else {}
    trial = train(tiny.task(build=tiny.with_batch_norm), method, rounds=1, **options)
    whole = W + 4 * 4 * CUT + 8
    assert booked(trial)["weights"] == (CLIENTS * whole, CLIENTS * whole)


@pytest.mark.parametrize(("steps", "probes"), [(1, 1), (4, 3)])
def test_heron_with_scalars_sends_4_h_p_bytes_in_place_of_weights(steps: int, probes: int) -> None:
    trial = train(
        tiny.task(),
        "heron",
        local_steps=steps,
        probes=probes,
        head_trainer="client",
        uplink="scalars",
    )
    rounds = CLIENTS * ROUNDS
    assert booked(trial) == {
        **batches(rounds * steps),
        "scalars": (rounds * 4 * steps * probes, 0),
        "weights": (0, rounds * W),
        "auxiliary": (0, rounds * HEAD),
    }
    masks = [c["arrays"]["taken"] for kind, _, c in trial.grid.replies if kind == "local"]
    assert [values(mask).nbytes for mask in masks] == [steps] * rounds  # h bytes, in control


@pytest.mark.parametrize("uplink", ["scalars", "weights"])
def test_heron_pays_for_a_guide_down_and_for_a_scalar_a_step_from_round_2_on(uplink: str) -> None:
    trial = train(
        tiny.task(public=lambda: tiny.samples(9, 7)),
        "heron", local_steps=2, probes=5, guide="public", uplink=uplink,
    )  # fmt: skip
    rounds, guided = CLIENTS * ROUNDS, CLIENTS * (ROUNDS - 1)
    sent = 4 * 2 * (5 * rounds + guided) if uplink == "scalars" else 0
    assert booked(trial) == {
        **batches(rounds * 2),
        **({"scalars": (sent, 0)} if sent else {}),
        "keys": (0, guided * GUIDE),
        "weights": (0 if sent else rounds * W, rounds * W),
        "auxiliary": (0, rounds * HEAD),
    }


@pytest.mark.parametrize("uplink", ["scalars", "weights"])
def test_a_head_that_the_server_trains_does_not_go_up(uplink: str) -> None:
    trial = train(tiny.task(), "heron", head_trainer="server", uplink=uplink, local_steps=2)
    rounds = CLIENTS * ROUNDS
    assert booked(trial)["auxiliary"] == (0, rounds * HEAD)
    assert booked(trial)["weights"] == (0 if uplink == "scalars" else rounds * W, rounds * W)


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (4, 1), (4, 3)])
@pytest.mark.parametrize("period", [1, 2, 5])
def test_fsl_sage_sends_heads_down_where_they_are_aligned(
    steps: int, every: int, period: int
) -> None:
    options: dict[str, Any] = {"align_every": period, "align_epochs": 2}
    trial = train(tiny.task(), "fsl_sage", local_steps=steps, upload_every=every, **options)
    rounds, alignments = CLIENTS * ROUNDS, CLIENTS * -(-ROUNDS // period)
    assert booked(trial) == {
        **batches(rounds * -(-steps // every)),
        "weights": (rounds * W, rounds * W),
        "auxiliary": (0, alignments * HEAD),
    }
    assert trial.strategy.ledger.exchanges == CLIENTS + rounds + alignments


def test_fsl_sage_with_a_warm_start_and_clients_that_come_later() -> None:
    options: dict[str, Any] = {"align_every": 10, "align_epochs": 2}
    warm = train(tiny.task(), "fsl_sage", warm_start=True, **options)
    # Round 1 moves heads both ways, round 2 aligns them.
    assert booked(warm)["auxiliary"] == (CLIENTS * HEAD, 2 * CLIENTS * HEAD)
    some = train(tiny.task(), "fsl_sage", sampled=2, rounds=12, **options)
    came: set[int] = set()
    sent = 0
    for kind, client, content in some.grid.requests:
        if kind == "local":
            aligned = content["config"]["round"] in (1, 11)
            sent += aligned or client not in came
            came.add(client)
    assert came == set(range(CLIENTS))
    assert booked(some)["auxiliary"] == (0, sent * HEAD)
    assert booked(some)["weights"] == (2 * 12 * W, 2 * 12 * W)


@pytest.mark.parametrize("steps", [0, 5])
def test_fedavg_moves_weights_alone_whatever_the_local_steps(steps: int) -> None:
    trial = train(tiny.task(), "fedavg", local_steps=steps)
    assert booked(trial) == {"weights": (CLIENTS * ROUNDS * WHOLE, CLIENTS * ROUNDS * WHOLE)}
    assert trial.strategy.ledger.exchanges == CLIENTS * (1 + ROUNDS)  # all joined once


def test_fedavgs_weights_count_buffers() -> None:
    trial = train(tiny.task(build=tiny.with_batch_norm), "fedavg", rounds=1)
    # weight, bias, mean and variance of each norm, and its counter
    whole = WHOLE + 4 * 4 * (CUT + 4) + 2 * 8
    assert booked(trial)["weights"] == (CLIENTS * whole, CLIENTS * whole)


@pytest.mark.parametrize(("steps", "probes"), [(1, 1), (3, 5)])
def test_decomfl_moves_scalars_alone(steps: int, probes: int) -> None:
    trial = train(tiny.task(), "decomfl", local_steps=steps, probes=probes, sync="replay")
    scalars = CLIENTS * 4 * steps * probes
    assert booked(trial) == {
        "scalars": (ROUNDS * scalars, (ROUNDS - 1) * scalars),
        "weights": (0, CLIENTS * WHOLE),  # once, on joining
    }
    assert trial.strategy.ledger.exchanges == CLIENTS * (1 + ROUNDS)


def test_decomfl_pays_for_each_round_a_client_missed() -> None:
    trial = train(
        tiny.task(), "decomfl", sampled=2, rounds=12, local_steps=3, probes=5, sync="replay"
    )
    missed = 0
    stands: dict[int, int] = {}
    for kind, client, content in trial.grid.requests:
        if kind == "walk":
            version = content["config"]["round"] - 1  # an update a round
            missed += version - stands.get(client, version)
            stands[client] = version
    assert missed > 12
    ledger = trial.strategy.ledger
    assert (ledger.down["scalars"], ledger.down["keys"]) == (4 * 3 * 5 * missed, 0)
    assert ledger.down["weights"] == WHOLE * len(stands)


@pytest.mark.parametrize("steps", [1, 3])
def test_mu_splitfed(steps: int) -> None:
    trial = train(tiny.task(), "mu_splitfed", server_steps=steps)
    number = CLIENTS * ROUNDS
    assert booked(trial) == {
        "smashed": (3 * number * BATCH * Z, 0),
        "labels": (number * BATCH * Y, 0),
        "scalars": (0, number * 4),
        "weights": (number * W, number * W),
    }


@pytest.mark.parametrize(("steps", "probes"), [(1, 1), (3, 2)])
def test_zo_sfl(steps: int, probes: int) -> None:
    trial = train(tiny.task(), "zo_sfl", local_steps=steps, probes=probes)
    number = CLIENTS * ROUNDS
    assert booked(trial) == {
        "smashed": (2 * probes * steps * number * BATCH * Z, 0),
        "labels": (steps * number * BATCH * Y, 0),
        "scalars": (0, steps * number * 4 * probes),
        "weights": (number * W, number * W),
    }


@pytest.mark.parametrize("method", ["mu_splitfed", "zo_sfl"])
def test_the_ledger_of_zeroth_order_on_both_sides_is_the_messages_sent(method: str) -> None:
    trial = train(tiny.task(build=tiny.with_batch_norm), method, client_mode="eval")
    ledger = trial.strategy.ledger
    assert ledger.bytes_down == sum(content_bytes(c) for _, _, c in trial.grid.requests)
    assert ledger.bytes_up == sum(content_bytes(c) for _, _, c in trial.grid.replies)
    # weight, bias, mean and variance of the norm, and its counter
    assert ledger.up["weights"] == CLIENTS * ROUNDS * (W + 4 * 4 * CUT + 8)


def test_the_frozen_client() -> None:
    trial = train(tiny.task(), "frozen", minibatches=2)
    assert booked(trial) == {**batches(CLIENTS * ROUNDS * 2), "weights": (0, CLIENTS * W)}


def test_a_batch_of_all_samples_counts_what_there_is() -> None:
    trial = train(tiny.task(each=3), "frozen", batch_size=50)
    assert trial.strategy.ledger.up["smashed"] == CLIENTS * ROUNDS * 3 * Z


@pytest.mark.parametrize("method", ["frozen", "splitfed_v2"])
def test_labels_of_texts_cost_what_counts_and_a_byte_a_text(method: str) -> None:
    positions, counted = 64, 2
    found = tiny.samples(CLIENTS * BATCH * positions)
    x = found.x.reshape(-1, positions, tiny.FEATURES)
    y = found.y.reshape(-1, positions).clone()
    y[:, counted:] = IGNORED
    shares = [Samples(x[i::CLIENTS], y[i::CLIENTS]) for i in range(CLIENTS)]
    task = tiny.task(shares, test=lambda: shares[0], ignore_label=IGNORED)
    ledger = train(task, method).strategy.ledger
    texts = CLIENTS * ROUNDS * BATCH
    assert ledger.up["labels"] == texts * (counted * Y + 1)
    assert ledger.up["smashed"] == texts * positions * Z


@pytest.mark.parametrize(
    "method",
    [
        "ho_sfl",
        "frozen",
        "splitfed_v1",
        "splitfed_v2",
        "fedavg",
        "decomfl",
        "cse_fsl",
        "heron",
        "fsl_sage",
    ],
)
def test_the_ledger_is_the_messages_that_were_sent(method: str) -> None:
    trial = train(tiny.task(), method)
    ledger = trial.strategy.ledger
    assert ledger.bytes_down == sum(content_bytes(c) for _, _, c in trial.grid.requests)
    assert ledger.bytes_up == sum(content_bytes(c) for _, _, c in trial.grid.replies)
    assert ledger.messages_down == len(trial.grid.requests)
    assert ledger.exchanges == ledger.messages_up == len(trial.grid.replies)
    records = trial.strategy.records
    assert (records[-1].bytes_up, records[-1].bytes_down) == (ledger.bytes_up, ledger.bytes_down)


# 100 clients, 10 a round, batch 32, 8192 bytes of smashed data a
# sample, P = 5, 681 152 parameters; 375 rounds of HO-SFL, 24 rounds of SplitFed V1.

MIB, GIB = 2**20, 2**30


def shaped(*shape: int) -> Any:
    """Return float32 zeros of a shape that take four bytes of memory."""
    return np.broadcast_to(np.float32(0), shape)


def book(ledger: Ledger, way: Any, times: int, message: Any) -> None:
    """Book a message so many times, what of it is control left out."""
    found = contents.booked(message)
    for _ in range(times):
        ledger.record(way, found, sum(found.values()))


def published(method: str) -> Ledger:
    """Return the ledger of the messages of the published setting, labels left out as there."""
    ledger = Ledger()
    z, none = shaped(32, 2048), np.zeros(0, np.int64)
    forward = ForwardReply(1, 1, z, none, none)
    if method == "ho_sfl":
        entry = Entry(1, 0.1, (SHARED_STREAM,), 1, 5, np.ones((1, 1, 5), np.float32))
        data = Tail(0, 0, bytes(32), bytes(32), (entry,)).encode()
        tail = Sync("tail", 0, "", 1, "", data)
        lam = ProbeRequest(1, 32, 1, SETUP, z, 0, Probing(5))
        book(ledger, "down", 3750, ForwardRequest(1, 32, 1, SETUP, tail))
        book(ledger, "up", 3750, forward)
        book(ledger, "down", 3750, lam)
        book(ledger, "up", 3750, ProbeReply(1, shaped(1, 5), 32))
        return ledger
    weights = {"float32": shaped(681_152)}
    book(ledger, "down", 240, StepRequest(1, 0, 16, 32, SETUP, "", False, weights=weights))
    book(ledger, "up", 240, StepReply(1, 16, 500, weights=weights))
    book(ledger, "up", 3750, StepReply(1, 0, 32, z, none))
    book(ledger, "down", 3750, StepRequest(1, 1, 16, 32, SETUP, "", False, lam=z))
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


def test_l6_and_l10_of_fedavg() -> None:
    """10 clients, ResNet-18 cut after layer2: 2 740 048 and 42 025 080 bytes of the halves."""
    ledger = Ledger()
    weights = {"float32": shaped((2_740_048 + 42_025_080) // 4)}
    book(ledger, "down", 10, FullRequest(1, 20, 256, SETUP, "", False, weights))
    book(ledger, "up", 10, FullReply(1, 5000, 0.0, weights))
    total = ledger.bytes_up + ledger.bytes_down
    assert total == 895_302_560
    assert total / MIB == pytest.approx(853.8, abs=0.05)
    assert 84 * total == 75_205_415_040


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
