"""What happens to a round when clients drop, are late, repeat themselves, or die."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sfl_flower.config import RunConfig, Settings
from sfl_flower.errors import TrainingError
from sfl_flower.server.exchange import Exchange
from sfl_flower.server.roster import Member, Roster
from sfl_flower.wire import Ledger
from sfl_flower.wire.flower import SUPERLINK, identity
from sfl_flower.wire.ho_sfl import ForwardReply
from tests import tiny
from tests.local_grid import Fault, LocalGrid, changed
from tests.tiny import Trial, begin, equal, start, train

pytestmark = pytest.mark.flower

ALL = ("ho_sfl", "frozen", "splitfed_v1", "splitfed_v2", "cse_fsl", "heron", "fsl_sage")


def counts(trial: Trial) -> list[tuple[int, int, int]]:
    """Return replies, failures and rejected of every round."""
    return [(r.replies, r.failures, r.rejected) for r in trial.strategy.records[1:]]


def in_step(trial: Trial) -> None:
    """Check that every client stands on the server's chain, and equals a replay of it there."""
    mirror = trial.strategy.mirror
    for client in range(trial.strategy.config.clients):
        version, digest = trial.position(client)
        if version >= 0:
            assert mirror.journal.digest_at(version).hex() == digest
            if version == mirror.version:
                assert trial.theta(client).tobytes() == mirror.replica.theta.numpy().tobytes()


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("kind", ["drop", "mute", "raise", "unavailable"])
def test_a_client_that_does_not_answer_is_left_out_of_the_round(method: str, kind: str) -> None:
    trial = train(tiny.task(), method, [Fault(kind, {2}, {2})], rounds=3)
    assert counts(trial) == [(4, 0, 0), (3, 1, 0), (4, 0, 0)]
    says = {"raise": "a test says so (Flower error 2)", "unavailable": "(Flower error 5)"}
    assert f"Client 2 is left out of this round: {says.get(kind, '')[:0]}" in trial.notes
    assert says.get(kind, "no reply within 0.05 s") in trial.notes
    if method in ("ho_sfl", "frozen"):
        in_step(trial)


@pytest.mark.parametrize("method", ALL)
def test_replies_in_another_order_or_twice_change_no_bit(method: str) -> None:
    plain = train(tiny.task(), method)
    again = begin(tiny.task(), method, [Fault("twice")])
    again.grid._rng.seed(99)
    start(again)
    assert equal(plain.model, again.model)
    assert counts(plain) == counts(again) == [(4, 0, 0)] * 3
    assert plain.strategy.ledger == again.strategy.ledger


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("kind", ["late", "drop"])
def test_a_late_reply_is_a_missing_one_and_is_drained(method: str, kind: str) -> None:
    trial = train(tiny.task(), method, [Fault(kind, {1}, {1}, times=1)], rounds=3)
    assert counts(trial) == [(3, 1, 0), (4, 0, 0), (4, 0, 0)]
    assert not trial.grid._replies and not trial.grid.late  # nobody's memory fills up
    if kind == "late":
        assert trial.strategy._late == {}
        assert equal(trial.model, train(tiny.task(), method, [Fault("drop", {1}, {1})]).model)


@pytest.mark.parametrize("method", ALL)
def test_a_worker_that_died_is_asked_again(method: str) -> None:
    trial = train(tiny.task(), method, [Fault("die", {1}, {2}, times=2)], rounds=3)
    assert counts(trial) == [(4, 0, 0)] * 3
    assert equal(trial.model, train(tiny.task(), method).model)


def test_a16_a_join_that_is_asked_again_says_so_and_why() -> None:
    faults = [Fault("die", {1}, times=1, types="join")]
    trial = train(tiny.task(), "ho_sfl", faults, rounds=2)
    (note,) = trial.strategy.records[1].notes
    assert "is asked again: " in note and "Flower error" in note
    assert trial.strategy.records[2].notes == ()


def test_a_worker_that_keeps_dying_is_given_up() -> None:
    trial = train(tiny.task(), "ho_sfl", [Fault("die", {1}, {2})], rounds=3)
    assert counts(trial) == [(4, 0, 0), (3, 1, 0), (4, 0, 0)]
    assert trial.grid.log["forward", 1] == 1 + 3 + 1
    assert "ActorDiedError (Flower error 0)" in trial.notes


def test_a_client_that_sends_smashed_data_and_no_scalars_trains_the_server() -> None:
    """The server half keeps its gradient, the mean is over the replies."""
    faults = [Fault("drop", {3}, {1}, types="probe")]
    trial = train(tiny.task(), "ho_sfl", faults, rounds=1)
    assert counts(trial) == [(3, 1, 0)]
    (entry,) = trial.strategy.mirror.journal.entries
    assert entry.streams == (1, 2, 3)
    assert trial.strategy.ledger.samples == 16
    whole = train(tiny.task(), "ho_sfl", rounds=1)
    server = {k: v for k, v in trial.model.items() if k not in tiny.CLIENT_NAMES}
    assert equal(server, {k: v for k, v in whole.model.items() if k in server})


def test_a_round_without_any_scalars_leaves_the_client_half_alone() -> None:
    trial = train(tiny.task(), "ho_sfl", [Fault("drop", None, {2}, types="probe")], rounds=3)
    assert [record.version for record in trial.strategy.records] == [0, 1, 1, 2]
    assert [e.round for e in trial.strategy.mirror.journal.entries] == [1, 3]
    in_step(trial)


@pytest.mark.parametrize("method", ALL)
def test_a_round_without_any_reply_changes_nothing(method: str) -> None:
    trial = begin(tiny.task(), method, [Fault("raise", None, {1, 2})], rounds=2)
    before = trial.model
    with pytest.raises(TrainingError, match="No usable reply in any of the 2 rounds"):
        start(trial)
    assert equal(before, trial.model)
    assert counts(trial) == [(0, 4, 0)]  # the last one has no record
    assert trial.strategy.records[-1].loss is None


@pytest.mark.parametrize("method", ALL)
def test_patience_ends_a_run_that_gets_no_replies(method: str) -> None:
    faults = [Fault("raise", None, range(3, 99))]
    trial = begin(tiny.task(), method, faults, rounds=20, patience=3)
    with pytest.raises(TrainingError, match=r"in 3 rounds in a row.*round 5; .*a test says so"):
        start(trial)
    assert trial.strategy.records[-1].round == 4


def test_patience_begins_anew_with_every_reply() -> None:
    faults = [Fault("raise", None, {1, 2, 4, 5})]
    trial = train(tiny.task(), "ho_sfl", faults, rounds=6, patience=3)
    assert [record.replies for record in trial.strategy.records[1:]] == [0, 0, 4, 0, 0, 4]


@pytest.mark.parametrize("method", ["ho_sfl", "frozen"])
@pytest.mark.parametrize("kind", ["forget", "rollback"])
@pytest.mark.parametrize("sync", ["auto", "replay", "download"])
def test_a_lost_or_old_state_is_noticed_and_repaired(method: str, kind: str, sync: str) -> None:
    options: dict[str, Any] = {"sync": sync} if method == "ho_sfl" else {}
    struck = "probe" if method == "ho_sfl" else "forward"
    faults = [Fault(kind, {1, 2}, {1, 3}, types=struck), Fault(kind, {0}, {2}, types=struck)]
    trial = train(tiny.task(), method, faults, rounds=5, **options)
    assert counts(trial) == [(4, 0, 0)] * 5
    assert equal(trial.model, train(tiny.task(), method, rounds=5, **options).model)
    in_step(trial)


def test_a_state_lost_between_anchor_and_probes_costs_the_round_only() -> None:
    faults = [Fault("forget", {1}, {2}, types="forward")]
    trial = train(tiny.task(), "ho_sfl", faults, rounds=4)
    assert counts(trial)[1][0] == 3
    assert counts(trial)[2:] == [(4, 0, 0)] * 2
    in_step(trial)


PATTERNS: list[dict[str, Any]] = [
    {"faults": [Fault("drop", {0}, {1, 2, 3})]},
    {"faults": [Fault("mute", {0, 1}, {2, 4}), Fault("raise", {2}, {1, 5})]},
    {"faults": [Fault("forget", {3}), Fault("late", {1}, {3}, times=1)]},
    {"faults": [Fault("drop", {0, 1, 2}, {2}), Fault("forget", {1}, {4})], "sampled": 2},
    {"faults": [Fault("rollback", {0}, {1, 2, 3, 4})], "client_optimizer": "adam"},
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=range(len(PATTERNS)))
def test_sync_by_replay_or_download_gives_the_same_bits(pattern: dict[str, Any]) -> None:
    options = {"rounds": 6, "client_lr": 0.1, **pattern}
    faults = options.pop("faults")
    trials = [
        train(tiny.task(), "ho_sfl", faults, sync=sync, **options)
        for sync in ("auto", "replay", "download")
    ]
    for trial in trials:
        assert equal(trial.model, trials[0].model)
        assert trial.strategy.digest == trials[0].strategy.digest
        in_step(trial)
    downs = [trial.strategy.ledger.down["weights"] for trial in trials]
    assert downs[1] < downs[2]


def test_everyone_equals_the_server_after_a_last_round_that_changes_nothing() -> None:
    """Clients come to the head at the start of a round; a silent last round leaves them there."""
    faults = [
        Fault("drop", {0}, {2, 3}),
        Fault("forget", {1}, {4}),
        Fault("raise", None, {7}, types="probe"),
    ]
    trial = train(tiny.task(), "ho_sfl", faults, rounds=7)
    mirror = trial.strategy.mirror
    assert mirror.version == 6
    assert {trial.position(client) for client in range(4)} == {(6, mirror.digest)}
    assert {trial.theta(c).tobytes() for c in range(4)} == {mirror.replica.theta.numpy().tobytes()}


def test_a_client_that_names_a_version_it_cannot_prove_gets_a_download() -> None:
    def lie(content: Any) -> Any:
        config = {"status": "stale", "version": 1, "digest": b"\xff" * 32}
        return changed(
            content, arrays={"z": None, "y": None, "sizes": None}, config={**config, "round": None}
        )

    faults = [Fault("change", {2}, {3}, "forward", 1, lie)]
    trial = train(tiny.task(), "ho_sfl", faults, sync="replay")
    assert counts(trial) == [(4, 0, 0)] * 3
    kinds = [
        content["config"]["sync"]
        for kind, client, content in trial.grid.requests
        if (kind, client) == ("forward", 2)
    ]
    assert kinds == ["full", "tail", "tail", "full"]


def test_a_client_that_is_always_stale_is_left_out() -> None:
    def lie(content: Any) -> Any:
        config = {"status": "stale", "version": -1, "round": None}
        return changed(content, arrays={"z": None, "y": None, "sizes": None}, config=config)

    trial = train(tiny.task(), "ho_sfl", [Fault("change", {2}, {2}, "forward", change=lie)])
    assert counts(trial) == [(4, 0, 0), (3, 1, 0), (4, 0, 0)]
    assert "cannot be brought to the current version" in trial.notes


# Who takes part


def test_a_node_that_is_started_again_takes_its_share_back() -> None:
    trial = begin(tiny.task(), "ho_sfl", rounds=4)
    grid, again = trial.grid, 2003
    node = begin(tiny.task(), "ho_sfl").grid.contexts[trial.grid.nodes[3]]

    def restart(record: Any) -> None:
        if record.round == 2:
            grid.nodes[3] = again
            grid.contexts[again] = node

    trial.strategy.account._on_round = restart
    start(trial)
    assert counts(trial) == [(4, 0, 0)] * 4
    assert equal(trial.model, train(tiny.task(), "ho_sfl", rounds=4).model)
    assert trial.grid.log["join", 3] == 2
    in_step(trial)


def test_a_node_that_goes_is_not_asked() -> None:
    trial = begin(tiny.task(), "ho_sfl", rounds=4)
    trial.strategy.account._on_round = lambda record: (
        trial.grid.nodes.__setitem__(slice(None), trial.grid.nodes[:3])
        if record.round == 2
        else None
    )
    start(trial)
    assert counts(trial) == [(4, 0, 0), (4, 0, 0), (3, 0, 0), (3, 0, 0)]


def test_more_clients_than_nodes_is_an_error_that_says_what_to_do() -> None:
    trial = begin(tiny.task(), "ho_sfl", clients=4)
    trial.grid.nodes.pop()
    says = r"3 of 4 clients are online after 0\.2 s; start the others, set clients lower, or"
    with pytest.raises(TrainingError, match=says):
        start(trial)


@pytest.mark.parametrize("method", ALL)
def test_c3_of_two_nodes_with_one_partition_the_second_is_left_out(method: str) -> None:
    trial = begin(tiny.task(), method, rounds=2)
    for node in trial.grid.nodes[1:3]:
        trial.grid.contexts[node].node_config["partition-id"] = 2
    start(trial)
    assert counts(trial) == [(3, 0, 1), (3, 0, 0)]
    assert "Node 1002 is left out: it says that it holds partition 2, as node 1001" in trial.notes


CLAIMS: dict[str, Any] = {
    "a partition of 2**32 - 1": {"config": {"partition-id": 2**32 - 1}},
    "a partition of 2**31 - 1": {"config": {"partition-id": 2**31 - 1}},
    "partition 99": {"config": {"partition-id": 99}},
    "partition -1": {"config": {"partition-id": -1}},
    "no samples": {"metrics": {"num-examples": 0}},
    "2**63 - 1 samples": {"metrics": {"num-examples": 2**63 - 1}},
    "a problem": {"config": {"problem": "anything at all"}},
}


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("method", ["ho_sfl", "heron", "fedavg"])
def test_c3_no_claim_of_a_joining_node_ends_a_run(method: str, claim: str, late: bool) -> None:
    def lie(content: Any) -> Any:
        return changed(content, **CLAIMS[claim])

    trial = begin(tiny.task(), method, [Fault("change", {3}, types="join", change=lie)], rounds=4)
    liar = trial.grid.nodes[3]
    if late:
        trial.grid.nodes = trial.grid.nodes[:3]
        trial.strategy.config = replace(trial.strategy.config, clients=3)
        trial.strategy._roster = Roster(trial.strategy.config, trial.strategy.settings)

    def come(record: Any) -> None:
        if record.round == 2 and late:
            trial.grid.nodes.append(liar)

    trial.strategy.account._on_round = come
    start(trial)
    assert [record.replies for record in trial.strategy.records[1:]] == [3] * 4
    # What breaks the form is refused as a reply, and asked again after 1, 2, 4 rounds.
    assert trial.total("rejected") >= 1
    assert f"{liar}" in trial.notes
    honest = begin(tiny.task(), method, rounds=4, clients=4)
    honest.grid.nodes = honest.grid.nodes[:3]
    honest.strategy.config = replace(honest.strategy.config, clients=3)
    honest.strategy._roster = Roster(honest.strategy.config, honest.strategy.settings)
    assert equal(trial.model, start(honest).model)


def test_c4_a_late_node_with_the_partition_of_another_changes_nothing() -> None:
    trial = begin(tiny.task(), "ho_sfl", rounds=4)
    grid, thief = trial.grid, 2000
    grid.contexts[thief] = begin(tiny.task(), "ho_sfl").grid.contexts[grid.nodes[0]]

    def come(record: Any) -> None:
        if record.round == 2:
            grid.nodes.append(thief)

    trial.strategy.account._on_round = come
    start(trial)
    assert counts(trial) == [(4, 0, 0), (4, 0, 0), (4, 0, 1), (4, 0, 0)]
    assert f"partition 0 is held by node {grid.nodes[0]}, which answers" in trial.notes
    assert equal(trial.model, train(tiny.task(), "ho_sfl", rounds=4).model)
    assert not any(kind != "join" and n == 4 for kind, n in grid.log)


def test_c4_a_node_that_is_started_again_while_its_old_id_is_listed_takes_its_share_back() -> None:
    faults = [Fault("mute", {3}, types=kind) for kind in ("", "join")]
    trial = begin(tiny.task(), "ho_sfl", rounds=4, timeout=0.05)
    grid, again = trial.grid, 2003
    grid.contexts[again] = begin(tiny.task(), "ho_sfl").grid.contexts[grid.nodes[3]]

    def restart(record: Any) -> None:
        if record.round == 2:
            grid.nodes.append(again)
            grid.faults += faults

    trial.strategy.account._on_round = restart
    start(trial)
    assert [record.replies for record in trial.strategy.records[1:]] == [4] * 4
    assert (
        f"Node {again} takes the place of node {grid.nodes[3]}, which does not answer"
        in trial.notes
    )
    assert equal(trial.model, train(tiny.task(), "ho_sfl", rounds=4).model)


def test_nodes_that_never_answer_the_join_end_the_run() -> None:
    trial = begin(tiny.task(), "ho_sfl", [Fault("drop", types="join")])
    with pytest.raises(TrainingError, match="None of the 4 nodes answered"):
        start(trial)


def test_a_node_that_answers_the_join_later_is_asked_again() -> None:
    faults = [Fault("drop", {1}, types="join", times=1)]
    trial = train(tiny.task(), "ho_sfl", faults, rounds=3)
    assert [record.replies for record in trial.strategy.records[1:]] == [3, 4, 4]


def test_the_cohort_follows_seed_and_round_alone() -> None:
    members = [Member(i, 100 + i, 5) for i in range(10)]

    def cohorts(seed: int) -> list[list[Member]]:
        roster = Roster(RunConfig(clients=10, seed=seed, sampled=3), Settings())
        return [roster.cohort(round, members) for round in range(1, 30)]

    assert cohorts(1) == cohorts(1)
    assert cohorts(1) != cohorts(2)
    assert all(sorted(set(c)) == c and len(c) == 3 for c in cohorts(1))
    assert {member for cohort in cohorts(1) for member in cohort} == set(members)
    assert Roster(RunConfig(clients=10), Settings()).cohort(1, members) == members


# The exchange itself


def exchange(trial: Trial) -> tuple[Exchange, Ledger]:
    ledger = Ledger()
    return Exchange(trial.grid, ledger, 0.05, {}, "ho_sfl", str), ledger


def test_a_refused_reply_is_booked_as_control() -> None:
    def damage(content: Any) -> Any:
        return changed(content, config={"round": 9})

    damaged = train(tiny.task(), "frozen", [Fault("change", {1}, {1}, change=damage)], rounds=1)
    plain = train(tiny.task(), "frozen", rounds=1)
    assert counts(damaged) == [(3, 0, 1)]
    assert damaged.strategy.ledger.bytes_up == plain.strategy.ledger.bytes_up
    assert damaged.strategy.ledger.exchanges == plain.strategy.ledger.exchanges
    assert damaged.strategy.ledger.up["smashed"] == 0.75 * plain.strategy.ledger.up["smashed"]


def test_replies_come_in_the_order_of_the_requests() -> None:
    trial = begin(tiny.task(), "frozen")
    strategy = trial.strategy
    members = [Member(i, trial.grid.nodes[i]) for i in (2, 0, 3, 1)]
    from sfl_flower.wire.ho_sfl import ForwardRequest

    sent, _ = exchange(trial)
    with identity(1, SUPERLINK):
        replies = sent.send(
            {m: ForwardRequest(1, 4, 1, strategy.setup, strategy.mirror.sync(m)) for m in members},
            ForwardReply.from_reader,
        )
    assert list(replies) == members


def test_a_request_that_flower_does_not_accept_is_a_failure() -> None:
    trial = begin(tiny.task(), "frozen", rounds=1)
    accept = LocalGrid.push_messages

    def push(grid: LocalGrid, messages: Any) -> list[str]:
        return accept(grid, messages)[1:]

    trial.grid.push_messages = push.__get__(trial.grid)  # type: ignore[method-assign]
    start(trial)
    assert "Flower did not accept the request (is it too large?)" in trial.notes


def test_generators_are_never_pushed() -> None:
    trial = begin(tiny.task(), "frozen")
    with pytest.raises(TypeError, match="pass a list"):
        trial.grid.push_messages(message for message in list[Any]())
