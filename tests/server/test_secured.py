"""Secure sums of HO-SFL over messages: the same bits as sums in the clear, and no scalar seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from sfl_flower.errors import ConfigError, TrainingError
from sfl_flower.node import secure as node_secure
from sfl_flower.node.postprocess import NoisyScalars
from sfl_flower.privacy import secure_client, secure_server
from sfl_flower.privacy.secure_numbers import to_fixed
from sfl_flower.report import RunDirectory
from sfl_flower.task import Samples
from sfl_flower.wire import content_bytes
from sfl_flower.wire.flower import SUPERLINK, identity
from sfl_flower.wire.secure import SecureProbeReply
from tests import tiny
from tests.local_grid import Change, Fault, changed, values
from tests.test_contract import BAD, arrays_of, history, same
from tests.tiny import Trial, begin, equal, plan, start, train

pytestmark = pytest.mark.flower

SHARED: dict[str, Any] = {"directions": "shared", "clip_norm": 1.0, "rounds": 3, "clients": 5}
SECURE: dict[str, Any] = {**SHARED, "secure_sums": True}
WAYS: dict[str, dict[str, Any]] = {
    "clipped": {},
    "as they are": {"clip_norm": 0.0, "minibatches": 2, "server_steps": "batch"},
    "by samples": {"mean": "samples", "secure_neighbours": 2, "secure_threshold": 2},
    "spread": {"scale": "spread", "client_optimizer": "adam", "client_lr": 0.01},
    "walk": {"walk": True, "estimator": "central", "cone": 0.5},
    "sampled": {"sampled": 3, "rounds": 4, "client_optimizer": "momentum"},
    "jvp": {"estimator": "jvp", "secure_threshold": 5, "micro_batch": "3"},
}
STAGES = ("secure_forward", "secure_probe", "unmask")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each way of using secure sums."""
    return {**SECURE, **WAYS[request.param]}


def shares() -> list[Samples]:
    return [tiny.samples(count, seed) for seed, count in enumerate((5, 9, 12, 7, 12))]


def trained(options: dict[str, Any], *faults: Fault, **more: Any) -> Trial:
    return train(tiny.task(shares()), "ho_sfl", faults, **{**options, **more})


@contextmanager
def in_the_clear() -> Iterator[None]:
    """Let every mask be zero: what travels are the scalars as whole numbers."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (secure_client, secure_server):
            patch.setattr(module, "mask", lambda seed, count: np.zeros(count, np.uint64))
        yield


def sent(trial: Trial, round: int) -> dict[int, np.ndarray]:
    """Return the numbers of a round, by client."""
    found = {}
    for kind, client, content in trial.grid.replies:
        if kind == "secure_probe" and content["config"]["round"] == round:
            found[client] = values(content["arrays"]["numbers"]).view(np.int64)
    return found


def test_a_run_with_secure_sums_is_one_that_counts_in_the_clear_to_the_bit(
    way: dict[str, Any],
) -> None:
    secure = trained(way)
    with in_the_clear():
        clear = trained(way)
    assert same(secure, clear)
    assert [r.failures + r.rejected for r in secure.strategy.records] == [0] * (way["rounds"] + 1)
    assert [r.extra for r in secure.strategy.records] == [r.extra for r in clear.strategy.records]
    plain = trained({**way, "secure_sums": False})
    for name in tiny.CLIENT_NAMES:  # and to what rounding to the step leaves, one that does not
        assert np.allclose(secure.model[name], plain.model[name], rtol=0, atol=1e-5), name
    assert secure.strategy.ledger.exchanges > plain.strategy.ledger.exchanges


def test_what_travels_in_the_clear_are_multiples_of_the_step() -> None:
    options = {**SECURE, "clip_norm": 0.0, "scalar_limit": 1000.0}
    with in_the_clear():
        clear = trained(options)
    plain = trained({**options, "secure_sums": False})
    scalars = {
        client: values(content["arrays"]["scalars"])
        for kind, client, content in plain.grid.replies
        if kind == "probe" and content["config"]["round"] == 1
    }
    found = sent(clear, 1)
    bits = next(
        content["config"]["bits"] for kind, _, content in clear.grid.asked if kind == "secure_probe"
    )
    assert bits == 33  # 5 clients of 1000 in steps of 2^-34 are 0.6 of 2^47; one bit to spare
    for client, scalar in scalars.items():
        slopes = scalar.astype(np.float64) / 1e-3
        assert np.array_equal(found[client], to_fixed(slopes, bits, 1000.0))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["mute", "late", "forget"])
def test_who_drops_out_is_left_out_of_the_sum_and_nobody_else(stage: str, kind: str) -> None:
    """Of five holders three open a secret, so two may go at any stage."""
    gone = {0, 3}
    fault = Fault(kind, gone, {2}, stage, len(gone))
    secure = trained(SECURE, fault)
    with in_the_clear():
        clear = trained(SECURE, fault)
    assert same(secure, clear)
    assert secure.strategy.version == 3
    replies = [record.replies for record in secure.strategy.records[1:]]
    # Whoever forgets after it answered can take no further step; masks it revealed are known.
    left_out = (stage == "secure_probe" and kind != "forget") or stage == "secure_forward"
    # Whoever lost its key brings a new one in the next round, and takes part after it.
    after = 5 - len(gone) if kind == "forget" else 5
    assert replies == [5, 5 - len(gone) if left_out else 5, after]


def test_who_drops_out_before_it_probes_is_as_in_a_run_without_secure_sums() -> None:
    """Its smashed data trains the server half, its scalars are not in the mean."""
    secure = trained(SECURE, Fault("mute", {1}, {2}, "secure_probe"))
    plain = trained(SHARED, Fault("mute", {1}, {2}, "probe"))
    assert [r.loss for r in secure.strategy.records[:3]] == [
        r.loss for r in plain.strategy.records[:3]
    ]
    for name in tiny.CLIENT_NAMES:
        assert np.allclose(secure.model[name], plain.model[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_below_the_threshold_a_round_is_given_up_and_nothing_is_lost(stage: str) -> None:
    fault = Fault("mute", {0, 2, 4}, {2}, stage, 3)
    secure = trained(SECURE, fault)
    assert secure.strategy.version == 2
    assert [record.replies for record in secure.strategy.records[1:]] == [5, 0, 5]
    assert "Nothing is learned of the scalars of round 2: " in secure.notes
    plain = trained(SHARED, Fault("mute", None, {2}, "probe", 5))
    assert [r.loss for r in secure.strategy.records] == [
        pytest.approx(r.loss, abs=1e-6) for r in plain.strategy.records
    ]


def test_too_few_clients_for_a_sum_are_asked_for_none() -> None:
    """Of five two give no key, and four have to open a sum; a run of such rounds says so."""
    two = Fault("change", {1, 2}, types="join", change=_with_key(bytes(32)))
    trial = begin(tiny.task(shares()), "ho_sfl", [two], **{**SECURE, "secure_threshold": 4})
    with pytest.raises(TrainingError, match="No usable reply in any of the 3 rounds"):
        start(trial)
    assert trial.strategy.version == 0
    assert "3 clients are too few for a secure sum" in trial.notes
    assert not [kind for kind, _ in trial.grid.log if kind == "secure_probe"]


def _with_key(key: bytes) -> Change:
    return lambda content: changed(content, arrays={"key": np.frombuffer(key, np.uint8)})


@pytest.mark.parametrize(
    ("key", "says"),
    [(bytes(32), "no public key that can be used"), (b"\x07", "no public key that can be used")],
    ids=["zeros", "short"],
)
def test_a_client_with_a_key_that_is_none_is_left_out(key: bytes, says: str) -> None:
    secure = trained(SECURE, Fault("change", {1}, types="join", change=_with_key(key)))
    assert says in secure.notes
    assert [record.replies for record in secure.strategy.records[1:]] == [4, 4, 4]


def test_a_client_that_copies_a_key_is_left_out_and_its_owner_is_not() -> None:
    keys: list[np.ndarray] = []

    def listen(content: RecordDict) -> RecordDict:
        keys.append(values(arrays_of(content)["key"]))
        return content

    def copy(content: RecordDict) -> RecordDict:
        return changed(content, arrays={"key": keys[0]})

    secure = trained(
        SECURE, Fault("change", {0}, types="join", change=listen),
        Fault("change", {4}, types="join", change=copy),
    )  # fmt: skip
    assert "The reply of client 4 is not used: it gave the public key of node" in secure.notes
    assert [record.replies for record in secure.strategy.records[1:]] == [4, 4, 4]


def test_a_client_that_masks_with_another_key_than_it_gave_spoils_its_rounds_only() -> None:
    """Its neighbours' masks with it do not cancel: no sum is opened, and none is wrong."""
    false = Fault("change", {1}, types="join", change=_with_key(bytes(range(32))), times=1)
    secure = trained(SECURE, false)
    assert "Client 1 has a new key, for it lost its state" in secure.notes  # it says so itself
    assert [record.replies for record in secure.strategy.records[1:]] == [4, 5, 5]


def _arrays(name: str, change: Any) -> Change:
    return lambda content: changed(
        content, arrays={name: change(values(arrays_of(content)[name]).copy())}
    )


@pytest.mark.parametrize(
    ("stage", "name", "replies"),
    [
        ("unmask", "shares", 5),  # those of the others open the sum
        ("secure_forward", "sent", 0),  # of the three that open, two need not be sent
        ("secure_forward", "mark", 0),
        ("secure_probe", "numbers", 0),
    ],
)
def test_a_client_that_lies_ends_no_run(stage: str, name: str, replies: int) -> None:
    def lie(given: np.ndarray) -> np.ndarray:
        flipped: np.ndarray = given ^ np.iinfo(given.dtype).max
        return flipped

    fault = Fault("change", {1}, {2}, stage, 1, _arrays(name, lie))
    secure = trained(SECURE, fault)
    assert [record.replies for record in secure.strategy.records[1:]] == [5, replies, 5]
    if replies:
        assert same(secure, trained(SECURE))
    else:
        assert secure.strategy.version == 2
        assert "Nothing is learned of the scalars of round 2: " in secure.notes


@pytest.mark.parametrize(
    ("stage", "name", "says"),
    [
        ("secure_forward", "sent", "asked were"),
        ("secure_probe", "numbers", "numbers of shape"),
        ("unmask", "shares", "asked were others"),
    ],
)
def test_what_is_of_another_number_is_refused(stage: str, name: str, says: str) -> None:
    fault = Fault("change", {1}, {2}, stage, 1, _arrays(name, lambda given: given[:-1]))
    if stage == "secure_probe":
        fault = Fault("change", {1}, {2}, stage, 1, _arrays(name, lambda given: given[:, :-1]))
    secure = trained(SECURE, fault)
    assert says in secure.notes
    assert secure.total("rejected") == 1
    assert secure.strategy.version == 3


def test_samples_that_a_client_makes_up_do_not_count() -> None:
    more = Fault(
        "change", {1}, {2}, "secure_probe", 1, lambda c: changed(c, metrics={"num-examples": 400})
    )
    secure = trained({**SECURE, "mean": "samples"}, more)
    assert "it says 400 samples, it sent 4" in secure.notes
    assert [record.replies for record in secure.strategy.records[1:]] == [5, 4, 5]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("stage", STAGES)
def test_a_bad_reply_is_as_one_that_never_came(stage: str, bad: str) -> None:
    if bad == "not finite" and stage != "secure_forward":
        pytest.skip("it brings whole numbers alone")
    trial = trained({**SECURE, "rounds": 2}, Fault("change", {1}, {2}, stage, 1, BAD[bad]))
    lost = trained({**SECURE, "rounds": 2}, Fault("mute", {1}, {2}, stage, 1))
    assert trial.total("rejected") == 1, trial.notes
    assert same(trial, lost)


@pytest.mark.parametrize("name", ["by samples", "sampled"])
def test_order_and_repetition_change_nothing(name: str) -> None:
    way = {**SECURE, **WAYS[name]}
    once = trained(way)
    assert same(once, trained(way, Fault("twice")))
    trial = begin(tiny.task(shares()), "ho_sfl", **way)
    trial.grid._rng.seed(1)
    assert same(once, start(trial))


@pytest.mark.parametrize("name", ["as they are", "sampled"])
def test_a_stopped_run_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    way = {**SECURE, **WAYS[name]}
    whole, resumed = tiny.stopped(lambda: tiny.task(shares()), tmp_path, 2, **way)
    assert equal(whole.model, resumed.model)
    assert history(RunDirectory(tmp_path / "parts").history) == history(whole.history)
    one, two = ((tmp_path / n / "journal.bin").read_bytes() for n in ("whole", "parts"))
    assert one == two


def test_the_server_sees_no_single_clients_scalars_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What clients count is looked for in all that the server gets, books, notes and keeps."""
    told: list[np.ndarray] = []

    def spy(values: np.ndarray, bits: int, bound: float) -> np.ndarray:
        found = to_fixed(values, bits, bound)
        told.append(found)
        return found

    monkeypatch.setattr(node_secure, "to_fixed", spy)
    secure = trained(SECURE)
    assert len(told) == 15 and all(found.any() for found in told)
    tensors, plain = secure.strategy.checkpoint()
    seen = b"".join(
        bytes(array.data)
        for _, _, content in secure.grid.replies
        for array in content["arrays"].values()
    )
    seen += b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
    words = str(plain) + secure.notes + str(secure.strategy.records)
    for found in told:
        for number in found.reshape(-1):
            assert number.tobytes() not in seen
            assert str(number) not in words
    # Not even what is under a mask is told alike twice.
    masked = [numbers for round in (1, 2, 3) for numbers in sent(secure, round).values()]
    assert len({numbers.tobytes() for numbers in masked}) == 15
    for record in secure.strategy.records[1:]:
        assert set(record.extra) == {"client_lr", "server_steps"}
    # And the sum of a round is what the journal holds.
    entry = secure.strategy.journal.entries[0]
    bits = next(c["config"]["bits"] for k, _, c in secure.grid.asked if k == "secure_probe")
    mean = np.ldexp(np.sum(told[:5], axis=0).astype(np.float64), -bits) / (5 * 4)
    assert np.array_equal(entry.coefficients[0], mean.astype(np.float32))


def test_the_ledger_has_a_category_of_their_own() -> None:
    """By hand: k = 2 neighbours, 2 of 3 holders open, so the neighbours' shares are all sent."""
    secure = trained({**SECURE, "secure_neighbours": 2, "rounds": 2})
    ledger, clients, rounds = secure.strategy.ledger, 5, 2
    join, dealt, pairs = 32, 2 * 48, 2 * 16 + 16
    assert ledger.up["secure"] == clients * (join + rounds * (dealt + pairs + 8 + 3 * 16))
    assert ledger.down["secure"] == clients * rounds * ((8 + 2 * 32) + (dealt + 1) + 1)
    assert ledger.up["scalars"] == clients * rounds * 4 * 8
    down = sum(content_bytes(content) for _, _, content in secure.grid.requests)
    up = sum(content_bytes(content) for _, _, content in secure.grid.replies)
    assert (ledger.bytes_down, ledger.bytes_up) == (down, up)


def test_a_client_that_lost_its_key_gives_another_and_sits_out_a_round() -> None:
    secure = trained({**SECURE, "rounds": 4}, Fault("forget", {1}, {1}, "unmask", 1))
    assert "Client 1 has a new key" in secure.notes
    assert [record.replies for record in secure.strategy.records[1:]] == [5, 4, 5, 5]
    assert secure.total("rejected") == 0


def test_no_step_is_taken_twice() -> None:
    """A client that is asked again for masked scalars, or for shares, tells nothing."""
    trial = trained({**SECURE, "rounds": 1})
    for action in ("secure_probe", "unmask", "secure_forward"):
        count = len(trial.grid.replies)
        (content,) = (c for k, who, c in trial.grid.asked if (k, who) == (action, 1))
        with identity(1, SUPERLINK):
            message = Message(content, trial.grid.nodes[1], f"train.ho_sfl_{action}")
            reply = trial.grid.deliver(message)
        assert reply is not None and reply.has_error()
        assert len(trial.grid.replies) == count


def test_shares_of_a_round_are_dealt_once() -> None:
    """Dealt again to other neighbours, they would open what both deals have alike."""
    trial = trained({**SECURE, "rounds": 1}, Fault("drop", {1}, {1}, "secure_probe"))
    (content,) = (c for k, who, c in trial.grid.asked if (k, who) == ("secure_forward", 1))
    with identity(1, SUPERLINK):
        message = Message(content, trial.grid.nodes[1], "train.ho_sfl_secure_forward")
        reply = trial.grid.deliver(message)
    assert reply is not None and "dealt shares in round 1" in str(reply.error.reason)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dp_clip": 0.5, "dp_noise": 1.0}, "set dp_clip=0.0, or secure_sums=false"),
        ({"directions": "own"}, "set directions=shared, or secure_sums=false"),
        ({"aggregator": "median"}, "set aggregator=mean, or secure_sums=false"),
        ({"pipeline": True}, "set pipeline=false"),
        ({"guide": "noise"}, "set guide=none"),
        ({"scalars": "channel"}, "set scalars=batch"),
        ({"sampled": 2}, "let at least 3 take part"),
        ({"secure_neighbours": 3}, "it must be even"),
        ({"secure_threshold": 6}, "secure_threshold is 6, but a client's masks are held by 5"),
        ({"secure_threshold": 0.5}, "above 0.5"),
        ({"secure_threshold": 2}, "lets 2 of 5 holders open"),
        ({"clip_norm": 0, "scalar_limit": 1e15}, "lower scalar_limit, or set clip_norm"),
    ],
)
def test_what_secure_sums_do_not_go_with_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan("ho_sfl", **{**SECURE, **options})


def test_noise_behind_the_masks_is_refused() -> None:
    reply = SecureProbeReply(1, np.zeros((1, 4), np.uint64), 4)
    with pytest.raises(ConfigError, match="set secure_sums=false"):
        NoisyScalars(noise=1.0)(reply)
