"""How client half and head come down: the same bits by walks, error feedback, and lost clients."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import Tensor, nn

from sfl_flower import simulate
from sfl_flower.errors import ConfigError, WireError
from sfl_flower.methods import read_options
from sfl_flower.node.downlink import follow, forget_held
from sfl_flower.node.local_loss import LocalModel
from sfl_flower.node.node import Node
from sfl_flower.node.store import NodeStore
from sfl_flower.server.downlink import Downlink
from sfl_flower.server.roster import Member
from sfl_flower.server.strategy import SplitStrategy
from sfl_flower.server.tally import Tally
from sfl_flower.task import SplitTask
from sfl_flower.wire import StaleReply, pack_state
from sfl_flower.wire.downlink import (
    Changes,
    block,
    decode_difference,
    encode_difference,
    flat_values,
    followed_state,
    held_digest,
)
from sfl_flower.wire.local import LocalRequest
from sfl_flower.zo.walks import LocalWalk, RoundOfWalks
from tests import tiny
from tests.local_grid import Fault, values
from tests.second_device import SECOND, second_device
from tests.server.test_resume import history, stop_after
from tests.tiny import Stop, Trial, begin, equal, start, train
from tests.wire.contents import MESSAGES, SETUP

WIDTH = 300
CLIENT = WIDTH * tiny.FEATURES + WIDTH
HEAD = tiny.CLASSES * WIDTH + tiny.CLASSES
CLIENTS, PROBES, STEPS = 4, 2, 3


def wide(norm: bool = False) -> nn.Module:
    """Return a model whose client half is more bytes than the scalars of a round."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(tiny.FEATURES, WIDTH),
            norm=nn.BatchNorm1d(WIDTH) if norm else nn.Identity(),
            act=nn.Tanh(),
            hidden=nn.Linear(WIDTH, 4),
            act2=nn.Tanh(),
            out=nn.Linear(4, tiny.CLASSES),
        )
    )


BUILT = False, False
"""A request to a client that holds what it is to begin with: nothing whole, no changes."""

BASE: dict[str, Any] = {
    "local_steps": STEPS,
    "probes": PROBES,
    "client_lr": 0.05,
    "client_lr_schedule": "constant",
    "client_lr_warmup": 0,
    "client_optimizer": "sgd",
    "rounds": 5,
    "server_lr": 0.2,
}


def problem(norm: bool = False) -> SplitTask:
    shares = [tiny.samples(n, n) for n in (12, 10, 16, 9)]
    return tiny.task(shares, build=lambda: wide(norm))


def heron(faults: Any = (), norm: bool = False, **options: Any) -> Trial:
    return train(problem(norm), "heron", faults, **{**BASE, **options})


def all_of(trial: Trial) -> dict[str, Tensor]:
    head = {f"head.{k}": v.clone() for k, v in trial.strategy.head.state_dict().items()}
    return {k: v.clone() for k, v in trial.model.items()} | head


def held_by(trial: Trial, client: int) -> dict[str, np.ndarray]:
    """Return what a client remembers."""
    record = trial.grid.contexts[trial.grid.nodes[client]].state.array_records["held"]
    return {name: array.numpy() for name, array in record.items()}


def requests(trial: Trial, client: int) -> list[tuple[bool, bool]]:
    """Return of each request to a client whether weights came whole, and whether changes came."""
    return [
        ("base" not in content["config"], "changes" in content["arrays"])
        for kind, number, content in trial.grid.requests
        if kind == "local" and number == client
    ]


# Walks: the same bits

VARIANTS: dict[str, dict[str, Any]] = {
    "server's head": {},
    "client's head": {"head_trainer": "client"},
    "adam": {"client_optimizer": "adam", "client_lr": 0.01},
    "momentum with a cone": {"client_optimizer": "momentum", "cone": 0.5},
    "by samples": {"mean": "samples", "local_steps": 0},
    "some of the clients": {"sampled": 2},
    "batch norm": {"norm": True},
    "rank one": {"direction": "rank_one"},
    "clipped and spread": {"clip_norm": 0.1, "scale": "spread"},
    "a walk": {"walk": True},
    "a schedule": {"client_lr_schedule": "cosine", "client_lr_warmup": 2},
    "a head without a bias of its own pace": {"head_lr": 0.5, "upload_every": 2},
}


@pytest.mark.parametrize("way", ["scalars", "auto"])
@pytest.mark.parametrize("name", VARIANTS)
def test_walks_and_weights_give_the_same_bits(name: str, way: str) -> None:
    weights, walks = (heron(downlink=down, **VARIANTS[name]) for down in ("weights", way))
    assert equal(all_of(weights), all_of(walks))
    assert walks.total("failures") == walks.total("rejected") == 0
    ledgers = [trial.strategy.ledger for trial in (weights, walks)]
    assert ledgers[1].down["scalars"] > 0 == ledgers[0].down["scalars"]
    assert ledgers[1].bytes_down < ledgers[0].bytes_down
    assert ledgers[1].up == {**ledgers[0].up, "control": ledgers[1].up["control"]}


def test_a_guide_comes_with_the_walks_of_its_round() -> None:
    def guided(down: str) -> Trial:
        options = {**BASE, "guide": "noise", "guide_rest": 0.5, "sampled": 2}
        return train(problem(), "heron", downlink=down, **options)

    weights, walks = guided("weights"), guided("scalars")
    assert equal(all_of(weights), all_of(walks))
    assert walks.strategy.ledger.down["keys"] > weights.strategy.ledger.down["keys"]


def test_clients_hold_the_servers_bits() -> None:
    trial = heron(downlink="scalars", head_downlink="int8", rounds=4)
    # They hold what the last round began with: one more round brings them to what there is now.
    more = heron(downlink="scalars", head_downlink="int8", rounds=5)
    theirs = held_by(more, 2)
    now = flat_values(followed_state(trial.strategy.client_half))
    assert np.array_equal(theirs["client"].view(np.int32), now.view(np.int32))
    for client in range(CLIENTS):
        assert held_digest(held_by(more, client)) == held_digest(theirs)


def test_walks_are_booked_by_the_byte() -> None:
    """In round 1 clients have what they built; in each later one they are sent all of its walks."""
    trial = heron(downlink="scalars", rounds=4)
    sent = 3 * CLIENTS * CLIENTS  # walks
    down = trial.strategy.ledger.down
    assert down["weights"] == 0
    assert down["scalars"] == sent * 4 * STEPS * PROBES
    assert down["keys"] == sent * 20
    assert down["auxiliary"] == 4 * CLIENTS * 4 * HEAD  # whole, every round
    assert requests(trial, 0) == [BUILT] + 3 * [(False, True)]


def test_first_weights_that_clients_do_not_build_come_whole() -> None:
    trial = begin(problem(), "heron", **BASE, downlink="scalars", head_downlink="int8")
    trial.strategy.load_client({k: v + 1 for k, v in trial.model.items()})
    start(trial)
    assert requests(trial, 0) == [(True, False)] + 4 * [(False, True)]
    down = trial.strategy.ledger.down
    assert down["weights"] == CLIENTS * 4 * CLIENT
    assert down["auxiliary"] > CLIENTS * 4 * HEAD


@pytest.mark.parametrize("way", ["int8", "int4+deflate", "topk:0.1+int8"])
def test_differences_are_booked_by_the_byte(way: str) -> None:
    trial = heron(downlink=way, head_downlink=way, rounds=4)
    shares = {"weights": CLIENT, "auxiliary": HEAD}
    for name, size in shares.items():
        brought = trial.strategy.ledger.down[name]
        changes = [
            values(c["arrays"]["changes"]).tobytes()
            for kind, client, c in trial.grid.requests
            if kind == "local" and client == 0 and "changes" in c["arrays"]
        ]
        assert len(changes) == 3
        one = encode_difference(way, np.ones(size, np.float32))
        if way == "int8":  # codes and a scale for 256
            assert len(one) == size + 2 * -(-size // 256) + 18
            assert brought == 3 * CLIENTS * len(one)
        else:
            assert 0 < brought < 3 * CLIENTS * (size + 2 * -(-size // 256) + 18)


def test_walks_are_joined_once_for_all_clients_that_stand_at_one_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joined: list[int] = []

    class Counted(Changes):
        def __new__(cls, data: bytes) -> Counted:
            joined.append(len(data))
            return super().__new__(cls, data)

    monkeypatch.setattr("sfl_flower.server.downlink.Changes", Counted)
    heron([Fault("raise", {1}, {3})], downlink="scalars")
    # Four clients in five rounds; in round 4 one of them lacks a round more than the others.
    one, fewer = (len(walks_of(count)) for count in (CLIENTS, CLIENTS - 1))
    assert sorted(joined) == sorted([0, one, one, fewer, one + fewer, one])


def walks_of(clients: int) -> bytes:
    """Return a round of walks as a change."""
    scalars, taken = np.ones((STEPS, PROBES), np.float32), np.ones(STEPS, np.uint8)
    walk = LocalWalk(bytes(16), 1, 1.0, scalars, taken)
    return block("scalars", RoundOfWalks(1, 0.1, (walk,) * clients).encode())


def test_what_is_booked_of_walks_is_counted_once_however_many_are_sent_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[int] = []
    count = RoundOfWalks.bytes_of

    def counting(data: bytes) -> dict[str, int]:
        counted.append(len(data))
        return count(data)

    monkeypatch.setattr(RoundOfWalks, "bytes_of", counting)
    one, all_alike = MESSAGES["heron, followed"], Changes(walks_of(3))
    booked = [replace(one, changes=all_alike).draft().booked for _ in range(4)]
    assert len(counted) == 1
    assert booked == 4 * [{"scalars": 3 * 4 * STEPS * PROBES, "keys": 3 * 20}]
    assert replace(one, changes=bytes(all_alike)).draft().booked == booked[0]
    assert len(counted) == 2


@pytest.mark.parametrize("side", ["server.strategy", "node.node"])
@pytest.mark.parametrize("way", ["scalars", "int8"])
def test_another_device_holds_the_same_bits(
    way: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"downlink": way, "head_downlink": "int8", "rounds": 3}
    monkeypatch.setattr(SplitStrategy, "metering", lambda strategy, round: "none")
    here = all_of(heron(norm=True, **options))
    monkeypatch.setattr(f"sfl_flower.{side}.find_device", lambda *asked: SECOND)
    with second_device():
        there = {k: v.cpu() for k, v in all_of(heron(norm=True, **options)).items()}
        assert equal(here, there)


# Who stands where


@pytest.mark.parametrize("head", ["weights", "int8"])
@pytest.mark.parametrize("kind", ["forget", "rollback", "twice"])
def test_a_client_that_lost_its_state_is_brought_up_and_nothing_changes(
    kind: str, head: str
) -> None:
    options: dict[str, Any] = {"downlink": "scalars", "head_downlink": head}
    plain, lost = heron(**options), heron([Fault(kind, {1}, {2})], **options)
    assert equal(all_of(plain), all_of(lost))
    assert lost.total("failures") == lost.total("rejected") == 0
    # One that lost all lacks the request's terms first, then says that it holds what it built; one
    # whose state is an older one says that it stands a version back. Either is sent more changes.
    more = {"forget": 2, "rollback": 1, "twice": 0}[kind]
    assert requests(lost, 1) == [BUILT] + (4 + more) * [(False, True)]
    assert requests(plain, 1) == [BUILT] + 4 * [(False, True)]


@pytest.mark.parametrize(
    ("method", "way"), [("heron", "int8"), ("fsl_sage", "int8"), ("fsl_sage", "weights")]
)
def test_a_node_that_is_started_again_goes_on_from_its_files(
    method: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's context is gone, id and files are not: it asks for the request's terms alone."""
    monkeypatch.setenv("SFL_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("SFL_STATE_LIMIT", "0")
    own = BASE if method == "heron" else {"local_steps": 3, "align_every": 3, "rounds": 5}
    trials = {}
    for stopped in (False, True):
        rmtree(tmp_path)
        trial = trials[stopped] = begin(problem(), method, **own, downlink=way, head_downlink=way)

        def act(record: Any, trial: Trial = trial, stopped: bool = stopped) -> None:
            forget_held()
            if stopped and record.round == 3:
                trial.grid.contexts[trial.grid.nodes[1]].state = RecordDict()

        trial.strategy.account._on_round = act
        start(trial)
    plain, again = trials[False], trials[True]
    assert equal(all_of(plain), all_of(again))
    asked = [[n for kind, n, _ in t.grid.requests if kind != "join"] for t in (plain, again)]
    assert [asked[1].count(client) - asked[0].count(client) for client in range(4)] == [0, 1, 0, 0]
    files = [len(list(tmp_path.rglob(f"*-{node}.safetensors"))) for node in again.grid.nodes]
    assert len(set(files)) == 1


@pytest.mark.parametrize("kind", ["late", "mute", "raise", "drop"])
def test_a_client_that_does_not_answer_catches_up(kind: str) -> None:
    """Whether it got the request or not, it is believed: it says where it stands."""
    options: dict[str, Any] = {"downlink": "scalars", "head_downlink": "int8"}
    trial = heron([Fault(kind, {1}, {2}, types="local", times=1)], **options)
    twin = heron([Fault("raise", {1}, {2}, types="local", times=1)], **options)
    assert equal(all_of(trial), all_of(twin))
    assert trial.total("failures") == 1
    came = requests(trial, 1)
    stale = [(False, True)] if kind in ("late", "mute") else []
    assert came == [BUILT, (False, True), *stale, *3 * [(False, True)]]
    assert held_digest(held_by(trial, 1)) == held_digest(held_by(trial, 0))


def test_a_client_that_missed_rounds_is_sent_what_it_missed_or_the_whole() -> None:
    options: dict[str, Any] = {"downlink": "scalars", "rounds": 8, "local_steps": 1}
    gone = [Fault("raise", {1}, {3, 4, 5})]
    missing, bounded = heron(gone, **options), heron(gone, **{**options, "downlink": "auto"})
    assert equal(all_of(missing), all_of(bounded))
    assert requests(missing, 1) == [BUILT] + 7 * [(False, True)]
    # Walks of 4 steps in round 2, then of 3: at most a mini-batch of 4 samples times one step.
    assert requests(bounded, 1)[5] == (True, False)
    late = heron([Fault("raise", {1}, set(range(2, 8)))], **{**options, "probes": 128})
    # Six rounds of three or four walks of 128 scalars: the weights are fewer bytes.
    assert requests(late, 1)[-1] == (True, False)


# Error feedback


SIZE = 128


def row(*first: float) -> np.ndarray:
    """Return a vector that begins so and is zero after that."""
    return np.array([*first, *[0.0] * (SIZE - len(first))], np.float32)


class Twins:
    """A server's half that moves, and a client that is sent what changed, by hand."""

    def __init__(self, way: str, here: bool) -> None:
        self.half, self.head = nn.Linear(SIZE, 1, bias=False), nn.Linear(2, 1)
        nn.init.zeros_(self.half.weight)
        modules = {"client": self.half, "head": self.head}
        ways = {"client": way, "head": "weights"}
        self.down = Downlink(modules, ways, ("client",) if here else ())
        self.member = Member(0, 7, 12)
        self.theirs = np.zeros(SIZE, np.float32)
        self.way = way

    def move(self, to: np.ndarray) -> None:
        """Let the server's weights become these, and the client's what it is sent."""
        self.down.plans({self.member: 1})
        self.down.synced([self.member])
        with torch.no_grad():
            self.half.weight.copy_(torch.from_numpy(to.astype(np.float32)).reshape(1, SIZE))
        self.down.advance(Tally())
        plan = self.down.plans({self.member: 1})[self.member]
        data = plan.told["changes"]
        assert data[:1] == b"\2"
        self.theirs = self.theirs + decode_difference(self.way, data[5:], SIZE)
        assert plan.told["holds"] == held_digest({"client": self.theirs})

    @property
    def ours(self) -> np.ndarray:
        return self.half.weight.detach().numpy().reshape(-1)


def test_what_a_difference_lacks_is_part_of_the_next_by_hand() -> None:
    """Scale 1: -127 arrives, 0.25 becomes nothing; the third time 0.75 becomes 1."""
    twins = Twins("int8", here=False)
    for times, arrived in enumerate((0, 0, 1), 1):
        # The mean of the clients' steps begins at what they hold, and moves by -127 and 0.25.
        twins.move(twins.ours + row(-127, 0.25))
        assert np.array_equal(twins.theirs, row(-127 * times, arrived))
        assert np.array_equal(twins.ours, twins.theirs)
    lacks = twins.down.tensors()["downlink.lacks.client"]
    assert np.array_equal(lacks.numpy(), row(0, -0.25))


def test_what_the_server_trains_stays_its_own() -> None:
    twins = Twins("int8", here=True)
    for times, arrived in enumerate((0, 0, 1), 1):
        twins.move(times * row(-127, 0.25))
        assert np.array_equal(twins.ours, times * row(-127, 0.25))
        assert np.array_equal(twins.theirs, row(-127 * times, arrived))
    assert "downlink.lacks.client" not in twins.down.tensors()


@pytest.mark.parametrize("way", ["int8", "int4", "topk:0.25+int4"])
@pytest.mark.parametrize("here", [False, True])
def test_nothing_drifts_over_many_rounds(way: str, here: bool) -> None:
    """All that was ever wanted arrives but for the last difference's loss."""
    twins, rng = Twins(way, here), np.random.default_rng(0)
    wanted, largest = np.zeros(SIZE), 0.0
    for _ in range(200):
        step = rng.standard_normal(SIZE).astype(np.float32)
        twins.move((wanted if here else twins.ours) + step)
        wanted += step
        largest = max(largest, float(np.abs(twins.theirs - wanted).max()))
    assert largest < {"int8": 0.1, "int4": 0.6, "topk:0.25+int4": 8.0}[way]
    assert np.abs(wanted).max() > 10


def test_a_difference_that_cannot_be_written_is_a_download() -> None:
    twins = Twins("float16", here=True)
    twins.move(np.ones(SIZE))
    with torch.no_grad():
        twins.half.weight.fill_(1e5)
    tally = Tally()
    twins.down.advance(tally)
    assert re.search(
        r"All clients download the client half again: .*float16 ends at", tally.notes[0]
    )
    plan = twins.down.plans({twins.member: 1})[twins.member]
    assert "base" not in plan.told and plan.weights["float32"].tolist() == [1e5] * SIZE


def test_what_moved_without_walks_comes_whole_and_what_stood_does_not() -> None:
    """As after a mean that was taken back, or one that no walks tell of."""
    half, head = nn.Linear(SIZE, 1), nn.Linear(SIZE, 2)
    down = Downlink(
        {"client": half, "head": head}, {"client": "scalars", "head": "int8"}, ("head",)
    )
    member = Member(0, 7, 12)
    down.plans({member: 1})
    down.synced([member])
    nn.init.ones_(head.weight)
    down.advance(Tally())
    told = down.plans({member: 1})[member].told
    assert told["changes"][:1] == b"\3" and "base" in told
    nn.init.ones_(half.weight)
    down.advance(Tally())
    plan = down.plans({member: 1})[member]
    assert "base" not in plan.told
    assert plan.weights["float32"][1:].tolist() == [1.0] * SIZE


# Checkpoints


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("heron", {"downlink": "scalars", "head_downlink": "int8", "sampled": 2}),
        ("heron", {"downlink": "int4", "head_downlink": "topk:0.1+int4"}),
        ("heron", {"downlink": "int4", "head_downlink": "int4", "head_trainer": "client"}),
        ("cse_fsl", {"downlink": "int4", "head_downlink": "int8", "sampled": 3}),
    ],
)
def test_a_resumed_run_goes_on_to_the_same_bits(
    method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    own = BASE if method == "heron" else {"local_steps": 2, "rounds": 5, "client_lr": 0.1}
    options = {**own, **options}
    whole = tiny.run(problem(), method, out=tmp_path / "whole", **options)
    with pytest.raises(Stop):
        tiny.run(problem(), method, out=tmp_path / "parts", observer=stop_after(3), **options)
    resumed = tiny.run(problem(), method, out=tmp_path / "parts", resume=True, **options)
    assert equal(whole.model, resumed.model)
    assert history(resumed.history) == history(whole.history)


# CSE-FSL


def test_cse_fsl_brings_differences_down_and_learns_as_before() -> None:
    options: dict[str, Any] = {"local_steps": 2, "rounds": 6, "client_lr": 0.1}
    plain = train(problem(), "cse_fsl", **options)
    coded = train(problem(), "cse_fsl", downlink="int8", head_downlink="int8", **options)
    ledgers = [trial.strategy.ledger for trial in (plain, coded)]
    assert ledgers[0].up["weights"] == ledgers[1].up["weights"] == 6 * CLIENTS * 4 * CLIENT
    for name in ("weights", "auxiliary"):
        assert ledgers[1].down[name] < 0.4 * ledgers[0].down[name]
    apart = max(float((plain.model[name] - coded.model[name]).abs().max()) for name in plain.model)
    assert 0 < apart < 0.02
    now = flat_values(followed_state(coded.strategy.client_half))
    assert np.array_equal(now, coded.strategy.downlink._held["client"])


# Bad input on the client


def node(held: Mapping[str, np.ndarray] | None) -> Node:
    """Return a client that remembers this."""
    context = Context(1, 2, {}, RecordDict(), {})
    store = NodeStore(context)
    if held is not None:
        store.put("held", held)
    made = problem()
    rows = np.arange(12)
    samples = made.samples("train", context)
    cpu = torch.device("cpu")
    return Node(made, 0, "0c", 0, samples, rows, store, cpu, "as_built")


def halves() -> LocalModel:
    model = LocalModel(nn.Linear(2, 3), nn.Linear(3, 1))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    return model


MODEL = halves()
HELD = {"client": flat_values(followed_state(MODEL.client))}
ONES = encode_difference("int8", np.ones(9, np.float32))
BETTER = {"client": HELD["client"] + decode_difference("int8", ONES, 9)}
REQUEST = LocalRequest(
    4, 3, 2, 8, SETUP, "linear", "{}", False, {}, pack_state(MODEL.head.state_dict()),
    downlink="int8", holds=held_digest(BETTER), base=held_digest(HELD),
    changes=block("client", ONES),
)  # fmt: skip


BUILT_DIGEST = held_digest(
    {"client": flat_values(followed_state(problem().build(0).client))}
)  # by a client that remembers nothing
ELSEWHERE = {"client": np.ones(9, np.float32)}


def test_a_client_follows_what_changed() -> None:
    forget_held()
    own, model = node(HELD), halves()
    assert follow(own, REQUEST, model) is None
    assert np.array_equal(flat_values(followed_state(model.client)), BETTER["client"])
    kept = own.store.get("held")
    assert kept is not None and held_digest(kept) == REQUEST.holds
    # Once more from there: it answers what it holds.
    assert follow(own, REQUEST, halves()) == StaleReply(4, held_digest(BETTER))
    again = replace(REQUEST, base=REQUEST.holds, changes=None)
    assert follow(own, again, model) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"changes": block("client", b"")}, "cut short, or not in this encoding"),
        ({"changes": b"\1"}, "cut short before the end of a head"),
        (
            {"changes": block("client", encode_difference("int8", np.ones(8, np.float32)))},
            "is of 8 values, this model has 9",
        ),
        ({"changes": block("client", ONES[:-2] + b"\x80\x7f")}, "a scale that is not finite"),
        ({"changes": block("head", b"")}, "tell of the head, which does not come so"),
        ({"changes": block("scalars", b"")}, "hold walks, which this method has none of"),
        ({"base": None, "weights": pack_state(MODEL.client.state_dict())}, "not those that the"),
        ({"weights": {"float32": np.ones(2, np.float32)}}, "run different models"),
        ({"head_weights": {}}, "run different models"),
    ],
)  # fmt: skip
def test_changes_that_do_not_fit_are_refused_with_a_sentence(
    change: dict[str, Any], says: str
) -> None:
    forget_held()
    with pytest.raises(WireError, match=says):
        follow(node(HELD), replace(REQUEST, **change), halves())


@pytest.mark.parametrize(
    ("held", "digest"),
    [(None, BUILT_DIGEST), (ELSEWHERE, held_digest(ELSEWHERE))],
)  # fmt: skip
def test_a_client_elsewhere_says_what_it_holds(
    held: dict[str, np.ndarray] | None, digest: str
) -> None:
    forget_held()
    assert follow(node(held), REQUEST, halves()) == StaleReply(4, digest)


def test_changes_that_lead_elsewhere_are_asked_for_whole() -> None:
    forget_held()
    other = block("client", encode_difference("int8", np.full(9, 2.0, np.float32)))
    assert follow(node(HELD), replace(REQUEST, changes=other), halves()) == StaleReply(4, "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"holds": None}, "what the client is to hold"),
        ({"downlink": "weights"}, "says it needlessly"),
        ({"base": None}, "changes without saying since when"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(WireError, match=says):
        LocalRequest.from_content(replace(REQUEST, **change).to_content())
    with pytest.raises(WireError, match="has downlink='int9', which is no way down"):
        LocalRequest.from_content(replace(REQUEST, downlink="int9").to_content())


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"downlink": "int7"}, "downlink is 'int7'; it must be weights, scalars, auto or an enc"),
        ({"downlink": "float32"}, "no fewer bytes than the weights"),
        ({"head_downlink": "scalars"}, "head_downlink is 'scalars'; it must be weights or an enc"),
        ({"downlink": "auto", "uplink": "weights"}, "no scalars to send on; use uplink=scalars"),
        (
            {"downlink": "scalars", "head_trainer": "client", "head_downlink": "int8"},
            "the head comes with the walks; leave head_downlink out",
        ),
        ({"downlink": "auto", "aggregator": "median"}, "follow walks to their mean; use agg"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_options({"method": "heron", **options})


def test_cse_fsl_has_no_walks_and_others_have_no_such_option() -> None:
    with pytest.raises(ConfigError, match="downlink is 'scalars'; it must be weights or an enc"):
        read_options({"method": "cse_fsl", "downlink": "scalars"})
    with pytest.raises(ConfigError, match="Unknown option of method 'splitfed_v2'"):
        read_options({"method": "splitfed_v2", "downlink": "int8"})


@pytest.mark.simulation
def test_flowers_simulation_gives_the_bits_of_one_process() -> None:
    options: dict[str, Any] = {
        "rounds": 3, "clients": 3, "sampled": 2, "seed": 1, "eval_every": 3, "probes": 4,
        "downlink": "scalars", "head_downlink": "int8",
    }  # fmt: skip
    ours, theirs = (
        simulate("digits", "heron", backend=backend, **options) for backend in ("inline", "ray")
    )
    assert equal(ours.model, theirs.model)
    assert ours.summary.ledger == theirs.summary.ledger
