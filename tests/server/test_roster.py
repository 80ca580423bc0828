"""Who takes part: what a node claims never ends a run, nor puts a living client out of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pytest

from sfl_flower.config import RunConfig, Settings
from sfl_flower.data.identity import data_digest
from sfl_flower.errors import ConfigError, DataError, TrainingError, WireError
from sfl_flower.run.client_app import make_client_app
from sfl_flower.run.inline import InlineGrid
from sfl_flower.server.roster import Member, Roster
from sfl_flower.server.tally import Tally
from sfl_flower.task import NOT_THEIR_OWN
from sfl_flower.wire import JoinReply
from tests import tiny
from tests.local_grid import changed

pytestmark = pytest.mark.flower


@dataclass
class Nodes:
    """Nodes that say these things when they are asked, those with None nothing.

    Attributes
    ----------
    says : dict
        By node id.
    asked : list of list of int
        The nodes of every question.
    """

    says: dict[int, JoinReply | None]
    asked: list[list[int]] = field(default_factory=list)

    def ask(self, nodes: Iterable[Member]) -> Mapping[Member, JoinReply]:
        nodes = list(nodes)
        self.asked.append([node.node_id for node in nodes])
        found = {node: self.says[node.node_id] for node in nodes}
        return {node: reply for node, reply in found.items() if reply is not None}


def _grid(*online: int) -> InlineGrid:
    grid = InlineGrid(make_client_app(lambda context: tiny.task()), 1)
    grid.nodes = list(online)
    return grid


def _roster(clients: int, partition: str = "iid", sampled: int = 0) -> Roster:
    return Roster(
        RunConfig(clients=clients, partition=partition, sampled=sampled, join_timeout=0.01),
        Settings(),
    )


BAD = {
    "problem": (JoinReply(1, 0, "no file x.npz"), "no file x.npz"),
    "beyond": (JoinReply(2, 5), "it has partition-id 2; the run has partitions 0 to 1"),
    "far beyond": (JoinReply(2**31 - 1, 5), "it has partition-id 2147483647"),
    "empty": (JoinReply(1, 0), "it says that it holds 0 samples; a client needs at least 1"),
    "twice": (JoinReply(0, 7), "it says that it holds partition 0, as node 1000 does"),
}


@pytest.mark.parametrize("bad", BAD)
def test_c3_a_node_that_cannot_be_used_is_left_out_before_the_first_round(bad: str) -> None:
    reply, why = BAD[bad]
    nodes, tally = Nodes({1000: JoinReply(0, 5), 1001: reply}), Tally()
    roster, grid = _roster(2), _grid(1000, 1001)
    assert roster.refresh(grid, nodes.ask, tally) == [Member(0, 1000, 5)]
    assert tally.rejected == 1
    assert tally.notes[0].startswith(f"Node 1001 is left out: {why}")
    assert tally.notes[1:] == ["1 of 2 clients are online, fewer than the 2 asked for in a round."]
    assert roster.refresh(grid, nodes.ask, tally) == [Member(0, 1000, 5)]
    assert nodes.asked == [[1000, 1001]]  # not again while it stays


@pytest.mark.parametrize("bad", BAD)
def test_c3_a_node_that_comes_late_and_cannot_be_used_is_left_out(bad: str) -> None:
    reply, why = BAD[bad]
    says: dict[int, JoinReply | None] = {
        1000: JoinReply(0, 5),
        1001: JoinReply(1, 4),
        1002: reply,
    }
    nodes, tally, roster = Nodes(says), Tally(), _roster(2)
    both = [Member(0, 1000, 5), Member(1, 1001, 4)]
    assert roster.refresh(_grid(1000, 1001), nodes.ask, tally) == both
    assert (tally.rejected, tally.notes) == (0, [])
    assert roster.refresh(_grid(1000, 1001, 1002), nodes.ask, tally) == both
    assert tally.rejected == 1
    held = "partition 0 is held by node 1000, which answers"
    assert tally.notes[0].startswith(f"Node 1002 is left out: {held if bad == 'twice' else why}")


def test_c3_a_run_without_one_usable_node_says_why() -> None:
    nodes = Nodes({1000: JoinReply(0, 0, "no file x.npz"), 1001: JoinReply(9, 3)})
    says = "None of the 2 nodes can take part; the first reason: no file x.npz"
    with pytest.raises(DataError, match=says):
        _roster(2).refresh(_grid(1000, 1001), nodes.ask, Tally())


def test_c3_nodes_beyond_the_clients_are_not_admitted_where_the_data_is_divided() -> None:
    says: dict[int, JoinReply | None] = {n: JoinReply(n - 1000, 5) for n in range(1000, 1004)}
    divided, own = _roster(2), _roster(2, partition="local")
    grid = _grid(*says)
    assert divided.refresh(grid, Nodes(says).ask, Tally()) == [
        Member(0, 1000, 5),
        Member(1, 1001, 5),
    ]
    assert len(own.refresh(grid, Nodes(says).ask, Tally())) == 4


@pytest.mark.parametrize(
    "claim",
    [
        {"config": {"partition-id": -1}},
        {"config": {"partition-id": -2}},
        {"config": {"partition-id": 2**31}},
        {"config": {"partition-id": 2**32 - 1}},
        {"metrics": {"num-examples": -1}},
        {"metrics": {"num-examples": 2**31}},
    ],
)
def test_c3_the_wire_bounds_what_a_node_claims(claim: dict[str, dict[str, int]]) -> None:
    content = changed(JoinReply(0, 5).to_content(), **claim)  # type: ignore[arg-type]
    with pytest.raises(WireError, match=r"join reply message has (partition-id|num-examples)="):
        JoinReply.from_content(content)
    assert JoinReply.from_content(JoinReply(-1, 0, "no number").to_content()).partition == -1


def test_a_refused_node_that_goes_and_comes_back_is_asked_again() -> None:
    """A node that proves itself by a key keeps its id when it is started again."""
    nodes = Nodes({1000: JoinReply(0, 5), 1001: JoinReply(1, 0, "no file x.npz")})
    roster = _roster(2)
    roster.refresh(_grid(1000, 1001), nodes.ask, Tally())
    roster.refresh(_grid(1000), nodes.ask, Tally())
    nodes.says[1001] = JoinReply(1, 4)
    both = [Member(0, 1000, 5), Member(1, 1001, 4)]
    assert roster.refresh(_grid(1000, 1001), nodes.ask, Tally()) == both


def test_c4_a_late_node_does_not_replace_an_owner_that_answers() -> None:
    nodes, tally = Nodes({1000: JoinReply(0, 5), 1001: JoinReply(0, 3)}), Tally()
    roster = _roster(1)
    roster.refresh(_grid(1000), nodes.ask, tally)
    grid = _grid(1000, 1001)
    for _ in range(3):
        assert roster.refresh(grid, nodes.ask, tally) == [Member(0, 1000, 5)]
    assert nodes.asked == [[1000], [1001], [1000]]
    assert tally.rejected == 1
    assert "partition 0 is held by node 1000, which answers" in tally.notes[0]


@pytest.mark.parametrize("listed", [True, False])
def test_c4_a_node_that_was_started_again_takes_its_share_back(listed: bool) -> None:
    """Its old id may still be listed for a minute; nothing answers there."""
    nodes, tally = Nodes({1000: JoinReply(0, 5), 1001: JoinReply(0, 5)}), Tally()
    roster = _roster(1)
    roster.refresh(_grid(1000), nodes.ask, tally)
    nodes.says[1000] = None
    grid = _grid(1000, 1001) if listed else _grid(1001)
    for _ in range(3):
        assert roster.refresh(grid, nodes.ask, tally) == [Member(0, 1001, 5)]
    assert nodes.asked == [[1000], [1001], *([[1000]] if listed else [])]
    note = "Node 1001 takes the place of node 1000, which does not answer, as client 0."
    assert tally.notes == ([note] if listed else [])


def test_c4_a_second_node_stands_in_once_the_owner_is_gone() -> None:
    nodes, roster = Nodes({1000: JoinReply(0, 5), 1001: JoinReply(0, 3)}), _roster(1)
    roster.refresh(_grid(1000), nodes.ask, Tally())
    assert roster.refresh(_grid(1000, 1001), nodes.ask, Tally()) == [Member(0, 1000, 5)]
    assert roster.refresh(_grid(1001), nodes.ask, Tally()) == [Member(0, 1001, 3)]
    # The first comes back from a lost network, to find its place taken by one that answers.
    assert roster.refresh(_grid(1000, 1001), nodes.ask, Tally()) == [Member(0, 1001, 3)]


def test_nodes_that_cannot_be_used_are_not_what_a_run_waits_for() -> None:
    nodes, roster = Nodes({1000: JoinReply(0, 5), 1001: JoinReply(7, 5)}), _roster(2)
    roster.refresh(_grid(1000, 1001), nodes.ask, Tally())
    with pytest.raises(TrainingError, match=r"0 of 1 clients are online after 0\.01 s"):
        roster.refresh(_grid(1001), nodes.ask, Tally())


def test_c12_a_round_with_fewer_clients_than_asked_for_has_a_note() -> None:
    nodes = Nodes({n: JoinReply(n - 1000, 5) for n in range(1000, 1003)})
    roster, grid = _roster(3, sampled=2), _grid(1000, 1001, 1002)
    notes = []
    for online in ([1000, 1001, 1002], [1000, 1001], [1001], [1001]):
        grid.nodes, tally = online, Tally()
        roster.refresh(grid, nodes.ask, tally)
        notes.append(tally.notes)
    note = ["1 of 3 clients are online, fewer than the 2 asked for in a round."]
    assert notes == [[], [], note, note]


def test_c13_what_a_client_says_does_not_steer_the_terminal() -> None:
    says = "bad\x1b[2J\x1b]0;title\x07 data\u202e\nline two"
    nodes, tally = Nodes({1000: JoinReply(0, 5), 1001: JoinReply(1, 0, says)}), Tally()
    _roster(2).refresh(_grid(1000, 1001), nodes.ask, tally)
    assert tally.notes[0] == (
        "Node 1001 is left out: bad\\x1b[2J\\x1b]0;title\\x07 data\\u202e line two"
    )
    tally.fail(Member(1, 1001), says)
    tally.reject(Member(1, 1001), says)
    assert all(note.isprintable() for note in tally.notes)
    nodes = Nodes({1000: JoinReply(0, 0, says)})
    with pytest.raises(DataError) as error:
        _roster(1).refresh(_grid(1000), nodes.ask, Tally())
    assert str(error.value).isprintable()


def test_a_node_that_does_not_answer_is_asked_less_and_less_often() -> None:
    nodes, roster = Nodes({1000: JoinReply(0, 5), 1001: None}), _roster(2)
    rounds = []
    for round in range(1, 16):
        before = len(nodes.asked)
        assert roster.refresh(_grid(1000, 1001), nodes.ask, Tally()) == [Member(0, 1000, 5)]
        rounds += [round] if len(nodes.asked) > before else []
    assert rounds == [1, 2, 4, 8]


def _with_data(partition: int, data: str) -> JoinReply:
    return JoinReply(partition, 5, data=data)


@pytest.mark.parametrize("sets", [("aa", "bb", "aa"), ("aa", "aa", "bb"), ("bb", "aa", "aa")])
def test_e5_a_node_with_another_training_set_than_the_others_is_left_out_by_name(
    sets: tuple[str, str, str],
) -> None:
    says: dict[int, JoinReply | None] = {
        1000 + index: _with_data(index, name * 16) for index, name in enumerate(sets)
    }
    tally, odd = Tally(), sets.index("bb")
    members = _roster(3).refresh(_grid(*says), Nodes(says).ask, tally)
    assert [member.partition for member in members] == [p for p in range(3) if p != odd]
    assert tally.notes[0].startswith(
        f"Node {1000 + odd} is left out: client {odd} has loaded another training set (digest "
        "bbbbbbbb) than the one that this run divides (aaaaaaaa)"
    )
    assert "seed what it draws and sort what it lists" in tally.notes[0]


def test_e5_a_node_that_comes_late_with_another_training_set_is_left_out() -> None:
    says: dict[int, JoinReply | None] = {
        1000: _with_data(0, "aa" * 16), 1001: _with_data(1, "bb" * 16)
    }  # fmt: skip
    roster, tally = _roster(1 + 1), Tally()
    roster._config = RunConfig(clients=1, partition="iid", join_timeout=0.01)
    assert len(roster.refresh(_grid(1000), Nodes(says).ask, tally)) == 1
    roster._config = RunConfig(clients=2, partition="iid", join_timeout=0.01)
    assert len(roster.refresh(_grid(1000, 1001), Nodes(says).ask, tally)) == 1
    assert "client 1 has loaded another training set" in tally.notes[0]


def test_e5_nodes_are_held_against_the_set_that_the_server_tests_beside() -> None:
    """All nodes agree, as in one worker, on another division than the server's."""
    task = tiny.task()
    says: dict[int, JoinReply | None] = {n: _with_data(n - 1000, "bb" * 16) for n in (1000, 1001)}
    config = RunConfig(clients=2, partition="iid", join_timeout=0.01)
    # It has loaded none, as in a deployment: what most nodes have counts.
    both = Roster(config, Settings(), task).refresh(_grid(*says), Nodes(says).ask, Tally())
    assert len(both) == 2
    right = data_digest(task.samples("train"))
    with pytest.raises(DataError, match=rf"\(digest bbbbbbbb\) than the one .* \({right[:8]}\)"):
        Roster(config, Settings(), task).refresh(_grid(*says), Nodes(says).ask, Tally())
    says[1000] = _with_data(0, right)
    tally = Tally()
    members = Roster(config, Settings(), task).refresh(_grid(*says), Nodes(says).ask, tally)
    assert [member.partition for member in members] == [0] and tally.rejected == 1


def test_e5_a_run_in_which_every_node_would_hold_all_samples_is_refused_wherever_it_starts() -> (
    None
):
    task, config = tiny.task(), RunConfig(clients=2, partition="local", join_timeout=0.01)

    def join(*sets: str, roster: Roster | None = None) -> Tally:
        says: dict[int, JoinReply | None] = {
            1000 + index: _with_data(index, name * 16) for index, name in enumerate(sets)
        }
        tally = Tally()
        (roster or Roster(config, Settings(), task)).refresh(_grid(*says), Nodes(says).ask, tally)
        return tally

    with pytest.raises(ConfigError) as refused:
        join("aa", "aa")
    assert str(refused.value) == NOT_THEIR_OWN.format(task.name)
    # Each node reads a file of its own, say: that train() takes no context does not matter.
    assert join("aa", "bb").notes == []
    trial = tiny.begin(task, "frozen", partition="local")
    with pytest.raises(ConfigError, match="all clients would get the same samples"):
        tiny.start(trial)


def test_a6_nodes_with_data_of_their_own_that_all_hold_the_same_are_remarked() -> None:
    for sets, said in ((("aa", "aa"), True), (("aa", "bb"), False), (("aa",), False)):
        says: dict[int, JoinReply | None] = {
            1000 + index: _with_data(index, name * 16) for index, name in enumerate(sets)
        }
        tally = Tally()
        roster = _roster(len(sets), partition="local")
        assert len(roster.refresh(_grid(*says), Nodes(says).ask, tally)) == len(sets)
        assert ("All 2 nodes hold the same training set" in " ".join(tally.notes)) == said
