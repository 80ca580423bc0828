"""Directions in a cone around the momentum: closed forms, replay, and what probes see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfl_flower.errors import ConfigError, WireError
from sfl_flower.zo import (
    LAWS,
    OPTIMIZERS,
    Directions,
    Entry,
    Journal,
    JournalHeader,
    Key,
    OptimizerSpec,
    ParameterVector,
    Probing,
    Replica,
    Tail,
    Walk,
    loss_scalars,
    params_digest,
    run_key,
)
from sfl_flower.zo import accumulate as accumulate_module
from sfl_flower.zo.cone import PLAIN, cone_of
from sfl_flower.zo.header import header_bytes

RUN, SIZE, COSINE = run_key("cone"), 333, 0.6


def theta(size: int = SIZE) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(4))


def spec(name: str, cone: float = COSINE) -> OptimizerSpec:
    return OptimizerSpec(name, momentum=0.5, weight_decay=0.01, cone=cone)


def header(name: str, law: str = "rademacher", size: int = SIZE) -> JournalHeader:
    return JournalHeader(RUN, bytes(32), params_digest(theta(size)), law, spec(name))


def entry(round_: int, streams: tuple[int, ...] = (0,), probes: int = 3) -> Entry:
    values = np.random.default_rng(round_).standard_normal((len(streams), 1, probes))
    return Entry(round_, 0.05 * 0.9**round_, streams, 1, probes, values.astype(np.float32))


def test_a_cone_by_hand() -> None:
    slots = {"momentum": np.array([3.0, 0.0, -4.0, 0.0], np.float32)}  # norm 5, √d = 2
    cone = cone_of(spec("sgd"), slots)
    assert cone.fresh == 0.8
    assert cone.along == pytest.approx(0.6 * 2 / 5, rel=1e-15)
    assert cone_of(spec("sgd", 0.0), {}) == PLAIN
    assert cone_of(spec("sgd"), {"momentum": np.zeros(4, np.float32)}) == PLAIN


@pytest.mark.parametrize(
    ("name", "slots", "axis"),
    [
        ("sgd", ("momentum",), "momentum"),
        ("momentum", ("momentum",), "momentum"),
        ("adamw", ("m", "v"), "m"),
        ("radazo", ("m", "v"), "m"),
        ("hiso", ("h", "momentum"), "momentum"),
    ],
)
def test_an_optimiser_without_a_momentum_keeps_one(
    name: str, slots: tuple[str, ...], axis: str
) -> None:
    assert (spec(name).slots, spec(name).axis) == (slots, axis)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_steps_have_the_closed_form(name: str, law: str) -> None:
    flat, directions = theta(), Directions(RUN, law, [(SIZE,)])
    walk = Walk(flat, spec(name), directions)
    x, m = theta().double().numpy(), np.zeros(SIZE)
    for step in range(5):
        one = entry(step)
        us = [directions.of(key) for key in one.keys()]
        zs = np.stack([u.values().numpy() for u in us]).astype(np.float64)
        if step:
            zs = math.sqrt(1 - COSINE**2) * zs + COSINE * math.sqrt(SIZE) * m / np.linalg.norm(m)
        found = np.stack([z.values().numpy() for z in walk.in_cone(us)])
        np.testing.assert_allclose(found, zs, rtol=1e-3, atol=1e-4)
        g = one.coefficients.reshape(-1).astype(np.float64) @ zs
        if name == "momentum":
            m = 0.5 * m + g + 0.01 * x
            x = x - one.lr * m
        else:  # the cone's own momentum is of the steps taken
            m = 0.5 * m + one.lr * g
            x = x - one.lr * (g + 0.01 * x)
        walk.step(list(one.keys()), one.coefficients, one.lr)
        np.testing.assert_allclose(flat.numpy(), x, rtol=1e-3, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(OPTIMIZERS),
    law=st.sampled_from(list(LAWS)),
    streams=st.sampled_from([(0,), (1, 5, 6)]),
    schedule=st.lists(st.booleans(), min_size=1, max_size=10),
)
def test_any_participation_gives_the_same_bits(
    name: str, law: str, streams: tuple[int, ...], schedule: list[bool]
) -> None:
    head = header(name, law)
    journal = Journal(head)
    live, client = (Replica.initial(theta(), head, [(SIZE,)]) for _ in range(2))
    for round_, takes_part in enumerate(schedule):
        one = entry(2 * round_, streams)
        live.apply(one)
        journal.append(one)
        if takes_part:
            client.replay_tail(Tail.decode(journal.tail(client.version) or b""))
            assert torch.equal(client.theta, live.theta)
    arrays = live.to_arrays()
    copy = Replica.from_arrays(arrays, head, [(SIZE,)])
    for replica in (live, copy):
        replica.apply(entry(1000))
    assert torch.equal(copy.theta, live.theta)
    assert copy.slots.keys() == live.slots.keys()
    assert all(torch.equal(copy.slots[key], live.slots[key]) for key in live.slots)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bits_do_not_depend_on_the_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for block in (64, 100_000):
        monkeypatch.setattr(accumulate_module, "SUM_BLOCK", block)
        replica = Replica.initial(theta(70_001), header(name, size=70_001), [(70_001,)])
        replica.replay([entry(0), entry(1), entry(2)])
        found.append(replica.params_digest())
    assert found[0] == found[1]


def test_probes_lean_and_leave_nothing_behind() -> None:
    layer = nn.Linear(4, 3)
    vector = ParameterVector(layer)
    start = vector.anchor.clone()
    walk = Walk(vector.anchor.clone(), spec("momentum"), vector.directions(RUN, "rademacher"))
    keys = [Key(1, probe=probe) for probe in range(2)]
    walk.step(keys, np.array([0.5, 2.0], np.float32), 0.1)
    us = walk.in_cone(vector.directions(RUN, "rademacher").of_step(2, 0, 0, 3))
    weight = torch.randn(vector.size, generator=torch.Generator().manual_seed(1))

    def loss() -> Tensor:
        # Linear in the parameters, which lie in the order of their names.
        return (torch.cat([layer.bias, layer.weight.reshape(-1)]) * weight).sum()

    for estimator in ("forward", "central", "jvp"):
        probing = Probing(3, mu=0.5, estimator=estimator)
        found = loss_scalars(loss, vector, us, probing) / probing.unit
        expected = torch.stack([torch.dot(u.values(), weight) for u in us])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(vector.anchor, start)
    assert torch.equal(torch.cat([layer.bias, layer.weight.reshape(-1)]), start)


def test_a_header_holds_the_cone_behind_the_rest() -> None:
    plain = JournalHeader(RUN, bytes(32), bytes(32), "sphere", spec("sgd", 0.0)).encode()
    leaning = JournalHeader(RUN, bytes(32), bytes(32), "sphere", spec("sgd", 0.25))
    data = leaning.encode()
    assert data == plain[:4] + b"\x02" + plain[5:] + np.array([0.25], "<f8").tobytes()
    assert (len(plain), len(data), header_bytes(data)) == (129, 137, 137)
    assert JournalHeader.decode(data) == leaning
    cut, zero, out = data[:-1], data[:-8] + bytes(8), data[:-8] + np.array([1.0], "<f8").tobytes()
    for bad in (cut, zero, out, data + b"\0", data[:129], plain + bytes(8)):
        with pytest.raises(WireError):
            JournalHeader.decode(bad)
    journal = Journal(leaning)
    journal.append(entry(0))
    again = Journal.decode(journal.encode())
    assert (again.header, again.digest) == (leaning, journal.digest)


@pytest.mark.parametrize("cone", [-0.1, 1.0, float("nan")])
def test_a_cosine_out_of_range_is_named_with_its_range(cone: float) -> None:
    with pytest.raises(ConfigError, match=r"cone is .*; legal: 0 <= value <= 0\.999"):
        spec("sgd", cone)
