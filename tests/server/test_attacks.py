"""What attackers reach: steps with one liar in five, beside those of five honest clients."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.attackers import ATTACKS, WITHIN, attacked
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import Trial, begin, equal, start, train

pytestmark = pytest.mark.flower

FORMS: dict[str, dict[str, Any]] = {
    "ho_sfl": {**tiny.PAPER, "directions": "shared", "server_lr": 0.0, "client_lr": 1.0},
    "heron": {"probes": 4, "server_lr": 0.0, "head_lr": 0.0, **tiny.STEADY["heron"]},
}
SAID = ("sign_flip", "little", "scaled", "gaussian", "collude")
"""The attacks through scalars that the mean follows."""


def trial(method: str, attack: str, alike: bool = False, **options: Any) -> Trial:
    """Return a run of five clients, of whom the last attacks; alike, with the same mini-batch."""
    lying = method if attack == "honest" else attacked(method, attack, {4})
    given: dict[str, Any] = {"clients": 5, "rounds": 1, **FORMS[method], **options}
    shares = [tiny.samples(24)] * 5 if alike else None
    problem = tiny.task(shares, clients=5, each=24)
    return begin(problem, lying, **given)  # type: ignore[arg-type]


@cache
def moved(attack: str, aggregator: str) -> Tensor:
    """Return the step of the client half of HO-SFL in one round, flat."""
    run = trial("ho_sfl", attack, alike=True, batch_size=24, aggregator=aggregator)
    before = tiny.flat(run.model, tiny.CLIENT_NAMES)
    return tiny.flat(start(run).model, tiny.CLIENT_NAMES) - before


@pytest.mark.parametrize("attack", SAID)
def test_a_liar_moves_the_mean_and_nothing_that_is_robust(attack: str) -> None:
    """Four clients find the same, but for rounding; with the mean the liar takes a part of it."""
    honest = moved("honest", "mean")
    off = {
        how: float((moved(attack, how) - honest).norm() / honest.norm())
        for how in ("mean", "median", "trimmed:0.2", "multikrum:1", "clip:1", "nnm:1+median")
    }
    exact = {"little": 1.5 / 5, "sign_flip": 2 / 5, "scaled": (1 + WITHIN) / 5}
    assert off["mean"] == pytest.approx(exact.get(attack, off["mean"]), rel=0.02)
    assert off["mean"] > 0.25
    assert max(far for how, far in off.items() if how != "mean") < 0.05, off


@pytest.mark.parametrize("method", FORMS)
def test_attackers_stay_within_what_is_believed_and_others_are_as_they_were(method: str) -> None:
    kind = {"ho_sfl": "probe", "heron": "local"}[method]

    def said(attack: str) -> dict[int, Tensor]:
        run = start(trial(method, attack, aggregator="median"))
        assert run.total("rejected") == run.total("failures") == 0
        return {
            client: torch.from_numpy(values(content["arrays"]["scalars"]).copy())
            for action, client, content in run.grid.replies
            if action == kind
        }

    honest = said("honest")
    for attack in SAID:
        found = said(attack)
        assert all(torch.equal(found[client], honest[client]) for client in range(4))
        assert not torch.equal(found[4], honest[4])
        size = {who: float(each[4].double().square().mean().sqrt()) for who, each in
                (("liar", found), ("honest", honest))}  # fmt: skip
        assert size["liar"] <= 2 * WITHIN * size["honest"]  # normal numbers vary


@pytest.mark.parametrize("method", FORMS)
def test_wrong_labels_and_constant_z_are_sent_by_attackers_alone(method: str) -> None:
    kind = {"ho_sfl": "forward", "heron": "local"}[method]

    def sent(attack: str) -> dict[int, Any]:
        run = start(trial(method, attack))
        return {at: content for action, at, content in run.grid.replies if action == kind}

    honest, wrong, constant = (sent(attack) for attack in ("honest", "labels", "constant_z"))
    for at in range(5):
        y, flipped = (values(each[at]["arrays"]["y"]) for each in (honest, wrong))
        assert (flipped == (2 - y if at == 4 else y)).all()
        z = values(constant[at]["arrays"]["z"])
        assert (z == z.reshape(-1)[0]).all() == (at == 4)
    assert start(trial(method, "constant_z")).strategy.records[1].clients == {
        "constant smashed data": (4,)
    }


def test_every_attack_is_known_by_what_it_does() -> None:
    assert set(SAID) < set(ATTACKS) and all(said for said, _ in ATTACKS.values())


@pytest.mark.parametrize(("method", "kind"), [("ho_sfl", "probe"), ("heron", "local")])
def test_a_replayed_answer_is_refused_as_if_there_were_none(method: str, kind: str) -> None:
    """The answer of round 1 again in round 2; with the round set right it is the client's own lie.

    Stale scalars of HO-SFL are known by the journal; a walk of HERON-SFL is one of many.
    """
    kept: list[Any] = []

    def keep(content: Any) -> Any:
        kept.append(content)
        return content

    faults = [
        Fault("change", {3}, {1}, kind, change=keep),
        Fault("change", {3}, {2}, kind, change=lambda content: kept[0]),
    ]
    replayed = train(tiny.task(), method, faults, rounds=2)
    silent = train(tiny.task(), method, [Fault("raise", {3}, {2}, kind)], rounds=2)
    assert equal(replayed.model, silent.model)
    assert replayed.strategy.records[2].clients == {"refused": (3,)}
    assert "The reply of client 3 is not used: " in replayed.notes
    kept.clear()
    faults[1] = Fault(
        "change", {3}, {2}, kind, change=lambda content: changed(kept[0], config={"round": 2})
    )
    found = train(tiny.task(), method, faults, rounds=2).strategy.records[2]
    assert found.clients == {"ho_sfl": {"repeated scalars": (3,)}, "heron": {}}[method]
