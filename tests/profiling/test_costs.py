"""Costs of a step, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sfl_flower.errors import ConfigError
from sfl_flower.profiling.costs import Setting, method_costs
from sfl_flower.profiling.cuts import WHOLE, CutProfile, Rerun
from sfl_flower.profiling.peaks import Peak

ROW = CutProfile(
    at="layer1",
    parameters=1000,
    trainable=600,
    moving=200,
    state_bytes=4000,
    travelling_bytes=2400,
    flops=1e6,
    smashed_shape=(10,),
    smashed_bytes=40,
    inference=Peak(8000),
    backprop=Peak(50_000, 60_000),
    forward_seconds=0.001,
    backprop_seconds=0.003,
)
SETTING = Setting(batch_size=32, bandwidth=1e6, probes=4, sampled=5, outputs=3)
Z, Y, HEAD = 32 * 40, 32 * 1, 4 * 11 * 3


def test_bytes_of_every_method() -> None:
    found = {name: (cost.up, cost.down) for name, cost in method_costs(ROW, SETTING).items()}
    assert found == {
        "frozen": (Z + Y, 0),
        "ho_sfl": (Z + Y + 16, Z + 5 * (16 + 4)),
        "heron": (Z + Y + 16, 2400 + HEAD),
        "splitfed_v2": (Z + Y + 2400, Z + 2400),
        "cse_fsl": (Z + Y + 2400 + HEAD, 2400 + HEAD),
        "fsl_sage": (Z + Y + 2400, 2400 + HEAD // 10),
    }


def test_memory_and_seconds() -> None:
    costs = method_costs(ROW, SETTING)
    assert costs["frozen"].memory == 4000 + 8000
    assert costs["ho_sfl"].memory == 4000 + 8000 + 4 * 200 + 2 * Z
    assert costs["splitfed_v2"].memory == 4000 + 60_000  # measured goes before predicted
    assert costs["ho_sfl"].compute_seconds == pytest.approx(5 * 32 * 0.001)
    assert costs["splitfed_v2"].compute_seconds == pytest.approx(32 * (0.001 + 0.003))
    assert costs["cse_fsl"].compute_seconds == pytest.approx(32 * 0.003)
    assert costs["splitfed_v2"].transfer_seconds == pytest.approx(8 * (2 * Z + Y + 4800) / 1e6)
    cost = costs["heron"]
    assert cost.seconds == cost.compute_seconds + cost.transfer_seconds


def test_local_steps_share_weights_and_a_slow_client_computes_longer() -> None:
    setting = Setting(32, 1e6, probes=4, local_steps=4, slowdown=10, outputs=3)
    costs = method_costs(ROW, setting)
    assert costs["splitfed_v2"].up == Z + Y + 600
    assert costs["splitfed_v2"].compute_seconds == pytest.approx(10 * 32 * 0.004)


def test_an_estimator_says_what_its_probes_cost() -> None:
    seconds = {
        (estimator, method): cost.compute_seconds / (32 * ROW.forward_seconds)
        for estimator in ("forward", "central")
        for at, methods in ((ROW.at, ("ho_sfl", "heron")), (WHOLE, ("decomfl",)))
        for method, cost in method_costs(
            replace(ROW, at=at), replace(SETTING, probes=4, estimator=estimator)
        ).items()
        if method in methods
    }
    assert {name: round(value, 6) for name, value in seconds.items()} == {
        ("forward", "ho_sfl"): 5, ("forward", "heron"): 5, ("forward", "decomfl"): 5,
        ("central", "ho_sfl"): 9, ("central", "heron"): 9, ("central", "decomfl"): 8,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="estimator is 'x'; it must be one of forward, central"):
        replace(SETTING, estimator="x")


def test_probes_rerun_what_they_move() -> None:
    rerun = Rerun(flops=2e5, seconds=0.0002, crossing_bytes=4 * 40, peak=Peak(9000))
    for crossing, ho_sfl in ((160, 0.001 + 4 * 0.0002), (161, 2 * 0.001 + 3 * 0.0002)):
        row = replace(ROW, rerun=replace(rerun, crossing_bytes=crossing))
        costs = method_costs(row, SETTING)
        assert costs["heron"].compute_seconds == pytest.approx(32 * (0.001 + 4 * 0.0002))
        # The anchor and four probes; what is larger than four times z runs again before them.
        assert costs["ho_sfl"].compute_seconds == pytest.approx(32 * ho_sfl)
        assert costs["ho_sfl"].memory == 4000 + 9000 + 4 * 200 + 2 * Z
        assert costs["frozen"].memory == 4000 + 8000
        whole = method_costs(replace(row, at=WHOLE), SETTING)["decomfl"]
        assert whole.compute_seconds == pytest.approx(32 * (0.001 + 4 * 0.0002))
        exact = method_costs(row, replace(SETTING, estimator="jvp"))["ho_sfl"]
        assert exact.compute_seconds == pytest.approx(32 * (1 + 3 * 4) * 0.001)
        assert exact.memory == 4000 + 8000 + 4 * 600 + 2 * Z


def test_encodings_count_as_they_travel_and_what_is_held_is_float32() -> None:
    full = method_costs(ROW, SETTING)
    half = method_costs(ROW, replace(SETTING, smashed="float16", gradients="float16"))
    one = method_costs(ROW, replace(SETTING, gradients="float16"))
    for name, cost in full.items():
        down = Z // 2 if name in ("ho_sfl", "splitfed_v2") else 0
        assert (half[name].up, half[name].down) == (cost.up - Z // 2, cost.down - down)
        assert (one[name].up, one[name].down) == (cost.up, cost.down - down)
        assert half[name].memory == cost.memory
    with pytest.raises(ConfigError, match="smashed is 'int3'; it must be one of float32, float16"):
        replace(SETTING, smashed="int3")


def test_a_head_on_texts_with_an_output_at_every_position() -> None:
    row = replace(ROW, smashed_shape=(7, 10), smashed_bytes=280)
    z, of_one, of_each = 32 * 280, Y + 4 * 71 * 3, 7 * Y + 4 * 11 * 3  # labels and head
    for everywhere, size in {False: of_one, True: of_each}.items():
        costs = method_costs(row, replace(SETTING, everywhere=everywhere))
        assert costs["cse_fsl"].up == z + 2400 + size


def test_the_whole_model_and_a_half_with_nothing_to_train() -> None:
    whole = method_costs(CutProfile(**{**vars(ROW), "at": WHOLE}), SETTING)
    assert {name: (cost.up, cost.down) for name, cost in whole.items()} == {
        "fedavg": (2400, 2400),
        "decomfl": (16, 5 * 20),
    }
    assert list(method_costs(CutProfile(**{**vars(ROW), "trainable": 0}), SETTING)) == ["frozen"]


@pytest.mark.parametrize("name", ["batch_size", "bandwidth", "probes", "sampled", "local_steps"])
def test_settings_are_checked(name: str) -> None:
    wrong: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigError, match=f"{name.replace('_', '-')} is 0"):
        replace(SETTING, **wrong)
