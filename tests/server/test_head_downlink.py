"""FSL-SAGE's client half and heads come down as differences: bytes, bits, and clients that miss."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfl_flower.errors import ConfigError, WireError
from sfl_flower.methods import read_options
from sfl_flower.server.head_bank import HeadBank
from sfl_flower.server.head_downlink import HeadDownlink
from sfl_flower.server.roster import Member
from sfl_flower.server.tally import Tally
from sfl_flower.wire.downlink import decode_difference, encode_difference, held_digest
from sfl_flower.wire.fsl_sage import FSLSAGERequest
from tests import tiny
from tests.local_grid import Fault
from tests.server.test_downlink import CLIENT, CLIENTS, HEAD, all_of, problem
from tests.server.test_resume import history, stop_after
from tests.tiny import Stop, Trial, equal, train
from tests.wire.contents import MESSAGES

BASE: dict[str, Any] = {
    "local_steps": 3,
    "upload_every": 2,
    "align_every": 2,
    "align_epochs": 3,
    "rounds": 4,
    "client_lr": 0.1,
}
BOTH: dict[str, Any] = {"downlink": "int8", "head_downlink": "int8"}


def sage(faults: Any = (), norm: bool = False, **options: Any) -> Trial:
    return train(problem(norm), "fsl_sage", faults, **{**BASE, **options})


@cache
def plain(**options: Any) -> Trial:
    return sage(**BOTH, **options)


def bytes_of(size: int) -> int:
    """Bytes of a difference as int8: codes, a scale for 256 and the shapes of both."""
    one = encode_difference("int8", np.ones(size, np.float32))
    assert len(one) == size + 2 * -(-size // 256) + 18
    return len(one)


def remembered(trial: Trial, client: int, name: str) -> dict[str, np.ndarray]:
    record = trial.grid.contexts[trial.grid.nodes[client]].state.array_records[name]
    return {key: array.numpy() for key, array in record.items()}


def came(trial: Trial, client: int, kind: str = "local") -> list[tuple[bool, bool]]:
    """Return of each request to a client whether changes of client half and of head came."""
    return [
        ("changes" in content["arrays"], "head-changes" in content["arrays"])
        for action, number, content in trial.grid.requests
        if action == kind and number == client
    ]


# Bytes


def test_differences_are_booked_by_the_byte() -> None:
    """Heads are aligned in rounds 1 and 3; in round 1 clients have the client half they built."""
    down = plain().strategy.ledger.down
    assert down["weights"] == 3 * CLIENTS * bytes_of(CLIENT)
    assert down["auxiliary"] == 2 * CLIENTS * bytes_of(HEAD)
    assert came(plain(), 0) == [(False, True), (True, False), (False, True), (True, False)]
    assert came(plain(), 0, "upload") == [(False, False), (True, False)]


def test_each_half_comes_down_in_a_way_of_its_own() -> None:
    weights = sage().strategy.ledger
    client, head = sage(downlink="int8").strategy.ledger, sage(head_downlink="int8").strategy.ledger
    assert client.down["weights"] == 3 * CLIENTS * bytes_of(CLIENT)
    assert head.down["auxiliary"] == 2 * CLIENTS * bytes_of(HEAD)
    assert client.down["auxiliary"] == weights.down["auxiliary"] == 2 * CLIENTS * 4 * HEAD
    assert head.down["weights"] == weights.down["weights"] == 4 * CLIENTS * 4 * CLIENT
    assert client.up["weights"] == head.up["weights"] == weights.up["weights"]


def test_it_learns_as_with_weights() -> None:
    whole = sage()
    apart = max(float((whole.model[n] - plain().model[n]).abs().max()) for n in whole.model)
    assert 0 < apart < 0.02
    assert plain().total("failures") == plain().total("rejected") == 0 and plain().notes == ""


# Bits


def test_everybody_holds_the_same_client_half_and_each_its_own_head() -> None:
    trial = plain()
    halves = [held_digest(remembered(trial, client, "held")) for client in range(CLIENTS)]
    heads = [held_digest(remembered(trial, client, "held head")) for client in range(CLIENTS)]
    assert len(set(halves)) == 1 and len(set(heads)) == CLIENTS
    for client, digest in enumerate(heads):
        ours = trial.strategy.heads._downs[client]._held
        assert held_digest(ours) == digest


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        ({"downlink": "int4", "head_downlink": "topk:0.1+int4", "sampled": 3}, 2),
        ({"head_downlink": "int4", "warm_start": True, "sampled": 2}, 3),
    ],
)
def test_a_resumed_run_goes_on_to_the_same_bits(
    options: dict[str, Any], stop: int, tmp_path: Path
) -> None:
    """Heads are aligned in rounds 1 and 3, after a warm start in rounds 2 and 4."""
    options = {**BASE, **options}
    whole = tiny.run(problem(), "fsl_sage", out=tmp_path / "whole", **options)
    with pytest.raises(Stop):
        tiny.run(
            problem(), "fsl_sage", out=tmp_path / "parts", observer=stop_after(stop), **options
        )
    resumed = tiny.run(problem(), "fsl_sage", out=tmp_path / "parts", resume=True, **options)
    assert equal(whole.model, resumed.model)
    assert history(resumed.history) == history(whole.history)


# Who stands where


@pytest.mark.parametrize("type_", ["upload", "local"])
@pytest.mark.parametrize("kind", ["forget", "rollback", "twice"])
def test_a_client_that_lost_its_state_is_brought_up_and_nothing_changes(
    kind: str, type_: str
) -> None:
    """With statistics of BatchNorm, which are kept beside what changes tell of."""
    trial = sage([Fault(kind, {1}, {1, 3}, type_)], norm=True, **BOTH)
    assert equal(all_of(trial), all_of(plain(norm=True)))
    assert trial.total("failures") == trial.total("rejected") == 0


@pytest.mark.parametrize(("kind", "round"), [("late", 1), ("drop", 1), ("mute", 3)])
def test_a_client_whose_steps_are_lost_holds_what_it_says(kind: str, round: int) -> None:
    """Whether it got its head or not, it is believed, and what it lacks comes with the next."""
    trial = sage([Fault(kind, {1}, {round}, "local", times=1)], **BOTH)
    twin = sage([Fault("raise", {1}, {round}, "local", times=1)], **BOTH)
    assert equal(all_of(trial), all_of(twin)) and trial.total("failures") == 1
    ours = trial.strategy.heads._downs[1]._held
    assert held_digest(remembered(trial, 1, "held head")) == held_digest(ours)
    # One that got its head says so when it is sent the same difference once more.
    assert trial.strategy.ledger.down["auxiliary"] == (2 * CLIENTS + 1) * bytes_of(HEAD)


def test_a_client_that_was_away_is_sent_what_it_missed() -> None:
    trial = sage([Fault("drop", {1}, {2, 3})], rounds=6, **BOTH)
    assert trial.total("failures") == 2
    # It was left out of the alignment of round 3, so its head changed in rounds 1 and 5.
    assert came(trial, 1) == [
        (False, True), (True, False), (True, False), (False, True), (True, False)
    ]  # fmt: skip
    assert trial.strategy.ledger.down["auxiliary"] == (3 * CLIENTS - 1) * bytes_of(HEAD)


# A warm start


def test_after_a_warm_start_the_first_difference_is_to_the_head_that_clients_built() -> None:
    trial = sage(warm_start=True, **BOTH)
    down = trial.strategy.ledger.down
    assert trial.notes == ""
    assert down["weights"] == 3 * CLIENTS * bytes_of(CLIENT)
    # Whole in round 1; aligned in rounds 2 and 4.
    assert down["auxiliary"] == CLIENTS * 4 * HEAD + 2 * CLIENTS * bytes_of(HEAD)


def test_the_mean_head_of_a_warm_start_reaches_who_was_not_aligned_yet() -> None:
    options: dict[str, Any] = {"warm_start": True, "sampled": 2, "align_every": 4, "rounds": 4}
    coded, whole = sage(**options, **BOTH), sage(**options)
    assert coded.notes == ""
    met = {n for kind, n, c in coded.grid.requests if kind == "local"}
    down = coded.strategy.ledger.down["auxiliary"] - 2 * 4 * HEAD
    assert down == len(met) * bytes_of(HEAD)
    apart = max(float((whole.model[n] - coded.model[n]).abs().max()) for n in whole.model)
    assert apart < 0.02


# By hand

SIZE = 128


def weight(bank: HeadBank, partition: int) -> Tensor:
    """Return the weight of a client's head, a linear layer."""
    return next(bank.head(partition).module.parameters())


def row(*first: float) -> np.ndarray:
    return np.array([*first, *[0.0] * (SIZE - len(first))], np.float32)


@pytest.mark.parametrize("built", [True, False])
def test_what_a_heads_difference_lacks_is_part_of_the_next_by_hand(built: bool) -> None:
    """Scale 1: -127 arrives, 0.25 becomes nothing; the third time 0.75 becomes 1."""
    common, other = (nn.Linear(SIZE, 1, bias=False) for _ in range(2))
    nn.init.zeros_(common.weight)
    nn.init.ones_(other.weight)
    bank = HeadBank(common, 4, "sgd", 0.1)
    heads = HeadDownlink(bank, "int8", common, lambda: common if built else other)
    member, tally, theirs = Member(0, 7, 12), Tally(), np.zeros(SIZE, np.float32)
    if not built:  # what clients cannot build comes whole
        packed, told = heads.plan(member, tally)
        assert packed["float32"].tolist() == [0.0] * SIZE and told["head_base"] is None
        heads.synced(member)
    for times, arrived in enumerate((0, 0, 1), 1):
        wanted = times * row(-127, 0.25)
        with torch.no_grad():
            weight(bank, 0).copy_(torch.from_numpy(wanted).reshape(1, SIZE))
        heads.changed(0, tally)
        packed, told = heads.plan(member, tally)
        assert packed == {} and told["head_base"] == held_digest({"head": theirs})
        theirs = theirs + decode_difference("int8", told["head_changes"][5:], SIZE)
        assert np.array_equal(theirs, row(-127 * times, arrived))
        assert told["digest"] == held_digest({"head": theirs})
        heads.synced(member)
        assert np.array_equal(weight(bank, 0).detach().numpy()[0], wanted)
    assert heads.plan(member, tally)[1]["head_changes"] is None and tally.notes == []


def test_a_head_that_cannot_be_written_is_a_download_of_that_client() -> None:
    common = nn.Linear(SIZE, 1, bias=False)
    bank, tally, member = HeadBank(common, 4, "sgd", 0.1), Tally(), Member(3, 7, 12)
    heads = HeadDownlink(bank, "float16", common, lambda: common)
    nn.init.constant_(weight(bank, 3), 1e5)
    heads.changed(3, tally)
    assert "Client 3 downloads the head half again: " in tally.notes[0]
    packed, told = heads.plan(member, tally)
    assert told["head_base"] is None and packed["float32"].tolist() == [1e5] * SIZE


# Bad input


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"head_base": None}, "changes of a head without saying since when"),
        ({"head_downlink": "weights"}, "says since when a head changed that comes whole"),
        ({"holds": None}, "what the client is to hold"),
        ({"base": None, "changes": b"\2"}, "changes without saying since when"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused(change: dict[str, Any], says: str) -> None:
    sound = MESSAGES["fsl-sage, followed"]
    assert isinstance(sound, FSLSAGERequest)
    with pytest.raises(WireError, match=says):
        FSLSAGERequest.from_content(replace(sound, **change).to_content())


@pytest.mark.parametrize("name", ["downlink", "head_downlink"])
@pytest.mark.parametrize("way", ["scalars", "auto", "int7"])
def test_walks_do_not_come_down_where_there_are_none(name: str, way: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is '{way}'; it must be weights or an encoding"):
        read_options({"method": "fsl_sage", name: way})


def test_a_client_that_says_it_stands_elsewhere_although_all_came_is_refused() -> None:
    from sfl_flower.wire import StaleReply

    fault = Fault("change", {1}, {1}, "upload", change=lambda c: StaleReply(1).to_content())
    trial = sage([fault])
    assert trial.strategy.records[1].rejected == 1
    assert "stands elsewhere, and all weights came with it" in trial.notes
