"""How far a step goes: the formula against estimates that are drawn, numbers by hand, advice."""

from __future__ import annotations

import numpy as np
import pytest

from sfl_flower.profiling.progress import Learning, LearningRow, progress


def test_progress_is_that_of_the_best_step_along_estimates() -> None:
    """Of a loss |θ|²/2 in 20 dimensions, of which 8 are trained, with 5 directions a step."""
    rng = np.random.default_rng(0)
    g = rng.standard_normal(20)
    inside = g[:8]
    u = rng.choice([-1.0, 1.0], (200_000, 5, 8))
    estimates = np.einsum("npd,np->nd", u, u @ inside) / 5
    # A step η ĝ lowers the loss by η gᵀĝ - η² |ĝ|² / 2: at its best by (gᵀE ĝ)² / (2 E|ĝ|²).
    lowered = (estimates @ inside).mean() ** 2 / (2 * (estimates**2).sum(axis=1).mean())
    share = float(inside @ inside) / float(g @ g)
    assert lowered / (g @ g / 2) == pytest.approx(progress(share, 8, 5), rel=0.01)


def test_by_channel_it_is_that_of_fewer_dimensions() -> None:
    """Three rows of 4, and 5 numbers before them whose gradients through channels are orthogonal.

    A scalar of channel c is <g_c, u_c> + <h_c, w>, that of the whole their sum.
    """
    rng = np.random.default_rng(1)
    g = rng.standard_normal((3, 4))
    h = np.linalg.qr(rng.standard_normal((5, 5)))[0][:3] * [[0.5], [1.0], [2.0]]
    for before in (h, 0 * h):
        u = rng.choice([-1.0, 1.0], (60_000, 6, 3, 4))
        w = rng.choice([-1.0, 1.0], (60_000, 6, 5))
        v = np.einsum("npci,ci->npc", u, g) + w @ before.T
        rows = np.einsum("npc,npci->nci", v, u) / 6
        rest = np.einsum("np,npi->ni", v.sum(axis=2), w) / 6
        squares = (rows**2).sum(axis=(1, 2)) + (before.any() * rest**2).sum(axis=1)
        inside = float((g**2).sum() + (before.sum(axis=0) ** 2).sum())
        size = 4 + 5 if before.any() else 4
        assert inside / squares.mean() == pytest.approx(progress(1.0, size, 6), rel=0.01)


def row(**more: object) -> LearningRow:
    values = {
        "at": "a", "trained": "x", "chosen": "x", "size": 81, "share": 0.5, "weight": 0.4,
        "probes": 4, "sampled": 5,
    }  # fmt: skip
    return LearningRow(**{**values, **more})  # type: ignore[arg-type]


def test_numbers_of_a_row_by_hand() -> None:
    found = row()
    assert found.ratio == 81 / 20
    assert found.progress == pytest.approx(0.5 / (1 + 80 / 20))
    assert found.best_probes == 4
    assert found.per_forward == pytest.approx(0.1 * 3 / 5)
    assert found.whole == pytest.approx(0.6 + 0.4 * 0.1)
    assert row(size=1).progress == 0.5 and row(size=1).best_probes == 1


def test_by_channel_and_for_what_a_probe_costs_by_hand() -> None:
    """Of 80 numbers 5 rows of 16: m = 16, and P = √(15 / (5 · 1/12)) = 6."""
    found = row(size=80, apart=16, probe=1 / 12, probes=3)
    assert (found.scalars, found.noisy) == ("channel", 16)
    assert found.progress == pytest.approx(0.5 / (1 + 79 / 15))
    assert found.by_channel == pytest.approx(0.5 / (1 + 15 / 15))
    assert found.best_probes == 6
    assert found.cost(6) == pytest.approx(1.5)
    assert found.per_forward == pytest.approx(0.5 / (1 + 15 / 30) * 3 / 1.5)
    assert found.whole == pytest.approx(0.6 + 0.4 * 0.25)
    # An anchor of four forwards asks for twice the probes.
    assert row(size=80, apart=16, anchor=4.0, probe=1 / 12).best_probes == 12


def test_scalars_of_channels_that_save_nothing_are_not_taken() -> None:
    found = row(size=100, apart=96)
    assert found.scalars == "batch" and found.noisy == 100
    assert found.by_channel is not None and found.by_channel > found.progress


@pytest.mark.parametrize("cost", [{}, {"probe": 0.1}, {"anchor": 1.5, "probe": 0.3}])
def test_no_other_number_of_probes_brings_more_a_forward(cost: dict[str, float]) -> None:
    best = row(size=2001, **cost)
    for probes in range(1, 200):
        found = best.at_probes(probes) * 3 / best.cost(probes)
        assert found <= best.per_forward * (1 + 1e-3)


def test_what_is_recommended() -> None:
    rows = (
        row(trained="much", size=10_000), row(trained="few", chosen="subspace:a=1", size=21),
        row(at="b", trained="few", chosen="few", size=80, weight=0.8, apart=16, probe=1 / 12),
    )  # fmt: skip
    (said,) = Learning(rows).advice()
    assert said == (
        "To learn by forwards: cut at 'a' with task.trained=subspace:a=1 and P = 2: 21 parameters "
        "hold 0.50 of the client half's gradient, and a step of 5 clients goes 0.17 as far as one "
        "of backprop there, for 3 forwards where that takes 3; as late as 'b', task.trained=few, "
        "scalars=channel and P = 6 go 0.33 for 1.5, and 0.80 of the whole gradient is the "
        "client's, not 0.40."
    )


def test_a_guide_is_named_where_nothing_else_is_left() -> None:
    """Of 100,000 numbers P = 141: 0.5 / (1 + 99 999 / 705) x 3 / 142 is 7e-5."""
    hopeless = row(size=100_000)
    assert len(Learning((hopeless,)).advice()) == 1
    (_, said) = Learning((hopeless,), public=True).advice()
    assert said == (
        "No choice has scalars of channels, and none brings 0.001 of backprop a forward: what is "
        "left are guides of the public samples (guide=public, guide_rest=0)."
    )
    for better in (row(trained="few"), row(trained="rows", size=200_000, apart=90_000)):
        assert len(Learning((hopeless, better), public=True).advice()) == 1


def test_what_has_been_measured_is_named_where_another_goes_farther() -> None:
    few = row(trained="few", size=80, apart=16, probe=1 / 12, last=True)
    assert len(Learning((few,)).advice()) == 1
    (_, said) = Learning((few, row(trained="fewer", size=2, share=0.9))).advice()
    assert said == (
        "Measured to teach is the last layer alone in a few directions: behind 'a' task.trained=x, "
        "scalars=channel and P = 6, which go 0.33 for 1.5."
    )
