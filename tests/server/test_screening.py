"""Replies far beyond what is usual: refused by name, honest ones never."""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from sfl_flower.config import RunConfig
from sfl_flower.errors import WireError
from sfl_flower.server.roster import Member
from sfl_flower.server.screening import SCALARS, SMASHED, Screening, _deviation, _median
from sfl_flower.server.tally import Tally
from tests import tiny
from tests.local_grid import Fault, changed, values
from tests.tiny import begin, equal, run, train

pytestmark = pytest.mark.flower

SETTINGS = RunConfig(clients=5, outlier_factor=4.0)


def sizes(*each: float) -> dict[Member, np.ndarray]:
    """Return replies whose root mean squares are these."""
    return {Member(k, 100 + k): np.array([[s, -s]], np.float32) for k, s in enumerate(each)}


def kept(screening: Screening, *each: float, what: str = SCALARS) -> tuple[list[int], str]:
    tally = Tally()
    members = screening.keep(what, sizes(*each), tally)
    assert tally.rejected == len(each) - len(members)
    return [member.partition for member in members], "\n".join(tally.notes)


def times(name: str, factor: float) -> Any:
    def change(content: Any) -> Any:
        old = content.array_records["arrays"].get(name)
        if old is None:
            return content
        return changed(content, arrays={name: values(old) * np.float32(factor)})

    return change


def test_c5_a_reply_beyond_the_spread_is_refused_by_name() -> None:
    """Equal replies have no spread, so σ counts as 0.25: 4 e^(3 · 0.25) = 8.47 is believed."""
    most = 4.0 * math.exp(0.75)
    assert most == pytest.approx(8.468, abs=1e-3)
    assert kept(Screening(SETTINGS), 1, 1, 1, 1, 8.4)[0] == [0, 1, 2, 3, 4]
    left, notes = kept(Screening(SETTINGS), 1, 1, 1, 1, 8.6)
    assert left == [0, 1, 2, 3]
    assert "The reply of client 4 is not used: its scalars are 8.6 times as large as usual" in notes
    assert "at most 8.47 times is believed; raise outlier-factor, or set it to 0" in notes


@pytest.mark.parametrize("seed", range(40))
def test_median_and_deviation_are_those_of_statistics(seed: int) -> None:
    """Found by halving, to the bit, with numbers that occur more than once."""
    draw = random.Random(seed)
    numbers = sorted(draw.choice([0.0, 1.0, draw.gauss(0, 3)]) for _ in range(1 + seed % 9))
    middle = _median(numbers)
    assert middle == median(numbers)
    assert _deviation(numbers, middle) == median(abs(number - middle) for number in numbers)


def test_replies_beyond_the_last_rounds_are_forgotten() -> None:
    """10 rounds of a cohort of 2: of 15 rounds the last 20 replies, whoever sent them."""
    screening = Screening(RunConfig(clients=5, sampled=2, outlier_factor=4.0))
    for round in range(15):
        pair = [Member(round % 5, 1), Member((round + 1) % 5, 2)]
        big = 100.0 if round == 14 else 1.0
        arrays = [np.full(3, 1.0 + 0.01 * round), np.full(3, big)]
        screening.keep(SCALARS, dict(zip(pair, arrays, strict=True)), Tally())
    seen = screening._seen[SCALARS]
    assert len(seen.rows) == 20 and sum(map(len, seen.own.values())) == 20
    assert seen.used == sorted(size for _, size, used in seen.rows if used)
    assert len(seen.used) == 19  # the last was refused
    again = Screening(RunConfig(clients=5, sampled=2))
    again.load_tensors(screening.tensors())
    assert (again._seen[SCALARS].used, again._seen[SCALARS].own) == (seen.used, seen.own)


def test_c5_what_is_believed_follows_the_spread() -> None:
    """Sizes of which most are e times more or less: σ = 1.4826, 4 e^(3 · 1.4826) = 342."""
    spread = [1 / math.e, 1 / math.e, 1.0, 1.0, math.e, math.e]
    assert len(kept(Screening(SETTINGS), *spread, 335)[0]) == 7
    assert kept(Screening(SETTINGS), *spread, 350)[0] == [0, 1, 2, 3, 4, 5]


def test_c5_a_client_that_exaggerates_every_time_is_found() -> None:
    """Six times is less than 8.47 once, but more than 4 e^0.25 = 5.14 in the median of four."""
    screening = Screening(SETTINGS)
    rounds = [kept(screening, 1, 1, 1, 1, 6) for _ in range(5)]
    assert [len(left) for left, _ in rounds] == [5, 5, 5, 4, 4]
    assert (
        "its last 4 replies' scalars are 6 times as large as usual, and at most 5.14"
        in (rounds[3][1])
    )
    honest = Screening(SETTINGS)
    assert all(len(kept(honest, 1, 1, 1, 1, 5)[0]) == 5 for _ in range(9))


def test_c5_what_all_clients_do_at_once_is_usual() -> None:
    screening = Screening(SETTINGS)
    kept(screening, 1, 1, 1, 1, 1)
    assert len(kept(screening, 500, 500, 500, 500, 500)[0]) == 5
    assert kept(screening, 500, 500, 500, 500, 1e5)[0] == [0, 1, 2, 3]


def test_c5_kinds_are_known_apart_and_zeros_and_few_replies_tell_nothing() -> None:
    screening = Screening(SETTINGS)
    kept(screening, 1, 1, 1, 1, 1)
    assert len(kept(screening, 900, 900, 900, 900, 900, what=SMASHED)[0]) == 5
    assert kept(Screening(SETTINGS), 1, 1e6)[0] == [0, 1]
    assert kept(Screening(SETTINGS), 0, 0, 0, 1, 1e-9)[0] == [0, 1, 2, 3, 4]
    assert kept(Screening(RunConfig(outlier_factor=0)), 1, 1, 1, 1, 1e30)[0] == [0, 1, 2, 3, 4]
    empty = {Member(k, k): np.zeros((0, 5), np.float32) for k in range(4)}
    assert len(screening.keep(SMASHED, empty, Tally())) == 4


def test_c5_replies_that_are_used_one_after_another_are_held_against_those_before() -> None:
    screening = Screening(SETTINGS)
    for member, value in sizes(1, 1, 1, 1, 1).items():
        screening.check(SMASHED, member, value)
    with pytest.raises(WireError, match=r"its smashed data are 1e\+03 times as large as usual"):
        screening.check(SMASHED, Member(2, 102), np.full((2, 3), 1e3, np.float32))


CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("ho_sfl", "probe", "scalars", {}),
    ("ho_sfl", "forward", "z", {}),
    ("frozen", "forward", "z", {}),
    ("heron", "local", "scalars", {"local_steps": 2, "scalar_limit": 1e30}),
    ("heron", "local", "z", {}),
    ("cse_fsl", "local", "z", {}),
    ("fsl_sage", "local", "z", {}),
    ("splitfed_v1", "step", "z", {}),
    ("splitfed_v2", "step", "z", {}),
    ("decomfl", "walk", "scalars", {}),
    ("mu_splitfed", "forward", "anchor", {}),
    ("zo_sfl", "step", "z", {}),
]


@pytest.mark.parametrize(("method", "kind", "name", "options"), CASES)
def test_c5_one_client_in_four_that_exaggerates_is_refused_in_every_method(
    method: str, kind: str, name: str, options: dict[str, Any]
) -> None:
    rounds = range(2, 9)
    fault = Fault("change", {2}, rounds, kind, change=times(name, 1e4))
    trial = train(tiny.task(), method, [fault], rounds=3, **options)
    assert [r.rejected for r in trial.strategy.records[1:]] == [0, 1, 1]
    assert [r.replies for r in trial.strategy.records[1:]] == [4, 3, 3]
    assert trial.notes.count("The reply of client 2 is not used: its ") == 2
    off = train(tiny.task(), method, [fault], rounds=3, outlier_factor=0, **options)
    assert "times as large as usual" not in off.notes


def test_c5_a_refused_reply_leaves_the_model_of_a_run_without_it() -> None:
    fault = Fault("change", {2}, {2}, "probe", change=times("scalars", -1e4))
    missing = Fault("raise", {2}, {2}, "probe")
    runs = [train(tiny.task(), "ho_sfl", [each], rounds=3) for each in (fault, missing)]
    assert equal(runs[0].model, runs[1].model)
    assert runs[0].strategy.digest == runs[1].strategy.digest


def test_c5_a_resumed_run_knows_what_is_usual(tmp_path: Path) -> None:
    """The cohort is too small for its own round to tell."""
    fault = Fault("change", {0, 1, 2, 3}, {3}, "probe", change=times("scalars", 1e4))
    options: dict[str, Any] = {"sampled": 2, "rounds": 4}
    whole = run(tiny.task(), "ho_sfl", [fault], **options)
    assert [record.rejected for record in whole.history] == [0, 0, 0, 2, 0]
    run(tiny.task(), "ho_sfl", [fault], out=tmp_path, **{**options, "rounds": 2})
    resumed = run(tiny.task(), "ho_sfl", [fault], out=tmp_path, resume=True, **options)
    assert equal(whole.model, resumed.model)


def test_c5_what_was_seen_comes_back_from_a_checkpoint() -> None:
    first = begin(tiny.task()).strategy.screening
    kept(first, 1, 2, 3)
    again = Screening(RunConfig(clients=4))
    again.load_tensors({**first.tensors(), "client.weight": torch.ones(2)})
    assert {k: v.tolist() for k, v in again.tensors().items()} == {
        k: v.tolist() for k, v in first.tensors().items()
    }


@pytest.mark.parametrize("method", ["ho_sfl", "heron", "decomfl"])
def test_c5_honest_clients_with_a_class_each_are_never_refused(method: str) -> None:
    whole = tiny.samples(240)
    shares = [whole.take(torch.nonzero(whole.y == label).ravel().numpy()) for label in range(3)]
    trial = train(tiny.task(shares), method, rounds=60, clients=3)
    assert trial.total("rejected") == 0
