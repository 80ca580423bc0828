"""Replay is bitwise, and an altered record is noticed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfl_flower.errors import ConfigError, JournalError, WireError
from sfl_flower.zo import (
    LAWS,
    OPTIMIZERS,
    Directions,
    Entry,
    Guide,
    Journal,
    JournalHeader,
    OptimizerSpec,
    Replica,
    Tail,
    params_digest,
    run_key,
)
from sfl_flower.zo import accumulate as accumulate_module

RUN = run_key("replica")
SIZE = 333


def theta() -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(4))


def header(optimizer: str = "sgd", law: str = "rademacher") -> JournalHeader:
    spec = OptimizerSpec(optimizer, weight_decay=0.01)
    return JournalHeader(RUN, bytes(32), params_digest(theta()), law, spec)


def entry(round_: int, streams: tuple[int, ...] = (0,), steps: int = 1, probes: int = 3) -> Entry:
    shape = (len(streams), steps, probes)
    values = np.random.default_rng(round_).standard_normal(shape).astype(np.float32)
    return Entry(round_, 0.05 * 0.97**round_, streams, steps, probes, values)


def guide(round_: int) -> Guide:
    target = np.random.default_rng(round_).standard_normal(SIZE).astype(np.float32)
    made = Guide.towards(target, ((SIZE,),))
    assert made is not None
    return made


def assert_equal(one: Replica, other: Replica) -> None:
    assert torch.equal(one.theta, other.theta)
    assert one.slots.keys() == other.slots.keys()
    assert all(torch.equal(one.slots[name], other.slots[name]) for name in one.slots)
    assert (one.powers, one.version, one.last_round) == (
        other.powers, other.version, other.last_round,
    )  # fmt: skip
    assert one.digest == other.digest
    assert one.params_digest() == other.params_digest()


def test_one_sgd_entry_by_hand() -> None:
    start = torch.tensor([1.0, 2.0, 3.0])
    head = JournalHeader(RUN, bytes(32), params_digest(start))
    replica = Replica.initial(start, head, [(3,)])
    one = Entry(0, 0.5, (0,), 1, 2, np.array([[[1.0, 0.25]]]))
    replica.apply(one)
    u, w = (Directions(RUN, "rademacher", [(3,)]).of(key).values() for key in one.keys())
    assert torch.equal(replica.theta, start - (0.5 * u + 0.125 * w))
    assert replica.version == 1


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_a_guide_is_the_last_term(law: str) -> None:
    """By hand: rows of -2 and 4, columns of 1, 1 and 0.5, and the rate on the rows."""
    start = torch.tensor([1.0, 2.0, 3.0])
    head = JournalHeader(RUN, bytes(32), params_digest(start), law)
    replica = Replica.initial(start, head, [(1,), (2,)])
    own = Guide(3, b"\x04", np.array([-2.0, 1.0, 4.0, 1.0, 0.5], np.float32))
    one = Entry(0, 0.5, (0,), 1, 2, np.array([[[1.0, 0.25]]]), guide=own)
    replica.apply(one)
    u, w = (Directions(RUN, law, [(3,)]).of(key).values() for key in one.keys())
    last = torch.tensor([-1.0, 2.0, -1.0])
    assert torch.equal(replica.theta, start - ((0.5 * u + 0.125 * w) + last))


def test_a_guide_over_other_tensors_changes_nothing() -> None:
    replica = Replica.initial(theta(), header("adam"), [(SIZE,)])
    before = replica.clone()
    for bad in (
        Guide(3, b"\0", np.ones(1, np.float32)),
        dataclasses.replace(guide(0), factors=np.ones(2, np.float32)),
    ):
        with pytest.raises(JournalError, match="other tensors"):
            replica.apply(dataclasses.replace(entry(0), guide=bad))
        assert_equal(replica, before)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("law", LAWS)
def test_the_sum_has_one_order(law: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs, pairs of pairs, then group after group, whatever the block."""
    one = entry(3, probes=count)
    terms = [
        Directions(RUN, law, [(SIZE,)]).of(key).values().numpy() * np.float32(c)
        for key, c in zip(one.keys(), one.coefficients.reshape(-1), strict=True)
    ]
    groups = []
    for first in range(0, count, 4):
        group = terms[first : first + 4]
        pairs = [sum(group[i + 1 : i + 2], start=group[i]) for i in range(0, len(group), 2)]
        groups.append(sum(pairs[1:], start=pairs[0]))
    g = sum(groups[1:], start=groups[0])
    spec = OptimizerSpec("momentum")
    head = JournalHeader(RUN, bytes(32), params_digest(theta()), law, spec)
    for block in (64, 131072):
        monkeypatch.setattr(accumulate_module, "SUM_BLOCK", block)
        replica = Replica.initial(theta(), head, [(SIZE,)])
        replica.apply(one)
        assert np.array_equal(replica.slots["momentum"].numpy(), g)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("missed", [1, 7, 100])
def test_a_client_that_missed_rounds_equals_the_live_one(optimizer: str, missed: int) -> None:
    head = header(optimizer)
    journal = Journal(head)
    live, late = (Replica.initial(theta(), head, [(SIZE,)]) for _ in range(2))
    for round_ in range(3 + missed):
        one = entry(round_)
        journal.append(one)
        live.apply(one)
        if round_ < 3:
            late.apply(one)
    data = journal.tail(3)
    assert data is not None
    late.replay_tail(Tail.decode(data))
    assert_equal(late, live)
    assert live.digest == journal.digest


@settings(max_examples=25, deadline=None)
@given(
    optimizer=st.sampled_from(OPTIMIZERS),
    law=st.sampled_from(list(LAWS)),
    own=st.booleans(),
    guides=st.booleans(),
    steps=st.integers(1, 2),
    schedule=st.lists(st.booleans(), min_size=1, max_size=12),
)
def test_any_participation_gives_the_same_bits(
    optimizer: str, law: str, own: bool, guides: bool, steps: int, schedule: list[bool]
) -> None:
    head = header(optimizer, law)
    journal = Journal(head)
    live, client = (Replica.initial(theta(), head, [(SIZE,)]) for _ in range(2))
    for round_, takes_part in enumerate(schedule):
        one = entry(2 * round_, (1, 5, 6) if own else (0,), steps)
        if guides:
            one = dataclasses.replace(one, guide=guide(round_))
        live.apply(one)
        journal.append(dataclasses.replace(one))
        if takes_part:
            data = journal.tail(client.version)
            assert data is not None
            client.replay_tail(Tail.decode(data))
            assert_equal(client, live)
    client.replay(journal.entries[client.version :])
    assert_equal(client, live)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_altered_or_cut_tail_is_never_applied(data: st.DataObject) -> None:
    head = header("momentum")
    journal = Journal(head)
    for round_ in range(3):
        journal.append(dataclasses.replace(entry(round_), guide=guide(round_)))
    raw = bytearray(journal.tail(1) or b"")
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, 8 * len(raw) - 1))
        raw[bit // 8] ^= 1 << bit % 8
    else:
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    replica = Replica.initial(theta(), head, [(SIZE,)])
    replica.apply(journal.entries[0])
    expected = Replica.initial(theta(), head, [(SIZE,)])
    expected.replay(journal.entries)
    before = replica.clone()
    try:
        replica.replay_tail(Tail.decode(bytes(raw)))
    except (WireError, JournalError):
        assert_equal(replica, before)
    else:
        assert_equal(replica, expected)  # only the round before the tail is outside the chain


def test_a_tail_cut_between_entries_leads_to_another_digest() -> None:
    head = header()
    journal = Journal(head)
    for round_ in range(3):
        journal.append(entry(round_))
    shorter = Journal(head)
    for round_ in range(2):
        shorter.append(entry(round_))
    replica = Replica.initial(theta(), head, [(SIZE,)])
    replica.replay_tail(Tail.decode(shorter.tail(0) or b""))
    assert replica.digest == journal.digest_at(2) != journal.digest
    with pytest.raises(JournalError, match="does not continue"):
        replica.replay_tail(Tail.decode(journal.tail(1) or b""))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_failing_entry_leaves_nothing_half_applied(optimizer: str) -> None:
    replica = Replica.initial(theta(), header(optimizer), [(SIZE,)])
    replica.replay([entry(0), entry(1)])
    before = replica.clone()
    for bad in (entry(1), entry(0), dataclasses.replace(entry(2), checkpoint=b"x" * 32)):
        with pytest.raises(JournalError):
            replica.apply(bad)
        assert_equal(replica, before)
    replica.apply(entry(2))
    before.apply(dataclasses.replace(entry(2), checkpoint=replica.params_digest()))
    assert torch.equal(before.theta, replica.theta)


def test_an_interrupted_replica_refuses_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Replica.initial(theta(), header(), [(SIZE,)])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sfl_flower.zo.accumulate.Gradient.write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            replica.apply(entry(0))
    assert replica.digest == b""
    with pytest.raises(JournalError, match="interrupted"):
        replica.apply(entry(0))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_arrays_carry_a_replica(optimizer: str) -> None:
    head = header(optimizer)
    replica = Replica.initial(theta(), head, [(SIZE,)])
    replica.replay([entry(0), entry(4)])
    arrays = replica.to_arrays()
    copy = Replica.from_arrays(arrays, head, [(SIZE,)])
    assert_equal(copy, replica)
    copy.apply(entry(5))
    replica.apply(entry(5))
    assert_equal(copy, replica)
    assert not np.array_equal(arrays["theta"], replica.theta.numpy())
    assert replica.nbytes == 4 * SIZE * (1 + len(replica.slots))


@pytest.mark.parametrize(
    "change",
    [
        {"theta": np.zeros(SIZE - 1, np.float32)},
        {"theta": np.zeros(SIZE, np.float64)},
        {"theta": np.full(SIZE, np.nan, np.float32)},
        {"slot.momentum": np.full(SIZE, np.inf, np.float32)},
        {"powers": np.array([1.0, 2.0])},
        {"position": np.array([-1, 0])},
        {"position": np.array([1, -1])},
        {"digest": np.zeros(31, np.uint8)},
        {"surplus": np.zeros(1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_bad_arrays_are_refused(change: dict[str, np.ndarray]) -> None:
    head = header("momentum")
    arrays = Replica.initial(theta(), head, [(SIZE,)]).to_arrays()
    with pytest.raises(JournalError):
        Replica.from_arrays(arrays | change, head, [(SIZE,)])


def test_initial_parameters_must_be_the_journals() -> None:
    with pytest.raises(JournalError, match="initial parameters"):
        Replica.initial(theta() + 1, header(), [(SIZE,)])
    with pytest.raises(ConfigError, match="flat float32"):
        Replica.initial(theta().double(), header(), [(SIZE,)])
    start = theta()
    replica = Replica.initial(start, header(), [(SIZE,)])
    replica.apply(entry(0))
    assert torch.equal(start, theta())
