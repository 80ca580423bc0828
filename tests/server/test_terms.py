"""What a request repeats is sent once, and again to a client that lost it."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from sfl_flower.cli.demo import DEMO_METHODS, SHARED
from sfl_flower.config import RunConfig
from sfl_flower.methods import METHODS
from sfl_flower.tasks import load_task
from sfl_flower.wire import UnknownTerms, content_bytes
from sfl_flower.wire.draft import Draft
from sfl_flower.wire.terms import KEPT, keep_terms, terms_digest, with_terms
from sfl_flower.zo import tail_bytes
from tests import tiny
from tests.local_grid import Fault, serde
from tests.tiny import Trial, begin, equal, start, train

pytestmark = pytest.mark.flower


class Place:
    """Stands in for Flower's context."""

    def __init__(self) -> None:
        self.state = RecordDict()


def request(brief: bool, **terms: Any) -> RecordDict:
    draft = Draft()
    draft.standing = True
    for setting in terms.items():
        draft.setting(*setting)
    draft.standing = False
    draft.setting("round", 4)
    return draft.content(brief)


def test_terms_travel_once_and_are_then_named() -> None:
    context: Any = Place()
    whole, brief = (request(brief, seed=7, mu=0.1, law="sphere") for brief in (False, True))
    assert with_terms(context, whole) is whole
    assert with_terms(context, brief) is None
    terms = {key: value for key, value in whole["config"].items() if key != "round"}
    assert dict(brief["config"]) == {"terms": terms_digest(terms), "round": 4}
    keep_terms(context, terms)
    back = with_terms(context, brief)
    assert back is not None
    assert dict(back["config"]) == dict(whole["config"])
    assert with_terms(context, request(True, seed=8)) is None


def test_a_client_keeps_the_last_terms_only() -> None:
    context: Any = Place()
    for seed in range(KEPT + 3):
        keep_terms(context, {"seed": seed})
    kept = context.state.config_records["terms"]
    assert list(kept) == [terms_digest({"seed": seed}).hex() for seed in range(3, KEPT + 3)]
    keep_terms(context, {"seed": 5})
    assert list(kept) == list(context.state.config_records["terms"])


def settings(trial: Trial, client: int) -> list[list[str]]:
    """Return the names of the settings in each training request to a client."""
    sent = [(kind, c["config"]) for kind, at, c in trial.grid.requests if at == client]
    return [sorted(config) for kind, config in sent if kind != "join"]


@pytest.mark.parametrize("method", METHODS)
def test_a_request_is_brief_from_the_second_round_on(method: str) -> None:
    trial = train(tiny.task(), method, rounds=3)
    assert trial.total("replies") == 12
    for names in settings(trial, 1)[-1:]:
        assert "terms" in names
        standing = {"key", "model-seed", "partition", "protocol", "batch-size", "law", "mu"}
        assert not standing & set(names)
    assert {"key", "model-seed"} <= set(settings(trial, 1)[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_client_that_lost_its_terms_gets_the_whole_request(method: str) -> None:
    trial = begin(tiny.task(), method, rounds=3)
    deliver, lost = trial.grid.deliver, [3]

    def forgetful(message: Any) -> Any:
        node = message.metadata.dst_node_id
        round = message.content.config_records["config"].get("round")
        if node == trial.grid.nodes[1] and round in lost:
            lost.remove(round)
            del trial.grid.contexts[node].state["terms"]
        return deliver(message)

    trial.grid.deliver = forgetful  # type: ignore[method-assign]
    start(trial)
    assert (trial.total("replies"), trial.notes, lost) == (12, "", [])
    assert equal(trial.model, train(tiny.task(), method, rounds=3).model)
    names = settings(trial, 1)
    assert sum("key" in sent for sent in names) > sum("key" in s for s in settings(trial, 2))


def test_a_client_that_never_knows_its_terms_is_refused() -> None:
    def lacking(content: RecordDict) -> RecordDict:
        return UnknownTerms().to_content()

    trial = train(tiny.task(), "frozen", [Fault("change", {2}, change=lacking)], rounds=3)
    assert [(r.replies, r.rejected) for r in trial.strategy.records[1:]] == [(3, 1)] * 3
    assert "The reply of client 2 is not used: A forward reply message has status='terms'" in (
        trial.notes
    )
    ledger = trial.strategy.ledger
    assert ledger.bytes_up == sum(content_bytes(c) for _, _, c in trial.grid.replies)
    assert ledger.bytes_down == sum(content_bytes(c) for _, _, c in trial.grid.requests)


def test_terms_that_a_client_changed_are_not_those_it_is_asked_for() -> None:
    context: Any = Place()
    context.state["terms"] = ConfigRecord({terms_digest({"seed": 1}).hex(): "[1"})
    brief = RecordDict({"config": ConfigRecord({"terms": terms_digest({"seed": 1})})})
    assert with_terms(context, brief) is None


@pytest.mark.parametrize("model", ["demo", "dense"])
def test_a3_framing_is_a_tenth_of_a_round_of_the_demo(model: str) -> None:
    """A round of HO-SFL in `sfl demo`, once everyone has the terms: what is not payload."""
    chosen: dict[str, Any] = {**SHARED, **DEMO_METHODS["ho_sfl"], "eval_every": 6}
    own = {} if model == "dense" else {"model": chosen["task.model"]}
    options = {"batch_size": RunConfig.batch_size, **chosen}
    options = {key: value for key, value in options.items() if not key.startswith("task")}
    trial = begin(load_task("digits", **own), "ho_sfl", **{**options, "rounds": 6})
    start(trial)
    at = [record.bytes_up + record.bytes_down for record in trial.strategy.records]
    round = [
        content
        for _, _, content in [*trial.grid.requests, *trial.grid.replies]
        if content["config"].get("round") == 6
    ]
    total = sum(content_bytes(content) for content in round)
    assert total == at[6] - at[5]
    values = sum(len(a.data) for content in round for a in content["arrays"].values())
    tails = [c["arrays"]["tail"].data for c in round if "tail" in c["arrays"]]
    payload = values - sum(len(data) - sum(tail_bytes(data).values()) for data in tails)
    assert len(tails) == len(round) / 4 == options["clients"]
    # A tenth; of so small a payload that each byte of labels, one a sample, is seen in the share.
    assert total - payload <= 280 * options["clients"]
    assert total - payload <= 0.105 * total, (payload, total)
    if serde is not None:  # with the envelope of Flower's encoding
        encoded = sum(int(serde.recorddict_to_proto(content).ByteSize()) for content in round)
        assert encoded - payload <= 0.20 * encoded, (payload, encoded)
