"""What docs/privacy.md says each side can learn, done to messages as they cross."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sfl_flower.data import batch_indices
from sfl_flower.server.roster import draw_cohort
from sfl_flower.wire.ho_sfl import ForwardRequest
from sfl_flower.zo import Directions, Entry, Journal, Key
from sfl_flower.zo.journal import Tail
from tests import tiny
from tests.local_grid import values
from tests.tiny import Trial, train

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


def test_c10_the_seed_gives_a_client_the_server_halfs_first_weights_the_cohorts_and_rows() -> None:
    options: dict[str, Any] = {"clients": 4, "sampled": 2, "rounds": 3, "partition": "iid"}
    trial = train(tiny.task(), "frozen", **options)
    setups = [c["config"] for kind, _, c in trial.grid.asked if kind != "join"]
    seed = int(setups[0]["seed"])
    assert {int(setup["seed"]) for setup in setups} == {seed} == {trial.strategy.config.seed}
    mine = tiny.task().build(seed).server.state_dict()
    theirs = trial.strategy.task.build(trial.strategy.config.seed).server.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    asked = [
        {who for kind, who, c in trial.grid.asked
         if kind != "join" and c["config"]["round"] == round}
        for round in (1, 2, 3)
    ]  # fmt: skip
    assert asked == [set(draw_cohort(seed, round, 4, 2)) for round in (1, 2, 3)]
    assert '"seed": 0' in setups[0]["partition"]  # the division of the data, everybody's rows
    assert len(batch_indices(seed, 3, 1, 0, 12, 4)) == 4  # and which of them in which batch


def test_c10_with_data_of_their_own_clients_are_told_no_rows() -> None:
    trial = train(tiny.task(own=True), "frozen", partition="local", rounds=1)
    setups = [c["config"] for kind, _, c in trial.grid.asked if kind != "join"]
    assert {setup["partition"] for setup in setups} == {"local"}
