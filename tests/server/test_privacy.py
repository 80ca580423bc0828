"""What docs/privacy.md says each side can learn, done to messages as they cross."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from sfl_flower.config import RunConfig
from sfl_flower.data import client_key
from sfl_flower.errors import TrainingError
from sfl_flower.methods import METHODS
from sfl_flower.server.roster import draw_cohort
from sfl_flower.wire.ho_sfl import ForwardRequest
from sfl_flower.zo import Directions, Entry, Journal, Key
from sfl_flower.zo.journal import Tail
from tests import tiny
from tests.local_grid import values
from tests.tiny import Trial, begin, start, train

MINE, PROBES = 0, 2
OPTIONS: dict[str, Any] = {"rounds": 2, "probes": PROBES, "client_optimizer": "sgd"}


def received(trial: Trial) -> list[ForwardRequest]:
    """Return what client 0 was sent at the start of each round."""
    found = trial.grid.asked
    contents = [c for kind, who, c in found if (kind, who) == ("forward", MINE)]
    return [ForwardRequest.from_content(content) for content in contents]


def sent(trial: Trial, round: int) -> np.ndarray:
    """Return every client's scalars of a round, [clients, probes]."""
    rows: dict[int, np.ndarray] = {}
    for kind, client, content in trial.grid.replies:
        if kind == "probe" and content["config"]["round"] == round:
            rows[client] = values(content["arrays"]["scalars"])[0]
    return np.stack([rows[client] for client in sorted(rows)])


def replayed(trial: Trial) -> Entry:
    """Return the entry of round 1 that client 0 was sent to replay in round 2."""
    (entry,) = Tail.decode(received(trial)[1].sync.tail).entries
    return entry


def test_c10_with_own_directions_replay_shows_every_clients_scalars_to_every_client() -> None:
    trial = train(tiny.task(), "ho_sfl", directions="own", sync="replay", **OPTIONS)
    entry = replayed(trial)
    assert entry.streams == (1, 2, 3, 4)
    ratios = entry.coefficients[:, 0] / sent(trial, 1)
    assert np.allclose(ratios, ratios[MINE, 0], rtol=1e-5)  # its own scalars give the factor


def test_c10_with_shared_directions_replay_shows_the_mean_alone() -> None:
    trial = train(tiny.task(), "ho_sfl", directions="shared", sync="replay", **OPTIONS)
    entry = replayed(trial)
    assert (entry.streams, entry.coefficients.shape) == ((0,), (1, 1, PROBES))
    ratios = entry.coefficients[0, 0] / sent(trial, 1).mean(axis=0)
    assert np.allclose(ratios, ratios[0], rtol=1e-4)


def test_c10_with_own_directions_a_download_can_be_solved_for_the_scalars() -> None:
    """The key of the run names everybody's directions; the step is their weighted sum."""
    trial = train(tiny.task(), "ho_sfl", directions="own", sync="download", **OPTIONS)
    first, second = (request.sync.state for request in received(trial))
    before, after = (state["weights.float32"] for state in (first, second))
    header = Journal.decode(trial.strategy.mirror.journal.encode(), "the journal").header
    assert first["header"].tobytes() == header.encode()
    keys = [Key(1, 0, client + 1, probe) for client in range(4) for probe in range(PROBES)]
    drawn = Directions(header.run_key, header.law, [(tiny.CLIENT_SIZE,)])
    directions = np.stack([drawn.of(key).values().numpy() for key in keys])
    step = (after - before).astype(np.float64)
    weights = np.linalg.lstsq(directions.T.astype(np.float64), step, rcond=None)[0]
    ratios = weights.reshape(4, PROBES) / sent(trial, 1)
    assert np.allclose(ratios, ratios[MINE, 0], rtol=1e-3)


SEED = 7_391_846_205_118_273


def told(content: RecordDict) -> bytes:
    """Return everything that a message says as one text: names, numbers, and arrays as bytes."""
    words = [repr(item) for kind in ("config", "metrics") for item in content[kind].items()]
    arrays = [name.encode() + b"=" + a.data for name, a in content.array_records["arrays"].items()]
    return b"\n".join([*(word.encode() for word in words), *arrays])


def forms(secret: int | str) -> list[bytes]:
    """Return how a message could say a seed or a key: as digits, hexadecimal or not, or bytes."""
    number = int(secret, 16) if isinstance(secret, str) else secret
    size = 16 if isinstance(secret, str) else 8
    raw = [number.to_bytes(size, order) for order in ("little", "big")]
    return [str(number).encode(), f"{number:x}".encode(), *raw, *(repr(r).encode() for r in raw)]


@pytest.mark.parametrize("method", METHODS)
def test_c10_no_message_to_a_client_holds_the_seed_or_a_colleagues_key(method: str) -> None:
    trial = train(tiny.task(), method, rounds=3, seed=SEED)
    assert trial.total("replies") == 12
    keys = [client_key(SEED, client) for client in range(4)]
    joins = 0
    # As they crossed, and with the terms that they name.
    for kind, client, content in [*trial.grid.requests, *trial.grid.asked]:
        joins += kind == "join"
        known = [] if kind == "join" else [keys[client]]
        said = told(content)
        hidden = [form for key in keys if key not in known for form in forms(key)]
        assert not [form for form in [*forms(SEED), *hidden] if form in said], (kind, client)
    assert joins >= 4
    asked = [(client, c["config"]["key"]) for kind, client, c in trial.grid.asked if kind != "join"]
    assert set(asked) == set(enumerate(keys))


def other_keys(patch: pytest.MonkeyPatch) -> None:
    """Give every client but one another key than the seed does."""
    own = RunConfig.client_key

    def key(config: RunConfig, partition: int) -> str:
        return own(config, partition if partition == MINE else 1000 + partition)

    patch.setattr(RunConfig, "client_key", key)


def first(trial: Trial, of: str) -> dict[int, bytes]:
    """Return what each client was first asked for in training, or what it first answered."""
    messages = trial.grid.requests if of == "requests" else trial.grid.replies
    found: dict[int, bytes] = {}
    for kind, client, content in messages:
        if kind != "join":
            found.setdefault(client, told(content))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_c10_what_a_client_is_told_does_not_give_its_colleagues_batches(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs tell it the same to the bit, and its colleagues take other batches."""
    one = train(tiny.task(), method, rounds=1)
    other_keys(monkeypatch)
    other = train(tiny.task(), method, rounds=1)
    assert first(one, "requests")[MINE] == first(other, "requests")[MINE]
    same = {c: first(one, "replies")[c] == first(other, "replies")[c] for c in range(4)}
    assert same == {MINE: True, 1: False, 2: False, 3: False}


def test_c10_what_a_client_is_told_does_not_give_its_colleagues_directions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As above, where every batch is all that a client has: the directions differ too."""
    options: dict[str, Any] = {"rounds": 1, "batch_size": 12, "local_steps": 1, "probes": PROBES}

    def scalars() -> np.ndarray:
        trial = train(tiny.task(), "heron", uplink="scalars", **options)
        content = {c: reply for kind, c, reply in trial.grid.replies if kind == "local"}
        return np.stack([values(content[c]["arrays"]["scalars"])[0] for c in range(4)])

    one = scalars()
    other_keys(monkeypatch)
    other = scalars()
    assert np.array_equal(one[MINE], other[MINE])
    assert all(not np.allclose(one[c], other[c], rtol=0.01) for c in (1, 2, 3))


def test_c10_a_seed_that_can_be_guessed_can_be_tried_and_a_secret_stops_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def guess(key: str) -> list[int]:
        return [seed for seed in range(100) if client_key(seed, MINE) == key]

    def run() -> tuple[str, list[set[int]], dict[str, Any]]:
        trial = train(tiny.task(), "frozen", seed=42, clients=4, sampled=2, rounds=6)
        told = [(c["config"], who) for kind, who, c in trial.grid.asked if kind != "join"]
        cohorts = [{who for config, who in told if config["round"] == r} for r in range(1, 7)]
        (key,) = {config["key"] for config, who in told if who == MINE}
        return key, cohorts, told[0][0]

    key, cohorts, setup = run()
    assert guess(key) == [42]
    assert cohorts == [set(draw_cohort(42, round, 4, 2)) for round in range(1, 7)]
    with monkeypatch.context() as patch:
        patch.setenv("SFL_SECRET", "correct horse battery staple")
        hidden, others, same = run()
    assert guess(hidden) == []
    assert others != cohorts
    assert [same[name] == setup[name] for name in ("model-seed", "partition")] == [True, True]


def test_c10_a_request_without_its_clients_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunConfig, "client_key", lambda config, partition: "")
    with pytest.raises(TrainingError, match="'forward' request message lacks the key of its c"):
        train(tiny.task(), "frozen", rounds=1)


def test_c10_whoever_builds_the_model_knows_the_server_halfs_first_weights() -> None:
    trial = begin(tiny.task(), "frozen", rounds=2, partition="iid")
    theirs = {k: v.clone() for k, v in trial.strategy.server.module.state_dict().items()}
    start(trial)
    (seed,) = {c["config"]["model-seed"] for _, _, c in trial.grid.asked}
    mine = tiny.task().build(seed).server.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_c10_with_data_of_their_own_clients_are_told_no_rows() -> None:
    trial = train(tiny.task(own=True), "frozen", partition="local", rounds=1)
    setups = [c["config"] for kind, _, c in trial.grid.asked if kind != "join"]
    assert {setup["partition"] for setup in setups} == {"local"}
