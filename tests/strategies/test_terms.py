"""What the settings of every method say of their price and of the server's pace."""

from __future__ import annotations

from typing import Any

import pytest

from sfl_flower.methods import METHODS, read_options

PASSES = {
    "ho_sfl": (1 + 4, 0), "heron": (1 + 4, 0), "decomfl": (1 + 4, 0), "zo_sfl": (2 * 4, 0),
    "mu_splitfed": (3, 0), "splitfed_v1": (2, 1), "splitfed_v2": (2, 1), "cse_fsl": (1, 1),
    "fsl_sage": (1, 1), "fedavg": (1, 1), "frozen": (1, 0), "u_shaped": (1 + 4, 0),
}  # fmt: skip


def settings(method: str, **options: Any) -> Any:
    known = METHODS[method].settings.__dataclass_fields__
    given = {key: value for key, value in options.items() if key in known}
    return read_options({"method": method, **given})[2]


@pytest.mark.parametrize("method", METHODS)
def test_d5_every_method_says_what_a_sample_costs_a_client(method: str) -> None:
    """With four probes; forwards of the client half, or of the whole model, and backprops."""
    assert settings(method, probes=4).client_passes == PASSES[method]


def test_d5_central_differences_need_no_anchor_but_for_the_smashed_data() -> None:
    central = {"probes": 4, "estimator": "central"}
    assert settings("ho_sfl", **central).client_passes == (1 + 8, 0)
    assert settings("heron", **central).client_passes == (1 + 8, 0)
    assert settings("decomfl", **central).client_passes == (8, 0)


def test_a2_the_defaults_step_after_every_batch_and_their_control_does_too() -> None:
    ours = settings("ho_sfl")
    assert (ours.server_steps, ours.probes, ours.client_lr, ours.clip_norm) == ("batch", 16, 0.2, 1)
    assert ours.control == {
        "server_steps": "batch", "client_mode": "as_built", "server_passes": 1,
    }  # fmt: skip
    assert settings("ho_sfl", server_passes=3).control == {**ours.control, "server_passes": 3}
    paper = settings("ho_sfl", server_steps="round", minibatches=2, client_mode="eval")
    assert paper.control == {
        "server_steps": "round", "client_mode": "eval", "minibatches": 2, "server_passes": 1,
    }  # fmt: skip
    assert settings("frozen").server_steps == "batch"
