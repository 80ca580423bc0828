"""What a process can run at a time."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from sfl_flower.errors import ConfigError
from sfl_flower.run.simulation import simulate
from tests import tiny

pytestmark = pytest.mark.flower

OPTIONS: dict[str, Any] = {
    "backend": "inline", "clients": 2, "rounds": 1, "batch_size": 4, "partition": "iid",
}  # fmt: skip


def test_e12_a_second_run_in_another_thread_is_refused_and_the_first_goes_on() -> None:
    errors: list[BaseException] = []

    def second() -> None:
        try:
            simulate(tiny.task(clients=2), **OPTIONS)
        except BaseException as error:
            errors.append(error)

    def meanwhile(record: Any) -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    first = simulate(tiny.task(clients=2), on_round=meanwhile, **OPTIONS)
    assert [type(error) for error in errors] == [ConfigError] * 2
    assert "Another simulation is running in a thread of this process" in str(errors[0])
    alone = simulate(tiny.task(clients=2), **OPTIONS)
    assert tiny.equal(first.model, alone.model)


def test_e12_a_run_that_failed_leaves_the_way_free() -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match="cannot give each of 9 clients"):
            simulate(tiny.task(clients=2, each=4), **{**OPTIONS, "clients": 9})
    assert simulate(tiny.task(clients=2), **OPTIONS).history


def test_too_long_an_upload_period_for_the_smallest_share_is_refused_before_anything_starts() -> (
    None
):
    options = {**OPTIONS, "local_steps": 0, "upload_every": 3}
    with pytest.raises(ConfigError, match=r"upload_every is 3, .* must be in \[1, 2\]"):
        simulate(tiny.task(clients=2, each=8), "cse_fsl", **options)
