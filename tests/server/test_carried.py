"""The directions of subspaces go to each client once, whatever the method, and never back."""

from __future__ import annotations

import json
import struct
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sfl_flower.data import memory
from sfl_flower.errors import TrainingError, WireError
from sfl_flower.methods import METHODS
from sfl_flower.node.store import CarriedLostError, NodeStore, keep_carried, load_kept
from sfl_flower.split import carried_state, load_carried, travelling_state
from sfl_flower.wire import JoinRequest
from sfl_flower.wire.weights import Carried
from sfl_flower.zo import manifest_digest
from tests import tiny
from tests.local_grid import Fault, changed
from tests.test_contract import OPTIONS
from tests.tiny import Trial, begin, start, train
from tests.wire.contents import SETUP

A = 4 * 2 * tiny.FEATURES
"""Bytes of two directions of the tiny client half's one layer."""
R = 4 * (2 * tiny.CUT + tiny.CUT)
"""Bytes of what it then trains: R and the bias."""
REST = 4 * (4 * tiny.CUT + 4 + 3 * 4 + 3)
"""Bytes of the server half."""


def problem(**options: Any) -> Any:
    given = {"trained": "subspace:2", "public": lambda: tiny.samples(20, 7)}
    return tiny.task(**{**given, **options})


def bringing(trial: Trial) -> list[int]:
    """Return the client of each request that brings directions."""
    return [
        client
        for _, client, content in trial.grid.requests
        if any(name.startswith("carried.") for name in content["arrays"])
    ]


@pytest.mark.flower
@pytest.mark.parametrize(
    ("method", "options", "up", "down"),
    [
        ("heron", {"uplink": "scalars"}, 0, 3 * R),
        ("heron", {"uplink": "weights"}, 3 * R, 3 * R),
        ("splitfed_v1", {}, 3 * R, 3 * R),
        ("splitfed_v2", {}, 3 * R, 3 * R),
        ("cse_fsl", {}, 3 * R, 3 * R),
        ("fedavg", {}, 3 * (R + REST), 3 * (R + REST)),
        ("ho_sfl", {"sync": "replay"}, 0, R),
        ("ho_sfl", {"sync": "download"}, 0, 3 * R),
        ("frozen", {}, 0, R),
    ],
)
def test_b1_directions_count_once_a_client(
    method: str, options: dict[str, Any], up: int, down: int
) -> None:
    trial = train(problem(), method, rounds=3, **options)
    assert trial.total("replies") == 12
    ledger = trial.strategy.ledger
    assert (ledger.up["weights"], ledger.down["weights"]) == (4 * up, 4 * (down + A))
    assert sorted(bringing(trial)) == [0, 1, 2, 3]


@pytest.mark.flower
@pytest.mark.parametrize("method", METHODS)
def test_b1_a_run_has_the_bits_of_one_whose_directions_travel_with_the_weights(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS[method], "rounds": 3, "sampled": 3}
    once = train(problem(), method, **options)
    with monkeypatch.context() as patch:
        patch.setattr("sfl_flower.split.parameters.travelling._directions", lambda module: set())
        always = train(problem(), method, **options)
    assert bringing(once) and not bringing(always)
    assert tiny.equal(once.model, always.model)
    assert once.strategy.ledger.up["weights"] <= always.strategy.ledger.up["weights"]


@pytest.mark.flower
@pytest.mark.parametrize("method", ["heron", "splitfed_v2", "ho_sfl"])
def test_b1_who_comes_late_or_lost_its_state_is_sent_them_and_the_others_are_not(
    method: str,
) -> None:
    late = train(problem(), method, [Fault("unavailable", {2}, {1})], rounds=3)
    # Asked in vain in round 1, where they were sent and counted too.
    assert sorted(bringing(late)) == [0, 1, 2, 2, 3]
    assert late.total("replies") == 11
    # A client that takes part in a later round gets them then.
    drawn = train(problem(), method, rounds=4, sampled=1)
    asked = {at for kind, at, _ in drawn.grid.requests if kind != "join"}
    assert sorted(bringing(drawn)) == sorted(asked) and len(asked) > 1


@pytest.mark.flower
@pytest.mark.parametrize("method", METHODS)
def test_b1_a_client_that_lost_them_says_so_and_gets_them_again(method: str) -> None:
    shared = {**OPTIONS[method], "rounds": 3}
    task = problem()
    trial = begin(task, method, **shared)
    deliver, lost = trial.grid.deliver, [3]

    def forgetful(message: Any) -> Any:
        node = message.metadata.dst_node_id
        round = message.content.config_records["config"].get("round")
        if node == trial.grid.nodes[1] and round in lost:
            lost.remove(round)
            del trial.grid.contexts[node].state["carried"]
            _forget_modules(task)
        return deliver(message)

    trial.grid.deliver = forgetful  # type: ignore[method-assign]
    start(trial)
    assert (trial.total("replies"), trial.notes, lost) == (12, "", [])
    assert sorted(bringing(trial)) == [0, 1, 1, 2, 3]
    assert tiny.equal(trial.model, train(problem(), method, **shared).model)


def _forget_modules(task: Any) -> None:
    """Drop what the process built for clients, as a new process has it; it keeps the data."""
    kept: dict[Any, Any] = memory._MEMORY[task.key]
    digest = task_digest(kept)
    for key in [key for key in kept if isinstance(key, tuple) and key[-1] == digest]:
        del kept[key]


def task_digest(kept: dict[Any, Any]) -> str:
    """Return the name of the directions under which modules are kept."""
    (digest,) = {key[-1] for key in kept if isinstance(key, tuple) and len(str(key[-1])) == 32}
    return str(digest)


@pytest.mark.flower
@pytest.mark.parametrize("method", ["heron", "splitfed_v1"])
def test_b1_a_resume_keeps_the_directions_and_sends_them_to_its_new_clients(
    method: str, tmp_path: Any
) -> None:
    shared: dict[str, Any] = {"checkpoint_every": 1, **tiny.STEADY.get(method, {})}
    whole = tiny.run(problem(), method, out=tmp_path / "whole", rounds=4, **shared)
    tiny.run(problem(), method, out=tmp_path / "run", rounds=2, **shared)
    other = problem(public=lambda: tiny.samples(20, 9))  # where they come out otherwise
    again = tiny.run(other, method, out=tmp_path / "run", resume=True, rounds=4, **shared)
    assert tiny.equal(whole.model, again.model)
    down = [
        json.loads((tmp_path / name / "ledger.json").read_text())["bytes"]["weights"]["down"]
        for name in ("whole", "run")
    ]
    assert down[1] == down[0] + 4 * A


# The journal


@pytest.mark.flower
@pytest.mark.parametrize("method", ["ho_sfl", "decomfl", "frozen"])
def test_b2_runs_that_differ_in_their_directions_differ_in_every_digest(method: str) -> None:
    def digest(**options: Any) -> str:
        found: str = begin(problem(), method, **options).strategy.digest
        return found

    public = digest(subspace_from="public")
    assert public == digest() == digest(subspace_from="auto")
    assert len({public, digest(subspace_from="noise"), digest(subspace_from="gradients")}) == 3


@pytest.mark.flower
@pytest.mark.parametrize("source", ["public", "clients"])
@pytest.mark.parametrize("method", ["ho_sfl", "decomfl", "frozen"])
def test_b2_the_header_names_the_directions_that_clients_have(method: str, source: str) -> None:
    trial = train(problem(), method, rounds=2, subspace_from=source)
    assert trial.total("replies") == 8
    mirror = trial.strategy.mirror
    basis = carried_state(mirror.half)
    assert len(basis) == 1 and bool(next(iter(basis.values())).any())
    found = mirror.journal.header.manifest_digest
    assert found == manifest_digest(mirror.vector.manifest(), basis)
    assert found != manifest_digest(mirror.vector.manifest())
    version, digest = trial.position(1)
    assert mirror.journal.digest_at(version).hex() == digest


@pytest.mark.flower
def test_b2_a_client_along_other_directions_refuses_the_journal() -> None:
    trial = begin(problem(), rounds=1)
    trial.strategy.client_half.get_buffer("first.subspace_basis").add_(1.0)  # after the header
    said = "parameters than this client's model has, or moves them along other directions of a sub"
    with pytest.raises(TrainingError, match=said):
        start(trial)


def test_b2_the_manifest_digest_by_hand() -> None:
    basis = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.zeros(1)}
    spelled = b"m" + struct.pack("<I1sIQf", 1, b"a", 1, 1, 0.0)
    spelled += struct.pack("<I1sIQQff", 1, b"b", 2, 1, 2, 1.0, 2.0)
    wanted = blake2b(spelled, digest_size=32, person=b"sfl.manifest.1").digest()
    assert manifest_digest(b"m", basis) == wanted
    plain = blake2b(b"m", digest_size=32, person=b"sfl.manifest.1").digest()
    assert manifest_digest(b"m") == manifest_digest(b"m", {}) == plain


# The parts


def half(trained: str = "core:2") -> nn.Module:
    task = problem(trained=trained)
    found: nn.Module = task.build(0).client
    for value in carried_state(found).values():
        value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    return found


def test_directions_are_carried_and_nothing_else_is() -> None:
    assert set(carried_state(half())) == {"first.subspace_basis", "first.subspace_outputs"}
    assert set(travelling_state(half())) == {"first.bias", "first.subspace"}
    assert carried_state(tiny.model()) == {}
    assert Carried.of({}) is None
    named = nn.Linear(2, 2)  # a buffer of the model's own that has the name
    named.register_buffer("subspace_basis", torch.zeros(2))
    assert carried_state(named) == {} and "subspace_basis" in travelling_state(named)
    with pytest.raises(TrainingError, match=r"'first\.subspace_basis' is missing"):
        load_carried(half(), {})


def test_a_request_names_them_and_brings_them_to_who_does_not_hold_them() -> None:
    carried = Carried.of(carried_state(half()))
    assert carried is not None
    request = JoinRequest(SETUP.__class__(**{**vars(SETUP), "carried": carried}))
    name = bytes.fromhex(carried.digest)
    whole, brief = request.draft(), request.draft(held={name})
    assert whole.once == brief.once == {name}
    assert whole.booked == {"weights": 4 * (2 * tiny.FEATURES + 2 * tiny.CUT)}
    assert brief.booked == {}
    back = JoinRequest.from_content(whole.content())
    assert back.setup.carried == carried
    assert np.array_equal(back.setup.carried.arrays["float32"], carried.arrays["float32"])
    named = JoinRequest.from_content(brief.content()).setup.carried
    assert named == carried and not named.arrays
    wrong = changed(whole.content(), {"carried.float32": carried.arrays["float32"] + 1})
    with pytest.raises(WireError, match=r"arrays 'carried\.' that do not match"):
        JoinRequest.from_content(wrong)


@pytest.mark.parametrize("limit", [1 << 20, 0])
def test_a_node_loads_what_it_kept_and_notices_what_it_lost(
    limit: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFL_STATE_DIR", str(tmp_path))
    grid = begin(problem()).grid
    store = NodeStore(grid.contexts[grid.nodes[0]], limit)
    source, carried = half(), Carried.of(carried_state(half()))
    assert carried is not None
    with pytest.raises(CarriedLostError, match="must be sent again"):
        load_kept(store, carried.digest, source)
    assert keep_carried(store, None) == ""
    assert keep_carried(store, carried) == carried.digest
    assert keep_carried(store, Carried(carried.digest)) == carried.digest  # kept from before
    found = problem(trained="core:2").build(0).client
    load_kept(store, carried.digest, found)
    assert tiny.equal(carried_state(found), carried_state(source))
    with pytest.raises(CarriedLostError):
        load_kept(store, "0" * 32, found)
    with pytest.raises(WireError, match="run different models"):
        load_kept(store, carried.digest, half("subspace:3"))
