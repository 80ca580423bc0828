"""What is recommended, on costs that a person can read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sfl_flower.errors import ConfigError
from sfl_flower.profiling.advice import advise
from sfl_flower.profiling.costs import Cost, Setting
from sfl_flower.profiling.cuts import WHOLE, CutProfile
from sfl_flower.profiling.peaks import Peak

MIB = 2**20
SETTING = Setting(batch_size=32, bandwidth=8e6)
ROW = CutProfile("early", 1000, 600, 200, 0, 0, 0.0, (1,), 4, Peak(0), Peak(0), 0.0, 0.0)
ROWS = (ROW, replace(ROW, at="late", trainable=5000), replace(ROW, at=WHOLE))


def cost(method: str, memory: float, compute: float, transfer: float) -> Cost:
    """Return a cost of MiB and seconds; a second at 8 Mbit/s is a million bytes."""
    moved = int(transfer * 1e6)
    return Cost(method, moved, 1024, int(memory * MIB), compute, transfer)


def table(
    *early: Cost, late: tuple[Cost, ...] = (), whole: tuple[Cost, ...] = ()
) -> dict[str, dict[str, Cost]]:
    rows = {"early": early, "late": late, WHOLE: whole}
    return {at: {cost.method: cost for cost in costs} for at, costs in rows.items()}


COSTS = table(
    cost("frozen", 1, 0.1, 1),
    cost("ho_sfl", 10, 1, 2),
    cost("heron", 12, 1, 4),
    cost("splitfed_v2", 40, 0.5, 2),
    cost("cse_fsl", 50, 0.5, 1),
    late=(cost("ho_sfl", 20, 1, 1), cost("splitfed_v2", 80, 1, 1), cost("cse_fsl", 90, 1, 0.2)),
    whole=(cost("fedavg", 200, 2, 8), cost("decomfl", 15, 0.5, 0)),
)


def test_with_any_memory_the_fastest_backprop() -> None:
    chosen, other = advise(ROWS, COSTS, SETTING, None)
    assert chosen == (
        "Recommended: cse_fsl, cut at 'late': backprop on the loss of an auxiliary head. A step "
        "takes 90.0 MiB of memory and 1.2 s: 1 s of computing and 0.2 s of transfer (up 195.3 KiB, "
        "down 1.0 KiB, at 8 Mbit/s); the client trains 5,000 parameters."
    )
    assert other == (
        "Next best: splitfed_v2, cut at 'late', but a step takes 2 s: 1 s of computing and 1 s of "
        "transfer of 977.6 KiB."
    )


def test_another_cut_where_that_one_needs_too_much() -> None:
    fits, chosen, other = advise(ROWS, COSTS, SETTING, 60 * MIB)
    assert fits == (
        "Into 60.0 MiB fit splitfed_v2 at 1 of 2 cuts, cse_fsl at 1 of 2 cuts, ho_sfl at 2 of 2 "
        "cuts, heron at 1 of 1 cuts, decomfl; not fedavg (needs 200.0 MiB)."
    )
    assert chosen.startswith("Recommended: cse_fsl, cut at 'early': ")
    assert other.startswith("Next best: splitfed_v2, cut at 'early', but a step takes 2.5 s")


def test_forwards_where_backprop_does_not_fit() -> None:
    fits, chosen, other = advise(ROWS, COSTS, SETTING, 30 * MIB)
    assert "not splitfed_v2 (needs 40.0 MiB), cse_fsl (needs 50.0 MiB), fedavg" in fits
    # decomfl is faster, but the server half learns by backprop here.
    assert chosen.startswith("Recommended: ho_sfl, cut at 'late': forwards on the client, ")
    assert chosen.endswith("so train little of it or raise probes.")
    assert other == (
        "Next best: cse_fsl, cut at 'early', but it needs 50.0 MiB or more, and a client has "
        "30.0 MiB."
    )


def test_a_method_of_another_class_is_next() -> None:
    costs = table(cost("ho_sfl", 10, 1, 2), whole=(cost("decomfl", 5, 0.1, 0),))
    said = advise(ROWS, costs, SETTING, None)[-1]
    assert said == (
        "Next best: decomfl, without a cut, but less of the model learns by backprop (forwards "
        "alone)."
    )


def test_nothing_fits_or_nothing_is_trained() -> None:
    says = r"client-memory is 2.0 MiB; no method .* need is 10.0 MiB, of ho_sfl, cut at 'early'"
    with pytest.raises(ConfigError, match=says):
        advise(ROWS, COSTS, SETTING, 2 * MIB)
    frozen = table(cost("frozen", 1, 0.1, 1), whole=(cost("fedavg", 200, 2, 8),))
    (said,) = advise(ROWS, frozen, SETTING, None)
    assert "only frozen clients remain" in said


def test_a3_where_forwards_alone_save_no_memory_that_is_said() -> None:
    dear = table(
        cost("ho_sfl", 39, 1, 2),
        cost("splitfed_v2", 40, 0.5, 2),
        late=(cost("ho_sfl", 50, 1, 1), cost("splitfed_v2", 45, 1, 1)),
    )
    said = advise(ROWS, dear, SETTING, None)
    assert said[-1].startswith(
        "Forwards alone do not pay here: at no cut do they save a client 5 % of memory (at best "
        "ho_sfl, cut at 'early': 39.0 MiB, where splitfed_v2 takes 40.0 MiB)."
    )
    assert not any("do not pay" in sentence for sentence in advise(ROWS, COSTS, SETTING, None))
